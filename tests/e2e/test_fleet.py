"""Two servers behind SGLang's routers: what reaches them, what comes back, how they are watched."""

import json
import urllib.error
from collections.abc import Iterator
from typing import Any

import pytest

from sgl_dynts import demo_model_path
from sgl_dynts.demo import ledger
from sgl_dynts.harness.client import Client
from tests.e2e.routers import ROUTERS, needs_routers, router
from tests.e2e.server import Server
from tests.e2e.servers import DYNTS, SERVERS, served_by

pytestmark = [served_by("demo"), needs_routers]
OFF = {"enabled": False}
QUESTION = "w=1 q=7 ? q"
MESSAGES = [{"role": "user", "content": QUESTION}]
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"text": QUESTION, "sampling_params": {"max_new_tokens": 4}},
    "/v1/completions": {"prompt": QUESTION, "max_tokens": 4},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 4},
    "/v1/responses": {"input": QUESTION, "max_output_tokens": 4},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
}
CARRIERS = {
    "custom_params": {"custom_params": {"dynts": OFF}},
    "sampling_params": {"sampling_params": {"max_new_tokens": 4, "custom_params": {"dynts": OFF}}},
    "chat_template_kwargs": {"chat_template_kwargs": {"dynts": OFF}},
    "session_params": {"session_params": {"dynts": OFF}},
    "metadata": {"metadata": {"dynts": json.dumps(OFF)}},
}
ALL = {"custom_params", "chat_template_kwargs", "session_params", "metadata"}
REACHING: dict[str, dict[str, set[str]]] = {
    "sglang_router": {
        "/generate": {"session_params"},
        "/v1/completions": ALL,
        "/v1/chat/completions": {"chat_template_kwargs", "session_params", "metadata"},
    },
    "smg": {
        "/generate": {*ALL, "sampling_params"},
        "/v1/completions": ALL,
        "/v1/chat/completions": ALL,
        "/v1/responses": {"metadata"},
        "/v1/messages": ALL - {"metadata"},
    },
}
"""By router and endpoint: where options reach a worker. The table in `serve.md` says the same."""


class Fleet:
    """A router before two workers."""

    def __init__(self, name: str, client: Client, workers: list[Server]) -> None:
        self.name, self.client, self.workers = name, client, workers
        (model,) = {worker.request("/v1/models")["data"][0]["id"] for worker in workers}
        self.model = model

    def ask(self, path: str, **fields: Any) -> Any:
        named = {} if path == "/generate" else {"model": self.model}
        return self.client.call(path, {**BODIES[path], **named, **fields}, timeout=300)

    def error(self, path: str, **fields: Any) -> tuple[int, str]:
        try:
            reply = self.ask(path, **fields)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        raise AssertionError(f"accepted: {reply}")

    def totals(self, name: str) -> list[int]:
        """What each worker has counted."""
        return [worker.request("/dynts/health")[name] for worker in self.workers]

    def opts_out(self, path: str, **fields: Any) -> bool:
        """Whether a request that is sent so reaches a worker with DynTS off; none otherwise."""
        before = sum(self.totals("num_opted_out"))
        try:
            self.ask(path, **fields)
        except urllib.error.HTTPError as error:
            if error.code not in (400, 404):
                raise
        return sum(self.totals("num_opted_out")) > before


@pytest.fixture(scope="module")
def workers(server, start) -> Iterator[list[Server]]:
    """The demo's shared server and one more like it, with metrics."""
    other = start(demo_model_path(), *DYNTS, *SERVERS["demo"].flags, "--enable-metrics")
    yield [server, other]
    other.assert_nothing_leaked()


@pytest.fixture(scope="module", params=ROUTERS)
def fleet(request, workers, tmp_path_factory) -> Iterator[Fleet]:
    log = tmp_path_factory.mktemp("router") / "router.log"
    words = ["--policy", "round_robin", "--worker-urls", *(worker.url("") for worker in workers)]
    with router(request.param, words, len(workers), log) as client:
        yield Fleet(request.param, client, workers)


