"""The soak that GPUs get at length, in short on any machine; the model is the GPU tests' own."""

import sys

from tests.e2e.endurance import clock_leaks, endure
from tests.e2e.hf_reference import Reference
from tests.e2e.models import build_wide_model
from tests.e2e.soak import RETRACTING, draw_lives, soak


def test_arrivals_aborts_and_retractions_in_a_small_pool(start, tmp_path):
    model = build_wide_model(tmp_path / "wide")
    flags = ("--attention-backend", "dynts", "--max-total-tokens", "700", "--enable-mixed-chunk")
    with start(model, *flags, "--chunked-prefill-size", "32", **RETRACTING) as server:
        soak(server, draw_lives(30, longest=140, seed=1), at_once=8, reference=Reference(model))
        # The two commands of endurance.py, in short.
        tally = endure(server, model, seconds=20, at_once=6, longest=60, log=sys.stdout, pace=2)
        assert tally.losses == []
        assert tally.outcomes["finished"] > 0
        assert len(clock_leaks(server, num_requests=60, at_once=6, num_blocks=2)) == 3
