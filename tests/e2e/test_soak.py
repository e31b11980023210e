"""The soak that GPUs get at length, in short on any machine."""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.e2e import books
from tests.e2e.endurance import Tally, clock_leaks, close_books, endure
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


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ('sglang:kv_used_tokens{dp_rank="1"} 3.0', "'KV slots': 3.0"),
        ("sglang:mamba_used_tokens -2.0", "'recurrent states': 2.0"),
        ("sglang:dynts_host_copy_bytes 64.0", "'bytes of host copies': 64.0"),
        ("sglang:hicache_host_used_tokens 5.0", "'prefixes in host memory': 5.0"),
        ("sglang:kv_evictable_tokens 9.0", None),
    ],
)
def test_what_a_pool_of_an_idle_server_holds_is_lost(monkeypatch, line, lost):
    monkeypatch.setattr(books, "SECONDS", 0)
    server: Any = Mock(unsafe=True, log=Path("server.log"), request=lambda _path: f"{line}\n")
    tally = Tally()
    close_books(Place(server, [server], [server], Path()), tally)
    assert [lost in loss for loss in tally.losses] == ([True] if lost else [])
