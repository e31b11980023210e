"""Policies with a set of tokens per KV head: each request gets the tokens of its own policy's rule."""

import pytest

from benchmark.harness.tiny_models import THINK
from tests.e2e.conftest import prompt
from tests.e2e.head_reference import HeadReference
from tests.e2e.hf_reference import Expected, Windows
from tests.e2e.servers import SERVERS, served_by

WINDOWS = Windows(96, 16, 0.4)
LENGTHS = (5, 12, 20, 31, 40, 47, 60, 75, 90, 110, 130, 150)


@pytest.fixture(scope="session")
def head_reference_of(model_of):
    return lambda kind: HeadReference(model_of(kind), attention="eager")


@pytest.fixture
def reference(request, head_reference_of) -> HeadReference:
    return head_reference_of(SERVERS[request.node.callspec.params["server"]].model)


def jobs(policy: str, length: int = 160, first_seed: int = 0, **more) -> list[dict]:
    asked = {"policy": policy, **more}
    return [{"prompt": prompt(n, first_seed + n), "length": length, "dynts": asked} for n in LENGTHS]


def assert_equal_by_head(
    reply: dict, reference: HeadReference, job: dict, late: int = 0, windows: Windows = WINDOWS
) -> Expected:
    numbers = reply["meta_info"]["dynts"]
    assert numbers["policy"] == job["dynts"]["policy"]
    assert len(reply["output_ids"]) == job["length"]
    expected = reference.generate_by_head(
        numbers["policy"], job["prompt"], reply["output_ids"], windows, numbers["compacted_at"], late
    )
    assert reply["output_ids"] == expected.tokens
    assert numbers["compactions"] - expected.num_compactions in (0, 1)  # the last token may be due, too
    return expected


@pytest.mark.parametrize("policy", ["snapkv_per_head", "rkv_per_head", "h2o_per_head", "random_per_head"])
@served_by("observing_by_head")
def test_tokens_equal_the_reference_with_the_same_rule(server, reference, policy):
    some = jobs(policy, 160, first_seed=500)
    for job, reply in zip(some, server.generate_all(some), strict=True):
        assert assert_equal_by_head(reply, reference, job).num_compactions >= 2


@served_by("overlap", "no_overlap", "mixed_chunk_and_queue", "tensor_parallel", "no_radix_cache")
def test_every_way_to_schedule_gives_the_same_tokens(server, reference):
    some = jobs("random_per_head")
    for job, reply in zip(some, server.generate_all(some), strict=True):
        assert assert_equal_by_head(reply, reference, job).num_compactions >= 2


@served_by("overlap")
def test_one_set_and_a_set_per_head_beside_each_other(server, reference, reference_of):
    some = jobs("random_per_head", 120, first_seed=900)
    others = [{**job, "dynts": {"policy": "predictor"}} for job in some]
    replies = server.generate_all([one for pair in zip(some, others, strict=True) for one in pair])
    for job, reply in zip(some, replies[::2], strict=True):
        assert_equal_by_head(reply, reference, job)
    one_set = reference_of("qwen3")
    for job, reply in zip(others, replies[1::2], strict=True):
        at = reply["meta_info"]["dynts"]["compacted_at"]
        expected = one_set.generate(
            job["prompt"], job["length"], WINDOWS, None, at, served=reply["output_ids"]
        )
        assert reply["output_ids"] == expected.tokens


@served_by("overlap")
def test_a_second_request_gets_an_untouched_prompt(server, reference):
    job = {"prompt": prompt(60, 77), "length": 240, "dynts": {"policy": "random_per_head"}}
    first, second = server.generate(**job), server.generate(**job)
    assert first["meta_info"]["dynts"]["compactions"] >= 2
    assert second["meta_info"]["cached_tokens"] == 59
    assert_equal_by_head(second, reference, job)


@served_by("retracting", "retracting_no_overlap", "retracting_no_radix_cache")
def test_retractions_with_copies_change_no_token(server, reference):
    some = [
        {"prompt": prompt(20 + 5 * i, 720 + i), "length": 200, "dynts": {"policy": "random_per_head"}}
        for i in range(12)
    ]
    replies = server.generate_all(some)
    for job, reply in zip(some, replies, strict=True):
        assert assert_equal_by_head(reply, reference, job, late=1).num_compactions >= 2
    assert sum(reply["meta_info"]["dynts"]["resumptions"] for reply in replies) >= 1


@served_by("changes_its_mind")
def test_answers_between_thinking_stay_in_every_head(server, reference):
    some = jobs("random_per_head", 200, first_seed=40)
    replies = server.generate_all(some)
    kinds = []
    for job, reply in zip(some, replies, strict=True):
        expected = assert_equal_by_head(reply, reference, job)
        kinds.append(expected.num_compactions)
    assert max(kinds) >= 2


@served_by("overlap")
def test_thinking_that_a_prompt_continues_is_chosen_by_head(server, reference):
    continued = [*prompt(20, 50), THINK, *prompt(100, 51)[1:]]
    job = {"prompt": continued, "length": 200, "dynts": {"policy": "random_per_head"}}
    first, second = server.generate(**job), server.generate(**job)
    for reply in (first, second):
        assert assert_equal_by_head(reply, reference, job).num_compactions >= 2
        assert reply["meta_info"]["dynts"]["question_len"] == 21
    assert second["meta_info"]["cached_tokens"] == 21


@pytest.mark.parametrize("policy", ["calibrated", "hybrid", "triattention_per_head"])
@served_by("tensor_parallel", "retracting")
def test_what_queries_are_expected_to_take_is_chosen_by_head(server, reference, policy):
    some = [
        {"prompt": prompt(20 + 5 * i, 820 + i), "length": 200, "dynts": {"policy": policy}}
        for i in range(12)
    ]
    for job, reply in zip(some, server.generate_all(some), strict=True):
        assert assert_equal_by_head(reply, reference, job, late=1).num_compactions >= 2


@served_by("untrained")
def test_a_model_without_predictor_and_markers_is_served(server, reference):
    windows = {"budget": WINDOWS.budget, "local_window": WINDOWS.local_window}
    some = [{"prompt": prompt(n, 640 + n), "length": 240, "dynts": windows} for n in LENGTHS]
    reference.server_period = 1024 - 409 - int(0.4 * 615)  # a quarter of the context of 4096 tokens
    for job, reply in zip(some, server.generate_all(some), strict=True):
        job["dynts"]["policy"] = "calibrated"
        assert assert_equal_by_head(reply, reference, job).num_compactions >= 2
    health = server.request("/dynts/health")
    assert health["policy"] == {"name": "calibrated", "why": "the model has no predictor"}
    assert health["calibration"]["num_tokens"] > 1000
    assert health["windows"]["budget"] == 1024
