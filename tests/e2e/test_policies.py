"""Requests of all policies in one batch: each gets the tokens of its own policy's rule."""

from benchmark.harness.tiny_models import THINK
from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.hf_reference import Reference, Windows
from tests.e2e.servers import served_by

WINDOWS = Windows(96, 16, 0.4)
NAMES = (
    *("predictor", "window", "snapkv", "h2o", "random", "full", "streaming", "rkv", "bottom", "sepllm"),
)


@served_by("observing")
def test_tokens_equal_the_reference_with_the_same_rule(model_of, server):
    """Of the second half of the requests the prompt continues thinking that is longer than the budget."""
    names = NAMES * 2
    thought = [THINK, *prompt(120, 400)[1:]]
    jobs = [
        {
            "prompt": prompt(12 + 2 * n, 300 + n) + thought * (n >= len(NAMES)),
            "length": 200,
            "dynts": {"policy": name, "return_tokens": True},
        }
        for n, name in enumerate(names)
    ]
    replies = server.generate_all(jobs)
    reference = Reference(model_of("qwen3"), attention="eager")
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
