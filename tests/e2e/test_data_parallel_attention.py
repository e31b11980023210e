"""Attention in data-parallel ranks: each compacts its own requests while all compute a forward."""

import pytest

from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.head_reference import HeadReference
from tests.e2e.hf_reference import Windows
from tests.e2e.servers import SERVERS, served_by
from tests.e2e.test_equality_by_head import assert_equal_by_head

WINDOWS = Windows(96, 16, 0.4)
OTHER_POOLS = ("data_parallel_attention_gpt_oss", "data_parallel_attention_qwen3_next")
LENGTHS = (5, 20, 40, 60, 90, 130)
BOTH = ("data_parallel_attention", "data_parallel_attention_retracting")


@pytest.fixture
def late(request) -> int:
    """Tokens by which a compaction may be late: one where requests are retracted."""
    return int("SGLANG_TEST_RETRACT" in SERVERS[request.node.callspec.params["server"]].environment)


def jobs(length: int = 150, first_seed: int = 0, **more) -> list[dict]:
    return [{"prompt": prompt(n, first_seed + n), "length": length, **more} for n in LENGTHS]


@served_by(*BOTH)
def test_both_ranks_compact_what_they_serve(server, kind, late, reference_of):
    replies = server.generate_all(jobs())
    for job, reply in zip(jobs(), replies, strict=True):
        assert assert_equal(reply, reference_of(kind), job, WINDOWS, late=late).num_compactions >= 1
    assert {reply["meta_info"]["dp_rank"] for reply in replies} == {0, 1}


@served_by(*BOTH, "multi_token_head_ranks")
def test_a_rank_without_requests_keeps_up(server, kind, late, reference_of):
    """The other one has a request alone, then many; a prefill meets its decoding."""
    for rank in (0, 1):
        alone = {"prompt": prompt(50, 300 + rank), "length": 120, "routed_dp_rank": rank}
        reply = server.generate(**alone)
        assert reply["meta_info"]["dp_rank"] == rank
        assert_equal(reply, reference_of(kind), alone, WINDOWS, late=late)
        many = jobs(60, first_seed=400 + rank, routed_dp_rank=rank)[::2]
        for job, one in zip(many, server.generate_all(many, at_once=4), strict=True):
            assert_equal(one, reference_of(kind), job, WINDOWS, late=late)


@served_by("data_parallel_attention")
def test_a_second_round_hits_the_prompts_of_its_rank(server, kind, reference_of):
    job = {"prompt": prompt(60, 77), "length": 20}
    found = []
    for rank in (0, 0, 1):
        reply = server.generate(**job, routed_dp_rank=rank)
        assert_equal(reply, reference_of(kind), job, WINDOWS)
        found.append(reply["meta_info"]["cached_tokens"])
    assert found == [1, 59, 1]  # all prompts open alike


@served_by(*OTHER_POOLS)
def test_models_with_other_pools_beside(server, kind, windows, reference_of):
    some = jobs(100, first_seed=500)
    for job, reply in zip(some, server.generate_all(some), strict=True):
        assert assert_equal(reply, reference_of(kind), job, windows).num_compactions >= 1


@pytest.mark.parametrize("policy", ["random_per_head", "calibrated", "hybrid", "snapkv_per_head"])
@served_by("data_parallel_attention")
def test_each_rank_keeps_a_set_for_every_head(server, kind, model_of, policy):
    reference = HeadReference(model_of(kind), attention="eager")
    some = jobs(100, first_seed=600, dynts={"policy": policy})
    for job, reply in zip(some, server.generate_all(some), strict=True):
        assert_equal_by_head(reply, reference, job)


@served_by("data_parallel_attention_retracting")
def test_requests_of_both_ranks_are_resumed(server, kind, reference_of):
    replies = server.generate_all(jobs(first_seed=700))
    for job, reply in zip(jobs(first_seed=700), replies, strict=True):
        assert assert_equal(reply, reference_of(kind), job, WINDOWS, late=1).num_compactions >= 1
    assert sum(reply["meta_info"]["dynts"]["resumptions"] for reply in replies) >= 2


@served_by(*BOTH)
def test_health_is_that_of_both_ranks(server):
    health = server.request("/dynts/health")
    assert (health["healthy"], health["num_schedulers"]) == (True, 2)
    assert health["num_compactions"] >= 6
