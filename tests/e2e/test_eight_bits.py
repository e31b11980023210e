"""K and V of eight bits: what is attended to, judged, moved and copied is what the server rounded."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.e2e.conftest import prompt
from tests.e2e.head_reference import HeadReference
from tests.e2e.hf_reference import Windows
from tests.e2e.servers import served_by
from tests.e2e.test_retraction import num_resumed

WINDOWS = Windows(96, 16, 0.4)
MOST = 9
"""Of twelve requests: a number that lies between two of eight bits may be rounded to either of them."""


class RoundedCache(DynamicCache):
    """Hugging Face's own, of numbers that eight bits hold."""

    def update(self, key_states, value_states, *args: Any, **kwargs: Any):
        rounded = [some.to(torch.float8_e4m3fn).float() for some in (key_states, value_states)]
        return super().update(*rounded, *args, **kwargs)


class RoundedReference(HeadReference):
    rounding = 1e-2
    """One number that is rounded otherwise moves a logit by that."""

    def new_cache(self) -> DynamicCache:
        return RoundedCache()


@pytest.fixture(scope="module")
def rounded(model_of) -> HeadReference:
    return RoundedReference(model_of("qwen3"), attention="eager")


@pytest.fixture(scope="module")
def exact(model_of) -> HeadReference:
    reference = HeadReference(model_of("qwen3"), attention="eager")
    reference.rounding = RoundedReference.rounding
    return reference


def jobs(policy: str) -> list[dict]:
    asked = {"policy": policy}
    return [{"prompt": prompt(20 + 5 * i, 20 + i), "length": 200, "dynts": asked} for i in range(12)]


def num_equal(reference: HeadReference, some: list[dict], replies: list[dict]) -> int:
    """Requests that got a reference's tokens, each compacted at least twice."""
    equal = 0
    for job, reply in zip(some, replies, strict=True):
        policy, served = job["dynts"]["policy"], reply["output_ids"]
        at = reply["meta_info"]["dynts"]["compacted_at"]
        if policy == "predictor":
            asked = job["prompt"], job["length"], WINDOWS, None, at, 1, policy, served
            found = reference.generate(*asked)
        else:
            found = reference.generate_by_head(policy, job["prompt"], served, WINDOWS, at, 1)
        assert found.num_compactions >= 2
        equal += found.tokens == served
    return equal


@pytest.mark.parametrize("policy", ["predictor", "random_per_head", "calibrated", "hybrid"])
@served_by("eight_bits")
def test_tokens_are_those_of_a_rounded_reference_and_no_other(server, rounded, exact, policy):
    some = jobs(policy)
    replies = server.generate_all(some)
    found = num_equal(rounded, some, replies), num_equal(exact, some, replies)
    assert found[0] >= MOST
    assert found[1] <= len(some) - MOST
    assert num_resumed(replies) >= 1
