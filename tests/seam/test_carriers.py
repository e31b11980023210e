"""Options in the body of any endpoint: taken from its top, refused with the right spelling elsewhere."""

import json
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from sglang.srt.sampling.sampling_params import SamplingParams
from starlette.middleware import Middleware

from sglang_dynts.entry.carriers import OptionsCarrier, read_request
from sglang_dynts.entry.options import CARRIED

ASKED = {"dynts": {"enabled": False}}
MODEL = "org/model"


async def verified(custom: Any = None) -> dict[str, Any] | None:
    """What an endpoint that passes on ``custom`` ends up with."""
    params = SamplingParams(custom_params=custom)
    params.verify(256)
    return params.custom_params


@pytest.fixture
def client(serve) -> TestClient:
    serve("--attention-backend", "dynts")
    app = FastAPI(middleware=[Middleware(OptionsCarrier, served_name=MODEL)])

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


OFF, ON = {"enabled": False}, {"enabled": True}
CARRIERS = [
    {"chat_template_kwargs": {"dynts": OFF}},
    {"session_params": {"dynts": OFF}},
    {"metadata": {"dynts": OFF}},
    {"metadata": {"dynts": '{"enabled": false}'}},
    {"custom_params": {"dynts": OFF}, "chat_template_kwargs": {"dynts": OFF}},
    {"custom_params": {"dynts": {"budget": None}}, "session_params": {"dynts": OFF}},
    {"custom_params": {"dynts": None}, "metadata": {"dynts": OFF}},
]


@pytest.mark.parametrize("body", CARRIERS)
@pytest.mark.parametrize("path", ["/forgets", "/passes_on"])
def test_options_reach_the_request_in_whatever_a_router_passes_on(client, path, body):
    assert client.post(path, json={"text": "x", **body}).json() == ASKED


def test_options_in_two_places_are_put_together(client):
    body = {"custom_params": {"dynts": {"budget": 300.0}}, "metadata": {"dynts": {"budget": 300, **OFF}}}
    assert client.post("/forgets", json=body).json() == {"dynts": {"budget": 300, **OFF}}


def test_a_template_and_a_session_see_nothing_of_them_and_metadata_stay(client):
    kwargs = {"enable_thinking": False}
    body = {
        "chat_template_kwargs": {**kwargs, "dynts": OFF},
        "session_params": {"dynts": OFF},
        "metadata": {"user": "é", "dynts": OFF},
        "text": "x",
    }
    seen = json.loads(client.post("/echoes", json=body).json())
    assert seen == {**body, "chat_template_kwargs": kwargs, "session_params": None}


def test_a_body_whose_length_changes_arrives_whole(client):
    text = "é" * 10_000
    body = json.dumps({"text": text, "session_params": {"dynts": OFF}}).encode()
    parts = (body[start : start + 777] for start in range(0, len(body), 777))
    assert json.loads(client.post("/echoes", content=parts).json())["text"] == text


@pytest.mark.parametrize("field", ["chat_template_kwargs", "session_params", "custom_params"])
def test_numbers_of_a_chat_are_asked_for_where_a_router_drops_the_field(client, field):
    body = {"text": "x", field: {"dynts": {"return_meta_info": True}}}
    assert json.loads(client.post("/echoes", json=body).json())["return_meta_info"] is True
    body[field] = {"dynts": {"return_meta_info": False}}
    assert "return_meta_info" not in json.loads(client.post("/echoes", json={**body, "text": "y"}).json())


@pytest.mark.parametrize("name", ["top_logprobs_num", "logprob_start_len", "rid"])
def test_a_list_is_for_several_prompts(client, name):
    for one in ({"text": "x"}, {"input_ids": [1, 2]}, {}):
        reply = client.post("/forgets", json={**one, name: [1]})
        assert reply.status_code == 400
        assert f"{name}=[1] of one prompt must be one value, no list" in reply.json()["message"]
    for several in ({"text": ["x"]}, {"input_ids": [[1, 2]]}):
        assert client.post("/forgets", json={**several, name: [1]}).status_code == 200


