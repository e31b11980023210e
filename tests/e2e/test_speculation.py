"""Speculative decoding: tokens, and where they were compacted, are those of DynTS without it."""

from typing import Any

import pytest

from benchmark.ledgers import evaluate
from sgl_dynts.demo import ledger
from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.hf_reference import Windows
from tests.e2e.server import Server
from tests.e2e.servers import EXACT, served_by
from tests.e2e.test_equality_by_head import assert_equal_by_head, head_reference_of, reference
from tests.e2e.test_retraction import num_resumed

__all__ = ["head_reference_of", "reference"]
DEFAULT = Windows(96, 16, 0.4)
LENGTHS = (5, 12, 20, 31, 40, 47, 60, 75, 90, 110, 130, 150)
DRAFTING = served_by(
    *("ngram", "ngram_queue", "ngram_no_overlap", "standalone", "eagle", "eagle3"),
    *("multi_token_head", "multi_token_head_latents", "gpt_oss_ngram", "qwen3_next_ngram"),
    *("qwen3_vl_ngram",),
)
RETRACTING = served_by("standalone_retracting", "gpt_oss_eagle3", "multi_token_head_ranks")


@pytest.fixture(scope="module")
def questions() -> list[list[int]]:
    vocabulary = ledger.Vocabulary()
    problems = evaluate.problems_of("test", 6, ledger.DEFAULT_STEPS)
    return [vocabulary.encode(problem.prompt) for problem in problems]


def jobs(length: int = 160, **dynts) -> list[dict]:
    return [{"prompt": prompt(n, seed=n), "length": length, "dynts": dynts or None} for n in LENGTHS]


@DRAFTING
def test_tokens_equal_the_reference(server, kind, windows, reference_of):
    """Without elastic budgets at the very lengths that the reference finds by itself."""
    replies = server.generate_all(jobs())
    for job, reply in zip(jobs(), replies, strict=True):
        expected = assert_equal(reply, reference_of(kind), job, windows)
        assert reply["meta_info"]["spec_verify_ct"] < job["length"]
        if EXACT in server.command:
            assert_equal_points(reply, reference_of(kind), job, windows)
        elif kind == "qwen3":
            assert expected.num_compactions >= 2


def assert_equal_points(reply: dict, reference, job: dict, windows: Windows) -> None:
    """It was compacted where the budget is reached, as the reference finds by itself."""
    at = reply["meta_info"]["dynts"]["compacted_at"]
    found = reference.generate(job["prompt"], job["length"], windows, served=reply["output_ids"])
    assert at[: len(found.compacted_at)] == found.compacted_at
    assert len(at) - len(found.compacted_at) in (0, 1)  # the last token may be due, too


@served_by("demo_standalone")
def test_as_many_drafts_are_accepted_as_with_the_full_cache(server, questions):
    """The demo's model drafts for itself. Compactions come between two verifications and stop none."""
    lengths: dict[bool, float] = {}
    for enabled in (True, False):
        jobs = [{"prompt": ids, "length": 690, "dynts": {"enabled": enabled}} for ids in questions[::2]]
        jobs = [job | {"sampling_params": {"ignore_eos": False}} for job in jobs]
        numbers = [reply["meta_info"] for reply in server.generate_all(jobs, at_once=2)]
        tokens = sum(one["completion_tokens"] for one in numbers)
        lengths[enabled] = tokens / sum(one["spec_verify_ct"] for one in numbers)
        assert all(bool(one["dynts"].get("compactions")) is enabled for one in numbers)
    assert lengths[False] > 3.5
    assert lengths[True] >= 0.97 * lengths[False]


@served_by("ngram")
def test_own_budgets_and_switched_off_requests_draft_in_one_batch(server, kind, reference_of):
    choices = [
        (None, DEFAULT),
        ({"enabled": False}, None),
        ({"budget": 64}, Windows(64, 16, 0.4)),
    ]
    mixed = jobs(length=150)
    for index, job in enumerate(mixed):
        job["dynts"] = (choices[index % 3][0] or {}) | {"return_tokens": True}
    for index, (job, reply) in enumerate(zip(mixed, server.generate_all(mixed), strict=True)):
        assert_equal(reply, reference_of(kind), job, choices[index % 3][1])
        assert_only_its_own_tokens_are_told(job, reply["meta_info"]["dynts"])


def assert_only_its_own_tokens_are_told(job: dict, numbers: dict) -> None:
    """Whatever a verification accepted behind the last one."""
    seen = len(job["prompt"]) + job["length"]
    assert len(numbers["tokens"]["scores"]) == seen - 1
    assert numbers["window_len"] + numbers["dropped_tokens"] in (seen - 1, seen)


@served_by("ngram", "ngram_queue")
def test_sets_per_head_draft_alike(server, reference):
    some = jobs(policy="random_per_head")
    for job, reply in zip(some, server.generate_all(some), strict=True):
        assert assert_equal_by_head(reply, reference, job).num_compactions >= 2


@served_by("ngram")
def test_a_compacted_request_leaves_its_prompt_to_others(server, kind, reference_of):
    job = {"prompt": prompt(60, 77), "length": 200}
    server.generate(**job)
    again = server.generate(**job)
    assert again["meta_info"]["cached_tokens"] == 59
    assert_equal(again, reference_of(kind), job, DEFAULT)


@RETRACTING
def test_retractions_with_drafts_change_no_token(server, kind, windows, reference_of):
    some = [{"prompt": prompt(20 + 5 * i, 1000 + i), "length": 200} for i in range(12)]
    replies = server.generate_all(some)
    for job, reply in zip(some, replies, strict=True):
        assert_equal(reply, reference_of(kind), job, windows, late=1)
    assert num_resumed(replies) >= 2


@RETRACTING
def test_outputs_longer_than_the_pool_draft_too(server, kind, windows, reference_of):
    some = [{"prompt": prompt(20 + 5 * i, 800 + i), "length": 750} for i in range(3)]
    for job, reply in zip(some, server.generate_all(some), strict=True):
        assert_equal(reply, reference_of(kind), job, windows, late=1)
        assert reply["meta_info"]["dynts"]["peak_window_len"] <= 120


@served_by("ngram")
def test_an_aborted_request_leaves_no_slot_behind(server: Server):
    parts: Any = server.stream(prompt(30, 5), 2000)
    next(part for part in parts if part["meta_info"]["completion_tokens"] >= 100)
    parts.close()
    server.request("/abort_request", {"rid": "", "abort_all": True})
    server.assert_nothing_leaked()
