"""Retraction: a request that loses its KV goes on from a copy of its window, with the same tokens."""

import urllib.error
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from benchmark.harness.tiny_models import THINK
from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.hf_reference import Windows, sizes
from tests.e2e.server import Server
from tests.e2e.servers import served_by

DEFAULT = Windows(96, 16, 0.4)
# The forward that resumes a request must be processed before it is compacted: one token late at most.
RETRACTED = served_by("retracting", "retracting_no_overlap", "retracting_no_radix_cache")


def cases(first_seed: int, length: int, count: int = 12) -> list[dict]:
    return [{"prompt": prompt(20 + 5 * i, first_seed + i), "length": length} for i in range(count)]


def num_resumed(replies: list[dict]) -> int:
    return sum(reply["meta_info"]["dynts"]["resumptions"] for reply in replies)


def outcome(server: Server, job: dict) -> tuple[int, Any]:
    try:
        return 200, server.generate(**job)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@served_by("little_host_memory")
def test_without_host_memory_left_a_request_longer_than_the_pool_ends_with_its_reason(
    server, reference_of
):
    wide = {"budget": 250}  # a compaction leaves 109 tokens, so no copy of such a window fits
    lost, copied = cases(990, 1200, count=2)
    pace = {"prompt": prompt(20, 995), "length": 1200, "dynts": wide}
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(outcome, server, job) for job in (lost | {"dynts": wide}, copied)]
        grown = server.stream(**pace)
        next(reply for reply in grown if reply["meta_info"]["completion_tokens"] >= 800)
        server.request("/pause_generation", {"mode": "retract"})
        server.request("/continue_generation", {})
        *_, last = grown
        assert last["meta_info"]["finish_reason"]["status_code"] == 503
        (status, text), (_, survivor) = (job.result() for job in jobs)
    assert status == 503
    assert "--dynts-host-memory-gb" in text
    assert_equal(survivor, reference_of("qwen3"), copied, DEFAULT, late=1)
    assert survivor["meta_info"]["dynts"]["resumptions"] == 1
    assert len(server.generate(prompt(20, 999), 100)["output_ids"]) == 100


@RETRACTED
def test_forced_retractions_change_no_token(server, reference_of):
    jobs = cases(700, 220)
    replies = server.generate_all(jobs)
    for job, reply in zip(jobs, replies, strict=True):
        expected = assert_equal(reply, reference_of("qwen3"), job, DEFAULT, late=1)
        assert expected.num_compactions >= 2
    assert sum(reply["meta_info"]["num_retractions"] for reply in replies) >= 3
    assert num_resumed(replies) >= 3


@RETRACTED
def test_outputs_longer_than_the_pool_survive_retraction(server, reference_of):
    jobs = cases(800, 750, count=3)
    replies = server.generate_all(jobs)
    for job, reply in zip(jobs, replies, strict=True):
        assert_equal(reply, reference_of("qwen3"), job, DEFAULT, late=1)
        assert reply["meta_info"]["finish_reason"] == {"type": "length", "length": 750}
        assert reply["meta_info"]["dynts"]["peak_window_len"] <= 120
    assert num_resumed(replies) >= 3


@RETRACTED
def test_a_request_without_dynts_is_still_clipped_to_the_pool(server):
    reply = server.generate(prompt(20, 900), 1000, {"enabled": False})
    assert len(reply["output_ids"]) == 700 - 20 - 2


LOGPROBS = {
    "plain": {},
    "output": {"return_logprob": True},
    "output_and_top": {"return_logprob": True, "top_logprobs_num": 2},
    "output_of_given_tokens": {"return_logprob": True, "token_ids_logprob": [7, 9]},
    "input_too": {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2},
}


@RETRACTED
def test_logprobs_change_no_token_and_no_length(server, reference_of):
    """At a pool that is shorter than the output, retracted all along; each gets what it asked for."""
    question = prompt(25, 950)
    jobs = [{"prompt": question, "length": 800, **asked} for asked in LOGPROBS.values()]
    replies = server.generate_all(jobs)
    assert num_resumed(replies) >= 3
    for job, reply in zip(jobs, replies, strict=True):
        expected = assert_equal(reply, reference_of("qwen3"), job, DEFAULT, late=1)
        if "return_logprob" not in job:
            continue
        given = reply["meta_info"]
        found = given["output_token_logprobs"]
        assert [token for _, token, _ in found] == expected.tokens
        assert [value for value, _, _ in found] == pytest.approx(expected.logprobs, abs=1e-3)
        asks_input = job.get("logprob_start_len") == 0
        assert len(given["input_token_logprobs"]) == (len(question) if asks_input else 0)
        assert len(given.get("output_top_logprobs") or found) == 800
    input_too = replies[-1]["meta_info"]
    assert [token for _, token, _ in input_too["input_token_logprobs"]] == question
    assert len(input_too["input_top_logprobs"]) == len(question)


@RETRACTED
def test_continued_thinking_may_be_dropped_and_survives_retraction(server, reference_of):
    """A prompt of a question, an open marker and thoughts that are longer than the budget."""
    questions = [[*case["prompt"], THINK] for case in cases(970, 0, count=4)]
    prompts = [[*question, *prompt(150, 1300 + i)[1:]] for i, question in enumerate(questions)]
    jobs = [{"prompt": tokens, "length": 300} for tokens in prompts]
    replies = server.generate_all(jobs)
    for job, question, reply in zip(jobs, questions, replies, strict=True):
        assert_equal(reply, reference_of("qwen3"), job, DEFAULT, late=1)
        numbers = reply["meta_info"]["dynts"]
        assert numbers["question_len"] == len(question)
        assert numbers["budget"] == sizes(len(question), DEFAULT)[1] < 110
        assert numbers["dropped_tokens"] > 300
    assert num_resumed(replies) >= 2


@RETRACTED
def test_openai_logprobs_change_no_length(server):
    body = {"model": "m", "prompt": prompt(20, 960), "max_tokens": 750, "temperature": 0}
    texts = []
    for asked in ({}, {"logprobs": 1}, {"logprobs": 1, "echo": True}):
        reply = server.request("/v1/completions", body | {"ignore_eos": True} | asked)
        assert reply["usage"]["completion_tokens"] == 750
        texts.append(reply["choices"][0]["text"])
    assert texts[0] == texts[1]
    assert texts[2].endswith(texts[0])


@served_by("retracting_no_radix_cache")
def test_embeddings_are_refused_beside_a_request_that_is_retracted(server, reference_of):
    (job,) = cases(970, 200, count=1)
    hidden = {"input_embeds": [[0.5] * 64] * 20, "sampling_params": {"max_new_tokens": 4}}
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(server.generate, **job)
        for custom in ({}, {"custom_params": {"dynts": {"enabled": False}}}):
            status, text = server.error("/generate", hidden | custom)
            assert (status, "which takes no input_embeds" in text) == (400, True)
    assert_equal(reply.result(), reference_of("qwen3"), job, DEFAULT, late=1)
