"""Options in the body of any endpoint: taken from its top, refused with the right spelling elsewhere."""

import json
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from sglang.srt.sampling.sampling_params import SamplingParams
from starlette.middleware import Middleware

from sglang_dynts.entry.carriers import OptionsCarrier

ASKED = {"dynts": {"enabled": False}}


async def verified(custom: Any = None) -> dict[str, Any] | None:
    """What an endpoint that passes on ``custom`` ends up with."""
    params = SamplingParams(custom_params=custom)
    params.verify(256)
    return params.custom_params


@pytest.fixture
def client(serve) -> TestClient:
    serve("--attention-backend", "dynts")
    app = FastAPI(middleware=[Middleware(OptionsCarrier)])

    @app.post("/forgets")
    async def forgets(_request: Request) -> Any:
        return await verified()

    @app.post("/passes_on")
    async def passes_on(request: Request) -> Any:
        return await verified((await request.json()).get("custom_params"))

    @app.post("/adds_its_own")
    async def adds_its_own(_request: Request) -> Any:
        return await verified({"thinking_budget": 5})

    @app.post("/streams")
    async def streams(_request: Request) -> StreamingResponse:
        async def parts():
            yield json.dumps(await verified())

        return StreamingResponse(parts())

    @app.post("/echoes")
    async def echoes(request: Request) -> str:
        return (await request.body()).decode()

    return TestClient(app)


@pytest.mark.parametrize("path", ["/forgets", "/passes_on", "/streams"])
def test_options_at_the_top_reach_the_request_whatever_the_endpoint_does_with_them(client, path):
    assert client.post(path, json={"input": "x", "custom_params": ASKED}).json() == ASKED
    assert client.post(path, json={"input": "dynts"}).json() is None
    assert client.post(path, json={"input": "x", "custom_params": {"other": 1}}).json() in (
        None,
        {"other": 1},
    )
    assert client.post(path, json={"input": "x", "custom_params": None}).json() is None


def test_options_join_what_an_endpoint_puts_there_itself(client):
    reply = client.post("/adds_its_own", json={"custom_params": ASKED})
    assert reply.json() == {"thinking_budget": 5} | ASKED


def test_one_request_s_options_are_not_another_s(client):
    client.post("/forgets", json={"custom_params": ASKED})
    assert client.post("/forgets", json={"input": "x"}).json() is None


BAD = [
    ({"custom_params": {"dynts": {"bugdet": 1}}}, "custom_params.dynts.bugdet is not known"),
    ({"custom_params": []}, "custom_params=[] must be an object, such as"),
    ({"custom_params": "dynts"}, "custom_params='dynts' must be an object, such as"),
    ({"custom_params": 0}, "custom_params=0 must be an object, such as"),
    ({"custom_params": False}, "custom_params=False must be an object, such as"),
    ({"dynts": {}}, "dynts stands where nobody reads it"),
    ({"extra_body": {"custom_params": ASKED}}, "extra_body.custom_params stands where nobody reads it"),
    ({"extra_body": ASKED}, "extra_body.dynts stands where nobody reads it"),
    ({"options": ASKED}, "options.dynts stands where nobody reads it"),
    ({"options": {"custom_params": ASKED}}, "options.custom_params stands where nobody reads it"),
    ({"sampling_params": ASKED}, "sampling_params.dynts stands where nobody reads it"),
]


@pytest.mark.parametrize(("body", "message"), BAD)
def test_what_nobody_would_read_is_refused_with_the_right_spelling(client, body, message):
    reply = client.post("/forgets", json={"text": "x", **body})
    assert reply.status_code == 400
    assert reply.json()["message"].startswith(message)
    assert reply.json()["error"]["message"] == reply.json()["message"]
    if "nobody reads" in message:
        assert '"custom_params": {"dynts": {...}}' in reply.json()["message"]


def test_a_refusal_of_two_megabytes_is_short(client):
    digits = {"dynts": {"budget": "9" * 2_000_000}}
    for custom in ("x" * 2_000_000, digits):
        reply = client.post("/forgets", json={"custom_params": custom})
        assert reply.status_code == 400
        assert len(reply.content) < 1500


NO_OBJECTS = [b"", b'{"dynts', b"[" * 100_000 + b"dynts", b'["dynts"]', b"\xff dynts"]


@pytest.mark.parametrize("body", NO_OBJECTS, ids=range(len(NO_OBJECTS)))
def test_what_is_no_object_is_left_to_sglang(client, body):
    assert client.post("/forgets", content=body).status_code == 200


def test_a_body_reaches_its_endpoint_as_it_came_in_any_number_of_parts(client):
    text = json.dumps({"custom_params": {}, "input": "é" * 10_000})
    sent = text.encode()
    parts = (sent[start : start + 777] for start in range(0, len(sent), 777))
    assert client.post("/echoes", content=parts).json() == text


@pytest.mark.parametrize("custom", [[], "dynts", 3, True])
def test_custom_params_that_are_no_object_are_refused_where_an_endpoint_passes_them_on(serve, custom):
    serve("--attention-backend", "dynts")
    with pytest.raises(ValueError, match=r"custom_params=.* must be an object, such as"):
        SamplingParams(custom_params=custom).verify(256)
