"""The page's server: what it lets through to SGLang, and what of a reply it hands to a browser."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from sgl_dynts.harness.client import parse_event
from sgl_dynts.page.app import STATIC, create_app
from sgl_dynts.page.replies import Follower, ServerError

IDS = [1, 7, 9]
WINDOWS = {"budget": 96, "local_window": 16, "keep_ratio": 0.4}


def part(text: str, num_tokens: int, held: int, dropped: int = 0, finish: dict | None = None) -> dict:
    numbers = {
        "question_len": len(IDS),
        "window_len": held,
        "dropped_tokens": dropped,
        "compactions": int(dropped > 0),
        "budget": 96,
        "tokens": {"first": 0, "scores": [0.5], "dropped": []},
    }
    counts = {"prompt_tokens": len(IDS), "completion_tokens": num_tokens}
    meta = {**counts, "finish_reason": finish, "dynts": numbers}
    return {"text": text, "meta_info": meta}


PARTS = [part("a", 1, 3), part("ab c", 3, 5), part("ab cd", 4, 4, dropped=2, finish={"type": "stop"})]


class Sglang:
    """A server that notes what it was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict, str]] = []
        self.answers: dict[str, Callable[[], httpx.Response]] = {
            "/v1/tokenize": lambda: httpx.Response(200, json={"tokens": IDS}),
            "/generate": lambda: httpx.Response(200, text=event_stream(PARTS)),
            "/v1/models": lambda: httpx.Response(200, json={"data": [{"id": "a-model"}]}),
            "/dynts/health": lambda: httpx.Response(200, json={"windows": WINDOWS, "predictor": None}),
        }

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        self.sent.append((request.url.path, body, request.headers.get("authorization", "")))
        return self.answers[request.url.path]()


def event_stream(parts: list[dict]) -> str:
    return "".join(f"data: {json.dumps(one)}\n\n" for one in parts) + "data: [DONE]\n\n"


@pytest.fixture
def sglang() -> Sglang:
    return Sglang()


@pytest.fixture
def page(sglang) -> TestClient:
    server = httpx.AsyncClient(
        base_url="http://sglang:1",
        transport=httpx.MockTransport(sglang),
        headers={"Authorization": "Bearer secret"},
    )
    return TestClient(create_app(server, ["127.0.0.1"], "What?"), base_url="http://127.0.0.1:8080")


def lines(response: Any) -> list[dict]:
    return [json.loads(line) for line in response.text.splitlines()]


def test_a_question_goes_through_the_chat_template_and_asks_for_its_tokens(page, sglang):
    page.post("/ask", json={"question": "Why?", "budget": 50, "max_new_tokens": 9})
    (path, asked, _), (then, body, key) = sglang.sent
    assert (path, then, key) == ("/v1/tokenize", "/generate", "Bearer secret")
    assert asked["messages"] == [{"role": "user", "content": "Why?"}]
    assert body["input_ids"] == IDS
    assert body["stream"] is True
    assert body["sampling_params"]["max_new_tokens"] == 9
    dynts = body["sampling_params"]["custom_params"]["dynts"]
    assert dynts == {"enabled": True, "return_tokens": True, "budget": 50}


def test_parts_tell_what_is_new(page):
    parts = lines(page.post("/ask", json={"question": "Why?"}))
    assert [one["text"] for one in parts] == ["a", "b c", "d"]
    assert [(one["first"], one["end"]) for one in parts] == [(3, 4), (4, 6), (6, 7)]
    assert [(one["held"], one["seen"]) for one in parts] == [(3, 3), (5, 5), (4, 6)]
    assert [one["compactions"] for one in parts] == [0, 0, 1]
    assert parts[-1]["finish"] == {"type": "stop"}


def test_what_the_server_refuses_is_refused_with_its_words(page, sglang):
    said = {"error": {"message": "custom_params.dynts.budget=1 must be larger", "code": 400}}
    sglang.answers["/generate"] = lambda: httpx.Response(400, json=said)
    response = page.post("/ask", json={"question": "Why?", "budget": 1})
    assert response.status_code == 400
    assert response.json()["detail"] == "custom_params.dynts.budget=1 must be larger"


def test_an_error_in_the_middle_of_a_reply_is_told(page, sglang):
    broken = [PARTS[0], {"error": {"message": "out of memory"}}]
    sglang.answers["/generate"] = lambda: httpx.Response(200, text=event_stream(broken))
    *_, last = lines(page.post("/ask", json={"question": "Why?"}))
    assert last == {"error": "out of memory"}


def test_a_server_that_is_not_there_is_named(page, sglang):
    def refuse() -> httpx.Response:
        raise httpx.ConnectError("refused")

    sglang.answers["/v1/tokenize"] = refuse
    response = page.post("/ask", json={"question": "Why?"})
    assert response.status_code == 502
    assert "no SGLang server at http://sglang:1" in response.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"question": ""},
        {"question": "x" * 200_001},
        {"question": "x", "max_new_tokens": 0},
        {"question": "x", "budget": "100"},
        {"question": "x", "url": "http://elsewhere"},
    ],
    ids=lambda body: str(body)[:40],
)
def test_what_no_form_sends_never_reaches_the_server(page, sglang, body):
    assert page.post("/ask", json=body).status_code == 422
    assert sglang.sent == []


def test_a_foreign_host_name_is_refused(page, sglang):
    response = page.post("/ask", json={"question": "x"}, headers={"Host": "evil.example"})
    assert response.status_code == 400
    assert sglang.sent == []


def test_a_form_of_a_foreign_site_cannot_ask(page, sglang):
    body = json.dumps({"question": "x"})
    response = page.post("/ask", content=body, headers={"Content-Type": "text/plain"})
    assert response.status_code == 422
    assert sglang.sent == []


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/static/page.css"])
def test_files_are_served_and_nothing_foreign_may_be_loaded(page, path):
    response = page.get(path)
    assert response.status_code == 200
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "://" not in response.text


def test_no_markup_is_ever_made_from_text():
    script = (STATIC / "page.js").read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in script


def test_the_page_is_told_who_answers(page, sglang):
    told = page.get("/server").json()
    assert told == {"model": "a-model", "windows": WINDOWS, "predictor": None, "question": "What?"}
    assert "secret" not in json.dumps(told)


def test_a_follower_raises_what_a_part_says():
    with pytest.raises(ServerError, match="gone"):
        Follower().follow({"error": {"message": "gone"}})


@pytest.mark.parametrize("line", ["", ": ping", "data: [DONE]", "event: x"])
def test_lines_without_an_object_are_no_parts(line):
    assert parse_event(line) is None
