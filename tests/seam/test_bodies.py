"""Error replies are short whatever a client sent; all others come as they are."""

import json
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.middleware import Middleware

from sglang_dynts.entry.bodies import ErrorShortener

LONG = "x" * 3_000_000


class Asked(BaseModel):
    messages: list[int]


@pytest.fixture
def client() -> TestClient:
    app = FastAPI(middleware=[Middleware(ErrorShortener)])

    @app.post("/checks")
    async def checks(asked: Asked) -> int:
        return len(asked.messages)

    @app.get("/says/{status}/{kind}")
    async def says(status: int, kind: str) -> Any:
        if kind == "json":
            return JSONResponse({"error": {"message": f"no: {LONG}", "code": status}}, status)
        if kind == "stream":
            events = iter([f'data: {{"error": {{"message": "no: {LONG}"}}}}\n\n', "data: [DONE]\n\n"])
            return StreamingResponse(events, status, media_type="text/event-stream")
        if kind == "parts":
            parts = iter(['{"message": "no: ', LONG, '"}'])
            return StreamingResponse(parts, status, media_type="application/json")
        return PlainTextResponse(f"no: {LONG}", status)

    return TestClient(app)


@pytest.mark.parametrize("sent", [LONG, [LONG], {"a": LONG}, [1, *(["y"] * 100_000)]])
def test_a_validation_that_quotes_all_it_was_sent(client, sent):
    reply = client.post("/checks", json={"messages": sent})
    assert reply.status_code == 422
    assert len(reply.content) < 20_000
    assert "valid" in reply.json()["detail"][0]["msg"]


@pytest.mark.parametrize("kind", ["json", "parts", "text"])
def test_a_long_error_begins_as_it_did(client, kind):
    reply = client.get(f"/says/404/{kind}")
    assert reply.status_code == 404
    assert "no: xxx" in reply.text
    assert len(reply.content) == int(reply.headers["content-length"]) < 2000
    if kind == "json":
        assert reply.json()["error"]["code"] == 404


@pytest.mark.parametrize("kind", ["json", "parts", "text"])
def test_what_is_no_error_is_sent_whole(client, kind):
    assert LONG in client.get(f"/says/200/{kind}").text


def test_a_short_error_stays_as_it_is(client):
    reply = client.post("/checks", json={})
    assert json.loads(reply.text)["detail"][0]["type"] == "missing"


def test_a_long_error_in_a_stream_is_cut_and_the_stream_goes_on(client):
    first, second = client.get("/says/200/stream").text.split("\n\n", 1)
    assert json.loads(first.removeprefix("data: "))["error"]["message"].startswith("no: xxx")
    assert len(first) < 2000
    assert second == "data: [DONE]\n\n"
