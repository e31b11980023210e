"""Prefixes on the host: prompts that left the device come back while windows are compacted."""

import pytest

from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.hf_reference import Windows
from tests.e2e.servers import served_by
from tests.e2e.test_equality_by_head import assert_equal_by_head, head_reference_of, reference
from tests.e2e.test_retraction import num_resumed

__all__ = ["head_reference_of", "reference"]
DEFAULT = Windows(96, 16, 0.4)


def jobs(length: int, **dynts) -> list[dict]:
    """Prompts of 825 tokens together, more than the device's pool holds."""
    lens = range(60, 110, 5)
    return [{"prompt": prompt(n, seed=n), "length": length, "dynts": dynts or None} for n in lens]


def from_host(replies: list[dict]) -> int:
    """Tokens of prompts that came from the host."""
    return sum(reply["meta_info"]["cached_tokens_details"]["host"] for reply in replies)


def num_retracted(replies: list[dict]) -> int:
    return sum(reply["meta_info"]["num_retractions"] for reply in replies)


@served_by("hierarchical")
def test_prompts_come_back_from_the_host_and_no_token_changes(server, reference_of):
    server.generate_all(jobs(100), at_once=3)
    second = server.generate_all(jobs(100), at_once=3)
    for job, reply in zip(jobs(100), second, strict=True):
        assert assert_equal(reply, reference_of("qwen3"), job, DEFAULT).num_compactions >= 1
        assert reply["meta_info"]["cached_tokens"] == len(job["prompt"]) - 1
    assert from_host(second) >= 300


@served_by("hierarchical")
def test_sets_per_head_leave_the_slots_that_prompts_come_to(server, reference):
    some = jobs(100, policy="random_per_head")
    server.generate_all(some, at_once=4)
    second = server.generate_all(some, at_once=4)
    for job, reply in zip(some, second, strict=True):
        assert assert_equal_by_head(reply, reference, job).num_compactions >= 1
    assert from_host(second) >= 300


@served_by("hierarchical")
def test_a_storage_behind_the_host_is_refused_while_the_server_runs_too(server):
    status, message = server.error("/hicache/storage-backend", {"hicache_storage_backend": "file"})
    assert status == 400
    assert "have not been tested yet" in message


@served_by("hierarchical_retracting", "hierarchical_ngram", "hierarchical_eagle3")
@pytest.mark.parametrize("length", [100, 400])
def test_a_request_with_a_prompt_from_the_host_survives_retraction(server, kind, reference_of, length):
    """The short ones are computed again, most of the long ones go on from their copies."""
    server.generate_all(jobs(length), at_once=6)
    second = server.generate_all(jobs(length), at_once=6)
    for job, reply in zip(jobs(length), second, strict=True):
        assert_equal(reply, reference_of(kind), job, DEFAULT, late=1)
    assert num_retracted(second) >= 2
    assert from_host(second) >= 200
    if length == 400:
        assert num_resumed(second) >= 1


@served_by("hierarchical_ranks")
def test_each_rank_gets_its_own_prompts_back(server, kind, reference_of):
    some = [job | {"routed_dp_rank": rank} for job in jobs(100) for rank in (0, 1)]
    server.generate_all(some, at_once=8)
    second = server.generate_all(some, at_once=8)
    for job, reply in zip(some, second, strict=True):
        assert reply["meta_info"]["dp_rank"] == job.pop("routed_dp_rank")
        assert_equal(reply, reference_of(kind), job, DEFAULT, late=1)
    assert num_retracted(second) >= 2
    assert min(from_host(second[::2]), from_host(second[1::2])) >= 100


@served_by("hierarchical_without_copies")
def test_without_copies_a_retracted_request_is_computed_again_from_the_host(server, reference_of):
    """Here with latent K and V, and prompts that are written through when they are met again.

    One that was compacted goes on otherwise then; every second one never is, and may change no token.
    """
    mixed = [job | {"dynts": {"enabled": index % 2 == 0}} for index, job in enumerate(jobs(200))]
    for _ in range(2):
        server.generate_all(mixed, at_once=5)
    third = server.generate_all(mixed, at_once=5)
    again = [reply for reply in third if reply["meta_info"]["num_retractions"]]
    for job, reply in zip(mixed, third, strict=True):
        windows = DEFAULT if job["dynts"]["enabled"] else None
        if windows is None or reply not in again:
            assert_equal(reply, reference_of("deepseek_v3_dense"), job, windows, late=1)
    assert [reply for reply in again if not reply["meta_info"]["dynts"]["enabled"]]
    assert num_resumed(third) == 0
    assert from_host(third) >= 200
