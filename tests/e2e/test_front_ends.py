"""Every way into SGLang serves DynTS by installation alone, here with the demo model."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from sgl_dynts import demo_model_path
from sgl_dynts.checkpoint import find_predictor
from sgl_dynts.config import DynTSConfig
from sgl_dynts.demo import ledger
from sgl_dynts.harness.client import Client
from sgl_dynts.harness.server import end, free_port
from sgl_dynts.training.trace_file import read_traces
from tests.e2e.server import STRICT, Server
from tests.e2e.servers import TWO_CORES, served_by

BY_DEMO = served_by("demo")
EXAMPLES = Path(__file__).parents[2] / "python" / "examples"


def run_example(name: str, *arguments: str, **environment: str) -> str:
    """What an example of ours prints, run as its document says."""
    return run_python(str(EXAMPLES / name), *arguments, **environment)


def run_python(*words: str, **environment: str) -> str:
    """What a program of ours prints."""
    done = subprocess.run(
        [sys.executable, *words],
        env=os.environ | STRICT | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def run_warm(warm, tmp_path) -> Callable[..., str]:
    """Give what a program prints, as :func:`run_python`, from a process that has imported SGLang."""

    def run(*words: str, **environment: str) -> str:
        log = tmp_path / "printed.log"
        process = warm.start(words, log, environment)
        assert process.wait(600) == 0, log.read_text()[-3000:]
        return log.read_text()

    return run


def test_the_offline_engine_of_two_data_parallel_ranks(run_warm):
    assert_engine_compacts(run_warm(str(EXAMPLES / "offline_engine.py"), "--dp-size", "2", **TWO_CORES))


@pytest.mark.parametrize("ranks", [[], ["--tp-size", "2"]], ids=" ".join)
def test_the_offline_engine(run_warm, ranks):
    environment = TWO_CORES if ranks else {}
    assert_engine_compacts(run_warm(str(EXAMPLES / "offline_engine.py"), *ranks, **environment))


def assert_engine_compacts(printed: str) -> None:
    lines = [line for line in printed.splitlines() if "compactions" in line]
    assert len(lines) == 3
    for line in lines:
        assert line.startswith("budget 200: held ")
        assert int(line.split("compactions ")[1]) >= 2


def test_what_a_front_end_did_not_check_ends_alone_in_the_scheduler(run_warm):
    printed = run_warm("-m", "tests.e2e.unverified", str(demo_model_path()))
    replies = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert [reply.get("budget") for reply in replies] == [None, 300, None, None, None, 308]
    refused = [reply["refused"] for reply in replies if "refused" in reply]
    for message, part in zip(
        refused, ("bugdet is not", "budget=300.5", "dynts=7", "policy='h2o'"), strict=True
    ):
        assert part in message


@pytest.fixture(scope="module")
def problem():
    return ledger.make_problem(seed=20_001)


@BY_DEMO
def test_the_openai_client_with_separated_reasoning(server, problem):
    client = openai.OpenAI(base_url=server.url("/v1"), api_key="none")
    completion = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": problem.question}],
        temperature=0,
        max_tokens=2000,
        extra_body={"return_meta_info": True},
    )
    reply: Any = completion.to_dict()
    message, numbers = reply["choices"][0]["message"], reply["choices"][0]["meta_info"]["dynts"]
    assert numbers["compactions"] >= 3
    assert ledger.is_correct(problem, f"{message['reasoning_content']} </think> {message['content']}")


@BY_DEMO
def test_held_out_problems_are_answered_right_within_half_of_the_cache(server):
    problems = [ledger.make_problem(seed) for seed in ledger.TEST_SEEDS[:20]]
    vocabulary = ledger.Vocabulary()
    jobs = [
        {
            "prompt": vocabulary.encode(problem.prompt),
            "length": 1000,
            "sampling_params": {"ignore_eos": False},
        }
        for problem in problems
    ]
    replies = server.generate_all(jobs, at_once=8)  # their windows fit the pool
    right = [ledger.is_correct(*pair) for pair in zip(problems, texts(replies), strict=True)]
    assert sum(right) >= 18
    for reply in replies:
        numbers = reply["meta_info"]["dynts"]
        assert numbers["compactions"] >= 3
        held, seen = numbers["peak_window_len"], numbers["window_len"] + numbers["dropped_tokens"]
        assert held <= 0.5 * seen


def texts(replies: list[dict]) -> list[str]:
    return [reply["text"] for reply in replies]


@BY_DEMO
def test_openai_streaming_with_the_request_s_own_budget(server, problem):
    client = openai.OpenAI(base_url=server.url("/v1"), api_key="none")
    chunks = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": problem.question}],
        temperature=0,
        max_tokens=300,
        stream=True,
        extra_body={"custom_params": {"dynts": {"budget": 200}}},
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert sum(len(getattr(delta, "reasoning_content", None) or "") for delta in deltas) > 100


@BY_DEMO
def test_from_problems_to_a_predictor_that_the_server_s_loader_takes(server, run_warm, tmp_path):
    model, problems, traces = demo_model_path(), tmp_path / "problems.jsonl", tmp_path / "traces.jsonl"
    problems.write_text(
        run_python("-m", "sgl_dynts.tasks", "ledger", "--size", "10", "--num-problems", "8")
    )
    asked = ("--url", server.url(""), "--model", str(model), "--problems", str(problems))
    run_warm("-m", "sgl_dynts.training.traces", *asked, "--out", str(traces), "--temperature", "0")
    kept = list(read_traces(traces))
    assert len(kept) >= 6  # the model solves 95 of 100
    assert all(trace.correct and trace.critical for trace in kept)

    fitted = tmp_path / "predictor.safetensors"
    windows = ("--budget", "300", "--local-window", "90", "--keep-ratio", "0.9")
    recipe = ("--target", "future", "--held-out", "0.2", "--epochs", "2", "--batch-size", "4")
    run_warm(
        "-m", "sgl_dynts.training.fit_predictor", str(model), str(traces), str(fitted), *windows, *recipe
    )
    header = find_predictor(model, fitted).header
    assert header is not None
    assert header.windows == DynTSConfig(300, 90, 0.9)


ENDPOINTS: dict[str, dict[str, Any]] = {
    "/generate": {"text": "w=1 q=7 ? q", "sampling_params": {"max_new_tokens": 4}},
    "/v1/completions": {"model": "m", "prompt": "w=1 q=7 ? q", "max_tokens": 4},
    "/v1/chat/completions": {"model": "m", "max_tokens": 4},
    "/invocations": {"model": "m", "max_tokens": 4},
    "/v1/messages": {"model": "m", "max_tokens": 4},
    "/v1/responses": {"input": "w=1 q=7 ? q", "max_output_tokens": 4},
    "/api/chat": {"model": "m", "stream": False, "options": {"num_predict": 4}},
    "/api/generate": {
        "model": "m",
        "prompt": "w=1 q=7 ? q",
        "stream": False,
        "options": {"num_predict": 4},
    },
    "/vertex_generate": {
        "instances": [{"text": "w=1 q=7 ? q"}],
        "parameters": {"sampling_params": {"max_new_tokens": 4}},
    },
}
MESSAGES = {"messages": [{"role": "user", "content": "w=1 q=7 ? q"}]}


def body_for(path: str, server: Server) -> dict[str, Any]:
    chats = "chat" in path or path in ("/invocations", "/v1/messages")
    named = {"model": server.request("/v1/models")["data"][0]["id"]} if path == "/v1/responses" else {}
    return ENDPOINTS[path] | named | (MESSAGES if chats else {})


def opted_out(server: Server) -> int:
    return server.request("/dynts/health")["num_opted_out"]


@BY_DEMO
@pytest.mark.parametrize("path", ENDPOINTS)
def test_options_at_the_top_of_a_body_reach_the_request_at_every_endpoint(server, path):
    before = opted_out(server)
    server.request(path, body_for(path, server) | {"custom_params": {"dynts": {"enabled": False}}})
    assert opted_out(server) == before + 1
    server.request(path, body_for(path, server))
    assert opted_out(server) == before + 1


OFF = {"enabled": False}
PLACES: list[dict[str, Any]] = [
    {"chat_template_kwargs": {"dynts": OFF}},
    {"session_params": {"dynts": OFF}},
    {"metadata": {"dynts": OFF}},
    {"metadata": {"dynts": json.dumps(OFF)}},
]
WITH_NUMBERS = {"/generate", "/vertex_generate", "/v1/chat/completions", "/invocations"}


@BY_DEMO
@pytest.mark.parametrize("path", ENDPOINTS)
def test_options_in_other_places_reach_the_request_at_every_endpoint(server, path):
    before, body = opted_out(server), body_for(path, server)
    for place in PLACES:
        server.request(path, body | place)
    (model,) = {one["id"] for one in server.request("/v1/models")["data"]}
    server.request(path, body | {"model": f"{model}@full"})
    Client(server.url(""), {"X-DynTS": json.dumps(OFF)}).call(path, body)
    assert opted_out(server) == before + len(PLACES) + 2


@BY_DEMO
@pytest.mark.parametrize("path", ENDPOINTS)
def test_numbers_come_back_where_the_document_says(server, path):
    reply = server.request(path, body_for(path, server) | {"return_meta_info": True})
    assert ('"peak_window_len"' in json.dumps(reply)) is (path in WITH_NUMBERS)


@BY_DEMO
@pytest.mark.parametrize("path", ENDPOINTS)
def test_what_would_go_nowhere_gets_http_400_at_every_endpoint(server, path):
    wrong = [
        ({"custom_params": {"dynts": {"bugdet": 1}}}, "bugdet is not known"),
        ({"custom_params": ["dynts"]}, "must be an object"),
        ({"custom_params": "x" * 2_000_000}, "must be an object"),
        ({"custom_params": {"dynts": {"budget": "9" * 2_000_000}}}, "must be an integer"),
        ({"dynts": {"enabled": False}}, "stands where nobody reads it"),
        ({"extra_body": {"custom_params": {}}}, "stands where nobody reads it"),
    ]
    for fields, message in wrong:
        status, text = server.error(path, body_for(path, server) | fields)
        assert (status, message in text) == (400, True)
        assert len(text) < 1500


@BY_DEMO
def test_a_misspelt_field_inside_sampling_params_gets_a_short_http_400(server):
    for custom, message in (
        ([], "must be an object"),
        ("x" * 2_000_000, "must be an object"),
        ({"dynts": {"b" * 2_000_000: 1}}, "is not known"),
    ):
        params = {"max_new_tokens": 4, "custom_params": custom}
        status, text = server.error("/generate", {"text": "w=1", "sampling_params": params})
        assert (status, message in text) == (400, True)
        assert len(text) < 1500


@BY_DEMO
def test_a_bad_field_in_a_chat_gets_http_400(server):
    client = openai.OpenAI(base_url=server.url("/v1"), api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="keep_ratio=7 must lie"):
        client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "m=2"}],
            extra_body={"custom_params": {"dynts": {"keep_ratio": 7}}},
        )


@pytest.fixture
def page_url(server) -> Iterator[str]:
    """The address of ``python -m sgl_dynts.page`` before the server."""
    port = free_port()
    words = [sys.executable, "-m", "sgl_dynts.page", "--url", server.url(""), "--port", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    yield process.stdout.readline().split()[-1]
    end(process)


@BY_DEMO
def test_the_page_streams_scores_and_dropped_positions_of_a_real_trace(page_url, problem):
    with httpx.Client(base_url=page_url, timeout=300, trust_env=False) as browser:
        wait_until_it_listens(browser)
        assert browser.get("/server").json()["windows"]["budget"] == 308
        with browser.stream("POST", "/ask", json={"question": problem.question}) as reply:
            parts = [json.loads(line) for line in reply.iter_lines()]
    *growing, last = parts
    assert last["finish"]["type"] == "stop"
    assert all(part["finish"] is None for part in growing)
    assert ledger.is_correct(problem, "".join(part["text"] for part in parts))
    whole = last["tokens"]
    assert whole["first"] == 0
    assert len(whole["scores"]) >= last["end"] - 1
    streamed: dict[int, float | None] = {}
    for part in growing:
        streamed |= enumerate(part["tokens"]["scores"], start=part["tokens"]["first"])
    assert len(streamed) >= 300
    assert streamed == {position: whole["scores"][position] for position in streamed}
    fallen = dropped_positions([last])
    assert last["end"] - last["held"] - len(fallen) in (0, 1)  # the newest may never have been computed
    assert last["compactions"] == len(whole["dropped"]) >= 3
    shown = dropped_positions(growing)
    assert shown <= fallen
    assert len(shown) >= 100


def wait_until_it_listens(browser: httpx.Client) -> None:
    """The page says its address before it listens there."""
    deadline = time.monotonic() + 300
    while True:
        try:
            browser.get("/")
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the page does not answer"
            time.sleep(0.2)
        else:
            return


def dropped_positions(parts: list[dict]) -> set[int]:
    drops = [drop for part in parts for drop in part["tokens"]["dropped"]]
    return {position for drop in drops for position in drop["positions"]}


@BY_DEMO
def test_a_frontend_program_with_two_generations_and_a_fork(server, run_warm, problem):
    program = str(EXAMPLES / "frontend_program.py")
    printed = run_warm(program, "--url", server.url(""), "--question", problem.question)
    assert int(printed.split("compactions:")[1].split()[0]) >= 3
    answers = [line.removeprefix("answer:") for line in printed.splitlines() if "answer:" in line]
    # The fork's prompt carries the trace, so each answer reads the whole of it.
    assert [ledger.is_correct(problem, f"</think> {answer}") for answer in answers] == [True, True]


@BY_DEMO
def test_the_openai_example_streams_and_reports(server, problem):
    printed = run_example("openai_client.py", "--url", server.url(""), "--question", problem.question)
    answer, reported = printed.split("\nreported:")
    assert ledger.is_correct(problem, f"</think> {answer}")
    assert "'budget': 308" in reported
