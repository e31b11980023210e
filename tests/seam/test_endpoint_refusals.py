"""Management endpoints: what would raise in the scheduler is refused by path, all else reaches SGLang."""

from argparse import Namespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from sglang.srt.entrypoints import http_server
from starlette.middleware import Middleware

from sglang_dynts.entry import endpoint_refusals
from sglang_dynts.entry.endpoint_refusals import ENDPOINT_REFUSALS, EndpointGuard, Past

RELEASE, RESUME = "/release_memory_occupation", "/resume_memory_occupation"
OPEN_GROUP, SEND = "/init_weights_send_group_for_remote_instance", "/send_weights_to_remote_instance"
BY_STAGE = {"profile_by_stage": True}
REFUSED = [
    ("/start_expert_distribution_record", {}, "--expert-distribution-recorder-mode stat"),
    ("/stop_expert_distribution_record", {}, "--expert-distribution-recorder-mode stat"),
    ("/dump_expert_distribution_record", {}, "--expert-distribution-recorder-mode stat"),
    (RELEASE, {}, "on this machine"),
    (RESUME, {"tags": ["weights"]}, "on this machine"),
    (OPEN_GROUP, {"ports": "1,2"}, "--tp-size"),
    (OPEN_GROUP, {"ports": "1", "group_name": ""}, "group_name is empty"),
    (SEND, {"ports": "1"}, OPEN_GROUP),
    ("/init_weights_update_group", {"group_name": ""}, "group_name is empty"),
    ("/update_weights_from_disk", {"load_format": "none"}, "auto, pt, safetensors"),
    ("/update_weights_from_disk", {"load_format": "private"}, "auto, pt, safetensors"),
    ("/hicache/storage-backend", {"hicache_storage_backend": "file"}, "--enable-hierarchical-cache"),
    ("/start_profile", {"activities": ["CPU", "MEM"]}, '"activities": ["CPU"]'),
    ("/start_profile", {"activities": ["CUDA_PROFILER"]}, '"activities": ["CPU"]'),
    ("/start_profile", {"activities": ["CPU", "RPD"]}, "rpdTracerControl"),
    ("/start_profile", {"activities": ["GPU"]}, "none of the activities is one of this machine"),
    ("/start_profile", {"activities": ["XPU"]}, "none of the activities is one of this machine"),
    ("/start_profile", {"activities": []}, "none of the activities is one of this machine"),
    ("/init_weights_update_group", {"master_address": "no.such.place.invalid"}, "master_address"),
    ("/start_profile", BY_STAGE, "num_steps"),
    ("/start_profile", {"output_dir": "/proc/none"}, "output_dir"),
    ("/start_profile", {"output_dir": "/dev/null/none"}, "output_dir"),
    ("/start_profile", {"output_dir": "~nobody_at_all/none"}, "output_dir"),
    ("/start_profile", {"output_dir": "/tmp\0"}, "output_dir"),
    ("/start_profile", {"profile_prefix": "none/none"}, "profile_prefix"),
    ("/start_profile", {"profile_id": "x" * 250}, "profile_id"),
]
SERVED = [
    (OPEN_GROUP, {"ports": "1"}),
    ("/init_weights_update_group", {}),
    ("/init_weights_update_group", {"master_address": "127.0.0.1"}),
    ("/init_weights_update_group", {"master_address": 7}),  # SGLang says no
    ("/update_weights_from_disk", {"load_format": None}),
    ("/update_weights_from_disk", {"load_format": "SafeTensors"}),
    ("/hicache/storage-backend", {}),
    ("/start_profile", {}),
    ("/start_profile", BY_STAGE | {"num_steps": 2, "activities": ["CPU", "GPU"]}),
    ("/start_profile", {"activities": 7, "profile_id": 7}),  # SGLang says no
    ("/generate", {"tags": ["weights"], "activities": ["RPD"]}),
]


@pytest.fixture
def past(serve) -> Past:
    serve("--attention-backend", "dynts")
    return Past()