def test_embeddings_by_position_cannot_be_sent(client):
    reply = client.post("/forgets", json={"positional_embed_overrides": [[1]]})
    assert (reply.status_code, "cannot be sent as JSON" in reply.json()["message"]) == (400, True)
    assert client.post("/forgets", json={"positional_embed_overrides": None}).status_code == 200


@pytest.mark.parametrize("embeddings", [[], [[0.5]], "x"])
def test_embeddings_are_refused_by_name(client, embeddings):
    reply = client.post("/forgets", json={"input_embeds": embeddings})
    assert (reply.status_code, "takes no input_embeds" in reply.json()["message"]) == (400, True)
    assert client.post("/forgets", json={"input_embeds": None}).status_code == 200


def test_embeddings_are_none_of_our_business_without_dynts(serve):
    serve("--attention-backend", "torch_native")
    assert read_request(b'{"input_embeds": [[0.5]]}', None, MODEL, "/generate").options is None


ESCAPED = [
    b'{"custom_param\\u0073": {"dynt\\u0073": {"enabled": false}}}',
    b'{"chat_template_kwargs": {"\\u0064ynts": {"enabled": false}}}',
]


@pytest.mark.parametrize("body", ESCAPED)
def test_names_with_letters_by_their_number_are_read(client, body):
    assert client.post("/forgets", content=body).json() == ASKED


NOWHERE = [
    ("/v1/chat/completions", {"sampling_params": {"custom_params": ASKED}}, "sampling_params.custom"),
    ("/vertex_generate", {"instances": [{"text": "x", "custom_params": ASKED}]}, "instances.custom"),
    ("/vertex_generate", {"instances": [{"text": "x"}], "parameters": ASKED}, "parameters.dynts"),
    ("/generate", {"session_params": [5, ASKED]}, "session_params[].dynts"),
]


@pytest.mark.parametrize(("path", "body", "place"), NOWHERE)
def test_what_an_endpoint_does_not_read_is_refused_there(client, path, body, place):
    reply = client.post(path, json=body)
    assert reply.status_code == 400
    assert f"{place}" in reply.json()["message"]
    assert "stands where nobody reads it" in reply.json()["message"]


@pytest.mark.parametrize("params", [{"custom_params": {"dynts": {"budget": 7.5}}}, None])
def test_sampling_params_are_checked_before_a_stream_begins(client, params):
    bad = {"custom_params": {"dynts": {"bugdet": 7}}}
    body = {"stream": True, "sampling_params": bad if params is None else [params]}
    assert client.post("/generate", json=body).status_code == 400


@pytest.mark.parametrize("name", ["\ud800", "\x1b[31m", "\n"])
def test_a_field_s_name_that_cannot_be_printed_is_written_out(client, name):
    options = {name: 1}
    replies = [
        client.post("/forgets", content=json.dumps({"custom_params": {"dynts": options}})),
        client.post("/forgets", headers={"X-DynTS": json.dumps(options)}),
    ]
    for reply in replies:
        assert reply.status_code == 400
        assert f"custom_params.dynts.{repr(name)[1:-1]} is not known" in reply.json()["message"]


def test_options_in_a_header(client):
    headers = {"X-DynTS": '{"enabled": false}'}
    assert client.post("/forgets", json={"text": "x"}, headers=headers).json() == ASKED
    assert client.post("/forgets", content=b"no JSON", headers=headers).json() == ASKED


@pytest.mark.parametrize(
    ("named", "options", "seen"),
    [
        (f"{MODEL}@full", {"policy": "full"}, MODEL),
        (f"{MODEL}@window", {"policy": "window"}, MODEL),
        ("default@full", {"policy": "full"}, "default"),
        (f"{MODEL}@full:adapter", {"policy": "full"}, f"{MODEL}:adapter"),
        (MODEL, None, MODEL),
        ("me@home", None, "me@home"),
        ("org/model@v2@full", {"policy": "full"}, "org/model@v2"),
    ],
)
def test_a_policy_behind_the_model_s_name(client, named, options, seen):
    said = client.post("/forgets", json={"model": named}).json()
    assert said == (options and {"dynts": options})
    assert json.loads(client.post("/echoes", json={"model": named}).json()) == {"model": seen}


