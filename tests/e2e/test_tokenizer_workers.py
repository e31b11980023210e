"""Several processes take requests: whichever answers, a request is checked, served and reported."""

import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from sglang_dynts.telling.metrics import METRICS
from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.hf_reference import Windows
from tests.e2e.server import Server
from tests.e2e.servers import served_by
from tests.e2e.test_operating import samples_of, total

pytestmark = served_by("tokenizer_workers")
DEFAULT = Windows(96, 16, 0.4)
NUM_WORKERS = 2
WORKER = "sglang::tokenizer_worker"


@pytest.fixture(scope="module")
def workers(server) -> list[psutil.Process]:
    """All of them, once the last one answers too: a server is up with its first."""
    deadline = time.monotonic() + 300
    while server.log.read_text().count("Application startup complete") < NUM_WORKERS:
        assert time.monotonic() < deadline, server.log.read_text()[-3000:]
        time.sleep(0.5)
    children = psutil.Process(server.process.pid).children(recursive=True)
    found = [child for child in children if WORKER in " ".join(child.cmdline())]
    assert len(found) == NUM_WORKERS
    return found


@pytest.fixture(params=range(NUM_WORKERS))
def one(request, server, workers) -> Iterator[Server]:
    """The server while one of its workers answers alone."""
    for index, worker in enumerate(workers):
        if index != request.param:
            worker.send_signal(signal.SIGSTOP)
    yield server
    for worker in workers:
        worker.send_signal(signal.SIGCONT)


def test_a_request_is_compacted_and_reports(one, reference_of):
    job = {"prompt": prompt(30, 41), "length": 200}
    reply = one.generate(**job)
    expected = assert_equal(reply, reference_of("qwen3"), job, DEFAULT)
    assert reply["meta_info"]["dynts"]["compactions"] == expected.num_compactions >= 2
    assert reply["meta_info"]["dynts"]["dropped_tokens"] == expected.num_dropped


def test_a_streamed_request_reports_too(one):
    *_, last = one.stream(prompt(30, 42), 150)
    assert last["meta_info"]["dynts"]["compactions"] >= 1


def test_a_bad_request_gets_http_400_alone(one):
    params = {"max_new_tokens": 4, "custom_params": {"dynts": {"bugdet": 1}}}
    status, text = one.error("/generate", {"input_ids": [1, 20, 21], "sampling_params": params})
    assert (status, "bugdet is not known" in text) == (400, True)
    status, text = one.error("/v1/completions", {"prompt": "w20", "dynts": {"enabled": False}})
    assert (status, "stands where nobody reads it" in text) == (400, True)
    assert len(one.generate(prompt(20, 43), 8)["output_ids"]) == 8


def test_options_at_the_top_of_a_body_reach_the_request(one):
    def opted_out() -> int:
        return one.request("/dynts/health")["num_opted_out"]

    before = opted_out()
    body = {"input_ids": prompt(20, 44), "sampling_params": {"max_new_tokens": 4}}
    one.request("/generate", body | {"custom_params": {"dynts": {"enabled": False}}})
    assert opted_out() == before + 1


def test_health_and_metrics_tell_of_the_whole_server(one):
    health = one.request("/dynts/health")
    assert (health["healthy"], health["missing"]) == (True, [])
    samples = samples_of(one)
    for metric in METRICS:
        name = metric.name if metric.buckets == () else f"{metric.name}_count"
        assert total(samples, name, {}) is not None, name
    assert total(samples, "sglang:dynts_compactions_total", {}) == health["num_compactions"]


def test_what_no_worker_can_know_alone_is_refused(one):
    status, text = one.error("/release_memory_occupation", {})
    assert (status, "--tokenizer-worker-num 1" in text) == (400, True)


def test_many_requests_at_once_each_get_their_own_reply(server, reference_of):
    jobs = [{"prompt": prompt(10 + n, seed=n), "length": 60 + n} for n in range(24)]
    for job, reply in zip(jobs, server.generate_all(jobs), strict=True):
        assert_equal(reply, reference_of("qwen3"), job, DEFAULT)