@pytest.fixture
def gpu(monkeypatch) -> None:
    """Let the server believe that it has one."""
    monkeypatch.setattr(endpoint_refusals, "get_device", lambda: Namespace(device="cuda"))


@pytest.fixture
def client(past) -> TestClient:
    app = FastAPI(middleware=[Middleware(EndpointGuard, past=past)])

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def reached(request: Request) -> str:
        return (await request.body()).decode(errors="replace")

    return TestClient(app)


def ask(client: TestClient, path: str, body: Any, method: str = "POST") -> str | None:
    """The message of a refusal, None where the request reached its endpoint as it was sent."""
    request = client.build_request(method, path, json=body)
    reply = client.send(request)
    if reply.status_code == 400:
        return reply.json()["message"]
    assert (reply.status_code, reply.json()) == (200, request.content.decode())
    return None


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("path", "body", "words"), REFUSED)
def test_a_request_that_would_end_the_server_is_refused_by_path_and_remedy(
    client, path, body, words, method
):
    message = ask(client, path, body, method)
    assert message is not None
    assert message.startswith(f"{path} is refused: ")
    assert words in message


@pytest.mark.parametrize(("path", "body"), SERVED)
def test_another_request_reaches_its_endpoint(client, path, body):
    assert ask(client, path, body) is None


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\x80", b"[" * 100_000])
def test_a_body_that_is_no_object_is_left_to_sglang(client, content):
    assert client.post("/start_profile", content=content).status_code == 200
    assert client.post(RESUME, content=content).status_code == 400  # as without a body


def test_a_recorder_opens_its_endpoints(serve, client):
    serve("--attention-backend", "dynts", "--expert-distribution-recorder-mode", "stat")
    assert ask(client, "/dump_expert_distribution_record", {}) is None


@pytest.mark.usefixtures("gpu")
def test_memory_is_resumed_once_and_only_as_far_as_it_was_released(client):
    assert ask(client, RELEASE, {"tags": ["kv_cache"]}) is None
    assert ask(client, RESUME, {"tags": ["weights"]}) is not None
    assert ask(client, RESUME, {}) is not None
    assert ask(client, RESUME, {"tags": ["kv_cache"]}) is None
    assert ask(client, RESUME, {"tags": ["kv_cache"]}) is not None
    assert ask(client, RELEASE, {"tags": []}) is None
    assert ask(client, RESUME, {}) is None


@pytest.mark.usefixtures("gpu")
def test_memory_is_not_released_under_running_requests(client, past):
    past.requests = {"one": object()}
    assert "requests are running" in (ask(client, RELEASE, {}) or "")
    assert ask(client, "/pause_generation", {"mode": "in_place"}) is None
    assert ask(client, RELEASE, {}) is not None
    assert ask(client, "/pause_generation", {"mode": "retract"}) is None
    assert ask(client, RELEASE, {}) is None
    assert ask(client, "/continue_generation", {}) is None
    assert ask(client, RELEASE, {}) is not None


@pytest.mark.usefixtures("gpu")
def test_a_gpu_s_activities_may_be_profiled(client):
    assert ask(client, "/start_profile", {"activities": ["MEM", "CUDA_PROFILER"]}) is None


def test_weights_go_through_a_group_that_was_opened(client):
    assert ask(client, OPEN_GROUP, {"ports": "1"}) is None
    assert ask(client, SEND, {"ports": "2"}) is not None
    assert ask(client, SEND, {"ports": "1"}) is None
    assert ask(client, SEND, {"ports": "1"}) is not None  # sending closes it


def test_of_several_tokenizer_workers_none_knows_what_was_released(serve, client):
    serve("--attention-backend", "dynts", "--tokenizer-worker-num", "2")
    for path in (RELEASE, RESUME, OPEN_GROUP, SEND):
        message = ask(client, path, {"ports": "1"})
        assert message is not None
        assert message.endswith("start the server with --tokenizer-worker-num 1")


def test_every_path_of_the_table_is_one_of_sglang_s():
    theirs = {getattr(route, "path", None) for route in http_server.app.routes}
    assert {path for one in ENDPOINT_REFUSALS for path in one.paths} <= theirs