@pytest.mark.parametrize("path", BODIES)
def test_options_reach_a_worker_exactly_where_the_document_says(fleet, path):
    places = [place for place in CARRIERS if path == "/generate" or place != "sampling_params"]
    reaching = {place for place in places if fleet.opts_out(path, **CARRIERS[place])}
    assert reaching == REACHING[fleet.name].get(path, set())


def test_a_model_s_alias_reaches_a_worker_where_the_router_knows_one_model(fleet):
    reaches = fleet.name == "sglang_router"
    for path in ("/v1/chat/completions", "/v1/completions", "/generate"):
        assert fleet.opts_out(path, model=f"{fleet.model}@full") is reaches


@pytest.mark.parametrize(
    ("path", "place"), [("/generate", "session_params"), ("/v1/chat/completions", "chat_template_kwargs")]
)
def test_a_bad_option_gets_http_400_through_the_router(fleet, path, place):
    status, text = fleet.error(path, **{place: {"dynts": {"bugdet": 1}}})
    assert (status, "bugdet is not known" in text) == (400, True)


def test_a_chat_answers_as_it_does_without_a_router(fleet):
    greedy = {"temperature": 0, "max_tokens": 60}
    direct = fleet.workers[0].request(
        "/v1/chat/completions",
        {"model": fleet.model, "messages": MESSAGES, **greedy, "custom_params": {"dynts": OFF}},
    )
    routed = fleet.ask("/v1/chat/completions", **greedy, chat_template_kwargs={"dynts": OFF})
    assert routed["choices"][0]["message"] == direct["choices"][0]["message"]
    assert routed["usage"]["prompt_tokens"] == direct["usage"]["prompt_tokens"]


def test_numbers_of_generate_come_back_in_streams_too(fleet):
    asked = {"session_params": {"dynts": {"budget": 200, "return_compactions": True}}}
    job = {"sampling_params": {"max_new_tokens": 400, "temperature": 0, "ignore_eos": True}, **asked}
    numbers = fleet.ask("/generate", **job)["meta_info"]["dynts"]
    assert (numbers["budget"], numbers["compactions"]) == (200, len(numbers["compacted_at"]))
    assert numbers["compactions"] >= 2
    *_, last = fleet.client.stream("/generate", BODIES["/generate"] | job, timeout=300)
    assert last["meta_info"]["dynts"]["compactions"] >= 2


def test_numbers_of_a_chat_come_back_if_its_options_ask_for_them(fleet):
    options = {"return_meta_info": True, "budget": 222}
    reply = fleet.ask("/v1/chat/completions", chat_template_kwargs={"dynts": options})
    assert reply["choices"][0]["meta_info"]["dynts"]["budget"] == 222


def test_both_workers_answer_within_half_of_the_cache(fleet):
    before = fleet.totals("num_compactions")
    for seed in ledger.TEST_SEEDS[:4]:
        problem = ledger.make_problem(seed)
        params = {"temperature": 0, "max_new_tokens": 1000, "skip_special_tokens": False}
        reply = fleet.ask("/generate", text=problem.prompt, sampling_params=params)
        assert ledger.is_correct(problem, reply["text"])
    after = fleet.totals("num_compactions")
    assert all(now > then for now, then in zip(after, before, strict=True))


def test_each_worker_is_asked_for_its_health_at_the_address_that_the_router_names(fleet):
    with pytest.raises(urllib.error.HTTPError) as error:
        fleet.client.call("/dynts/health")
    assert error.value.code == 404
    listed = fleet.client.call("/workers")["workers"]
    assert {one["url"] for one in listed} == {worker.url("") for worker in fleet.workers}
    for one in listed:
        assert Client(one["url"]).call("/dynts/health")["healthy"]


def test_the_router_s_metrics_hold_those_of_its_workers(fleet):
    text = fleet.client.call("/engine_metrics").replace("sglang_dynts", "sglang:dynts")
    lines = [line for line in text.splitlines() if line.startswith("sglang:dynts_requests_total{")]
    with_metrics = fleet.workers[1].url("")
    assert {f'worker_addr="{with_metrics}"' in line for line in lines} == {True}
