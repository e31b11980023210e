"""Shards keep what was computed, whatever happens, and give it back unchanged."""

import re

import pytest
import torch

from sgl_dynts.training import states
from sgl_dynts.training.states import StateSettings, StateStore, TraceStates

SETTINGS = StateSettings("model", "torch.bfloat16", "future", 128)


def trace(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(length, 4, generator=generator).bfloat16()
    return TraceStates(hidden, torch.rand(length, generator=generator), torch.arange(length) % 3 == 0)


TRACES = {f"key-{length}": trace(length, length) for length in (3, 1, 5)}


def fill(store, traces=TRACES):
    return list(store.add((key, lambda key=key: traces[key]) for key in traces))


def assert_holds(store, traces=TRACES):
    for key, expected in traces.items():
        found = store.read(key)
        for name in ("hidden", "targets", "critical"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)
        assert store.length(key) == len(expected)


@pytest.mark.parametrize("shard_bytes", [1, 1 << 20])
def test_traces_come_back_from_one_shard_or_many(tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(states, "SHARD_BYTES", shard_bytes)
    assert fill(StateStore(tmp_path, SETTINGS)) == list(TRACES)
    assert len(list(tmp_path.glob("*.safetensors"))) == (3 if shard_bytes == 1 else 1)
    again = StateStore(tmp_path, SETTINGS)
    assert_holds(again)
    assert again.hidden_size == 4


def test_only_what_is_missing_is_computed(tmp_path):
    fill(StateStore(tmp_path, SETTINGS), {"key-1": TRACES["key-1"]})
    store = StateStore(tmp_path, SETTINGS)
    assert fill(store) == ["key-3", "key-5"]
    assert_holds(store)


def test_an_error_leaves_what_was_computed_before(tmp_path):
    def fails():
        raise KeyboardInterrupt

    store = StateStore(tmp_path, SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        list(store.add([("key-3", lambda: TRACES["key-3"]), ("key-5", fails)]))
    assert_holds(StateStore(tmp_path, SETTINGS), {"key-3": TRACES["key-3"]})


def test_other_settings_are_refused(tmp_path):
    StateStore(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match=re.escape("made with distance=128, not with")):
        StateStore(tmp_path, StateSettings("model", "torch.bfloat16", "future", 64))


def test_a_broken_shard_is_named(tmp_path):
    fill(StateStore(tmp_path, SETTINGS))
    shard = next(tmp_path.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(ValueError, match=f"{shard.name}: not a readable shard.*remove it"):
        StateStore(tmp_path, SETTINGS)
