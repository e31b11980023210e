"""Hard use: the smallest pool there is, servers side by side, and processes that are killed.

The server that they share ends with them, so no file that comes later by name may be served by it.
"""

import http.client
import os
import signal
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest

from benchmark.harness.tiny_models import FIRST_WORD
from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.hf_reference import Windows
from tests.e2e.server import Server
from tests.e2e.servers import DYNTS, SERVERS, served_by

SMALLEST_POOL = 8
"""SGLang takes a question of at most this less 7 tokens, so one token less would serve nobody."""
TINY = {"budget": 6, "local_window": 2, "keep_ratio": 0.5}
TINY_WINDOWS = Windows(6, 2, 0.5)
WINDOWS = Windows(96, 16, 0.4)
SECONDS_TO_END = 300

PAIR = "tensor_parallel"

pytestmark = served_by(PAIR)


@pytest.fixture(scope="module")
def pair(server) -> Server:
    """A server of two ranks, beside the other one."""
    return server


@pytest.fixture(scope="module")
def small(pair, model_of, start) -> Server:
    return start(model_of("qwen3"), *DYNTS, "--max-total-tokens", str(SMALLEST_POOL))


def tiny_cases(count: int, length: int) -> list[dict]:
    return [{"prompt": [FIRST_WORD + 7 * i], "length": length, "dynts": TINY} for i in range(count)]


def test_the_smallest_pool_serves_outputs_of_many_pools(small, reference_of):
    jobs = tiny_cases(4, length=10 * SMALLEST_POOL)
    for job, reply in zip(jobs, small.generate_all(jobs), strict=True):
        assert_equal(reply, reference_of("qwen3"), job, TINY_WINDOWS, late=1)
        assert reply["meta_info"]["dynts"]["peak_window_len"] <= TINY["budget"]
    small.assert_nothing_leaked()


@pytest.mark.parametrize("options", [{}, {"enabled": False}], ids=["its_windows_do_not_fit", "off"])
def test_what_outgrows_the_smallest_pool_ends_by_its_length(small, options):
    reply = small.generate([FIRST_WORD], 5 * SMALLEST_POOL, options)
    assert reply["meta_info"]["finish_reason"]["type"] == "length"
    assert 0 < len(reply["output_ids"]) < SMALLEST_POOL
    small.assert_nothing_leaked()


def test_a_question_that_does_not_fit_the_smallest_pool_gets_http_400(small):
    body = {"input_ids": prompt(2, seed=1), "sampling_params": {"max_new_tokens": 1}}
    status, text = small.error("/generate", body)
    assert status == 400
    assert "maximum allowed length" in text
    small.assert_nothing_leaked()


def test_two_servers_on_one_machine_do_not_know_each_other(small, pair, reference_of):
    tiny = tiny_cases(3, length=60)
    usual = [{"prompt": prompt(10 + 3 * i, 1200 + i), "length": 150} for i in range(3)]
    with ThreadPoolExecutor(2) as pool:
        ours = pool.submit(small.generate_all, tiny)
        theirs = pool.submit(pair.generate_all, usual)
    for job, reply in zip(tiny, ours.result(), strict=True):
        assert_equal(reply, reference_of("qwen3"), job, TINY_WINDOWS, late=1)
    for job, reply in zip(usual, theirs.result(), strict=True):
        assert_equal(reply, reference_of(SERVERS[PAIR].model), job, WINDOWS)
    small.assert_nothing_leaked()
    pair.assert_nothing_leaked()


def test_a_killed_rank_ends_its_server_and_no_other(small, pair, reference_of):
    assert_ends(pair, victim="sglang::scheduler_TP1")
    (job,) = tiny_cases(1, length=40)
    assert_equal(small.generate(**job), reference_of("qwen3"), job, TINY_WINDOWS, late=1)
    small.assert_nothing_leaked()


def test_a_killed_scheduler_ends_its_server(small):
    assert_ends(small, victim="sglang::scheduler")


def assert_ends(server: Server, victim: str) -> None:
    """Whoever waits for an answer stops waiting, the server ends as failed, and nobody is left."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    (found,) = [one for one in family if one.cmdline()[:1] == [victim]]
    parts = server.stream([FIRST_WORD], 3000, TINY)
    next(parts)
    os.kill(found.pid, signal.SIGKILL)
    assert not is_whole(parts)
    assert server.process.wait(SECONDS_TO_END) != 0
    _, alive = psutil.wait_procs(family, timeout=SECONDS_TO_END)
    assert alive == []
    with pytest.raises(urllib.error.URLError):
        server.request("/health")


def is_whole(parts: Iterator[dict]) -> bool:
    """Read a stream to its end; whether that is the end of the reply."""
    finish = None
    with suppress(OSError, http.client.HTTPException):
        for part in parts:
            finish = part.get("meta_info", {}).get("finish_reason")
    return finish is not None and finish["type"] == "length"