def test_a_served_name_with_the_sign_in_it_is_the_model(serve):
    serve("--attention-backend", "dynts")
    said = read_request(b'{"model": "my@full"}', None, "my@full", "/generate")
    assert (said.options, said.body) == (None, None)


DISAGREEING = [
    ({"custom_params": ASKED, "metadata": {"dynts": ON}}, {}, "dynts.enabled is"),
    ({"chat_template_kwargs": {"dynts": ON}, "session_params": {"dynts": OFF}}, {}, "enabled is True in"),
    ({"custom_params": {"dynts": {"policy": "window"}}, "model": f"{MODEL}@full"}, {}, "is 'window' in"),
    ({"custom_params": ASKED}, {"X-DynTS": '{"enabled": true}'}, "is True in the header X-DynTS"),
    ({"custom_params": ASKED}, {"X-DynTS": '{"enabled": 0}'}, "is 0 in the header X-DynTS"),
]


@pytest.mark.parametrize(("body", "headers", "message"), DISAGREEING)
def test_two_places_that_disagree_are_refused(client, body, headers, message):
    reply = client.post("/forgets", json=body, headers=headers)
    assert reply.status_code == 400
    assert message in reply.json()["message"]


def test_sampling_params_that_disagree_with_the_rest_are_refused(serve):
    serve("--attention-backend", "dynts")
    token = CARRIED.set({"budget": 300})
    try:
        SamplingParams(custom_params={"dynts": {"budget": 300.0}}).verify(256)
        with pytest.raises(ValueError, match=r"dynts\.budget is 301 in sampling_params\.custom_params"):
            SamplingParams(custom_params={"dynts": {"budget": 301}}).verify(256)
    finally:
        CARRIED.reset(token)


BAD_ELSEWHERE = [
    ({"chat_template_kwargs": {"dynts": {"bugdet": 1}}}, {}, "bugdet is not known"),
    ({"session_params": {"dynts": 7}}, {}, "session_params.dynts=7 must be an object"),
    ({"metadata": {"dynts": "off"}}, {}, "metadata.dynts='off' must be JSON"),
    ({"metadata": {"dynts": "[" * 100_000}}, {}, "must be JSON"),
    ({"model": f"{MODEL}@ful"}, {}, "after @ stands one of"),
    ({"session_params": [{"dynts": OFF}]}, {}, "session_params[].dynts stands where nobody reads it"),
    ({}, {"X-DynTS": "off"}, "the header X-DynTS='off' must be JSON"),
    ({}, {"X-DynTS": '{"bugdet": 1}'}, "bugdet is not known"),
    ({}, {"X-DynTS": "9" * 5000}, "must be JSON"),
]


@pytest.mark.parametrize(("body", "headers", "message"), BAD_ELSEWHERE)
def test_bad_options_are_refused_wherever_they_stand(client, body, headers, message):
    reply = client.post("/forgets", json={"text": "x", **body}, headers=headers)
    assert reply.status_code == 400
    assert message in reply.json()["message"]
    assert len(reply.content) < 1500


BAD = [
    ({"custom_params": {"dynts": {"bugdet": 1}}}, "custom_params.dynts.bugdet is not known"),
    ({"custom_params": []}, "custom_params=[] must be an object, such as"),
    ({"custom_params": "dynts"}, "custom_params='dynts' must be an object, such as"),
    ({"custom_params": 0}, "custom_params=0 must be an object, such as"),
    ({"custom_params": False}, "custom_params=False must be an object, such as"),
    ({"dynts": {}}, "dynts stands where nobody reads it"),
    ({"custom_params": {"budget": 300}}, "custom_params.budget stands where nobody reads it"),
    ({"custom_params": {"DynTS": {"budget": 300}}}, "custom_params.DynTS stands where nobody reads it"),
    (
        {"sampling_params": {"custom_params": {"keep_ratio": 0.5}}},
        "sampling_params.custom_params stands where nobody reads it",
    ),
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


def test_parameters_of_a_processor_of_the_user_s_own_are_its_own(client):
    body = {"text": "x", "custom_params": {"budget": 300}, "custom_logit_processor": "mine"}
    assert client.post("/passes_on", json=body).json() == {"budget": 300}
