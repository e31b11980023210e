"""K and V of eight bits: what is attended to, judged, moved and copied is what the server rounded."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.e2e.conftest import prompt
from tests.e2e.head_reference import HeadReference
from tests.e2e.hf_reference import Windows
from tests.e2e.servers import served_by
from tests.e2e.test_equality_by_head import assert_equal_by_head

WINDOWS = Windows(96, 16, 0.4)


class RoundedCache(DynamicCache):
    """Hugging Face's own, of numbers that eight bits hold."""

    def update(self, key_states, value_states, *args: Any, **kwargs: Any):
        rounded = [some.to(torch.float8_e4m3fn).float() for some in (key_states, value_states)]
        return super().update(*rounded, *args, **kwargs)


class RoundedReference(HeadReference):
    def new_cache(self) -> DynamicCache:
        return RoundedCache()


@pytest.fixture(scope="module")
def rounded(model_of) -> HeadReference:
    return RoundedReference(model_of("qwen3"), attention="eager")


def jobs(policy: str) -> list[dict]:
    asked = {"policy": policy}
    return [{"prompt": prompt(20 + 5 * i, 20 + i), "length": 200, "dynts": asked} for i in range(12)]


@pytest.mark.parametrize("policy", ["random_per_head", "calibrated", "hybrid"])
@served_by("eight_bits")
def test_sets_per_head_equal_a_rounded_reference(server, rounded, policy):
    some = jobs(policy)
    replies = server.generate_all(some)
    for job, reply in zip(some, replies, strict=True):
        assert assert_equal_by_head(reply, rounded, job, late=1).num_compactions >= 2
    assert sum(reply["meta_info"]["dynts"]["resumptions"] for reply in replies) >= 1


@served_by("eight_bits")
def test_one_set_equals_a_rounded_reference_and_no_other(server, rounded, reference_of):
    some = jobs("predictor")
    differ = 0
    for job, reply in zip(some, server.generate_all(some), strict=True):
        at, served = reply["meta_info"]["dynts"]["compacted_at"], reply["output_ids"]
        asked = job["prompt"], job["length"], WINDOWS, None, at, 1, "predictor", served
        assert rounded.generate(*asked).tokens == served
        differ += reference_of("qwen3").generate(*asked).tokens != served
    assert differ
