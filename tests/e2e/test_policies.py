"""Requests of all policies in one batch: each gets the tokens of its own policy's rule."""

import pytest

from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.hf_reference import NUM_QUERIES, Reference, Windows
from tests.e2e.server import Server

WINDOWS = Windows(96, 16, 0.4)
NAMES = (
    *("predictor", "window", "snapkv", "h2o", "random", "full", "streaming", "rkv", "bottom", "sepllm"),
)


@pytest.fixture(scope="module")
def server(models, start):
    flags = ("--dynts-observe-queries", str(NUM_QUERIES), "--dynts-host-memory-gb", "0")
    server: Server = start(models["qwen3"], "--attention-backend", "dynts", *flags)
    yield server
    server.assert_nothing_leaked()


def test_tokens_equal_the_reference_with_the_same_rule(models, server):
    names = NAMES * 2
    jobs = [
        {
            "prompt": prompt(12 + 2 * n, 300 + n),
            "length": 200,
            "dynts": {"policy": name, "return_tokens": True},
        }
        for n, name in enumerate(names)
    ]
    replies = server.generate_all(jobs)
    reference = Reference(models["qwen3"], attention="eager")
    for job, name, reply in zip(jobs, names, replies, strict=True):
        windows = None if name == "full" else WINDOWS
        expected = assert_equal(reply, reference, job, windows, policy=name)
        numbers = reply["meta_info"]["dynts"]
        assert numbers["policy"] == name
        assert numbers["dropped_tokens"] == sum(numbers["dropped_then"])
        assert (expected.num_compactions >= 2) == (name != "full")
        dropped = {position for drop in numbers["tokens"]["dropped"] for position in drop["positions"]}
        assert sorted(dropped.union(expected.kept)) == list(range(len(job["prompt"]) + 199))
        assert not dropped.intersection(expected.kept)
