"""The soak that GPUs get at length, in short on any machine."""

import sys

from tests.e2e.endurance import clock_leaks, endure
from tests.e2e.places import Place
from tests.e2e.servers import served_by
from tests.e2e.soak import draw_lives, soak


@served_by("retracting")
def test_arrivals_aborts_and_retractions_in_a_small_pool(server, model_of, reference_of):
    soak(server, draw_lives(30, longest=140, seed=1), at_once=8, reference=reference_of("qwen3"))
    # The two commands of endurance.py, in short.
    place = Place(server, [server], [server], model_of("qwen3"))
    tally = endure(place, seconds=20, at_once=6, longest=60, log=sys.stdout, pace=2)
    assert tally.losses == []
    assert tally.outcomes["finished"] > 0
    assert len(clock_leaks(server, num_requests=60, at_once=6, num_blocks=2)) == 3
