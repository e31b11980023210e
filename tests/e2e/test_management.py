"""SGLang's management endpoints: each answers or refuses, and the server lives on."""

import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgl_dynts import demo_model_path
from tests.e2e.conftest import prompt
from tests.e2e.server import Server
from tests.e2e.servers import served_by

pytestmark = served_by("demo")

CASE = {"prompt": prompt(20, 700), "length": 150}
JOIN_GROUP = "/init_weights_update_group"
OPEN_GROUP, SEND = "/init_weights_send_group_for_remote_instance", "/send_weights_to_remote_instance"
ADDRESS = {"master_address": "127.0.0.1"}
GUARDED = [
    *((f"/{verb}_expert_distribution_record", None) for verb in ("start", "stop", "dump")),
    ("/release_memory_occupation", {}),
    ("/resume_memory_occupation", {}),
    (OPEN_GROUP, ADDRESS | {"ports": "1,2", "group_rank": 0, "world_size": 1}),
    (SEND, ADDRESS | {"ports": "1"}),
    (JOIN_GROUP, ADDRESS | {"master_port": 1, "rank_offset": 0, "world_size": 1, "group_name": ""}),
    ("/update_weights_from_disk", {"model_path": "/none", "load_format": "none"}),
    ("/start_profile", {"activities": ["MEM"]}),
    ("/start_profile", {"activities": ["CUDA_PROFILER"]}),
    ("/start_profile", {"activities": ["RPD"]}),
    ("/start_profile", {"profile_by_stage": True}),
    ("/start_profile", {"output_dir": "/proc/none"}),
]
"""Each of these ends stock SGLang, the last two with its next forward or `/stop_profile`."""
MANAGEMENT: list[tuple[str, Any, int]] = [
    ("/flush_cache", None, 200),
    ("/freeze_gc", None, 200),
    ("/abort_request", {"rid": "none"}, 200),
    ("/configure_logging", {"log_level": "info"}, 200),
    ("/weights_checker", {"action": "checksum"}, 200),
    ("/begin_weight_update", {}, 200),
    ("/update_weights_from_tensor", {"serialized_named_tensors": []}, 400),
    ("/update_weights_from_tensor", {"serialized_named_tensors": ["anVuaw=="]}, 400),
    ("/update_weights_from_tensor", {"serialized_named_tensors": ["gARdlC4="], "load_format": "no"}, 400),
    ("/update_weights_from_distributed", {"names": ["a"], "dtypes": ["b"], "shapes": [[1]]}, 400),
    ("/end_weight_update", {}, 200),
    ("/update_weights_from_ipc", {"zmq_handles": {"none": "none"}}, 400),
    ("/get_weights_by_name", {"name": "none"}, 400),
    ("/update_weights_from_disk", {"model_path": "/none"}, 400),
    ("/update_weights_from_disk", {"model_path": str(demo_model_path())}, 200),
    ("/update_weight_version", {"new_version": "default"}, 200),
    ("/set_internal_state", {"server_args": {"none": 1}}, 200),
    ("/slow_down", {"forward_sleep_time": 0.001}, 200),
    ("/slow_down", {"forward_sleep_time": None}, 200),
    ("/open_session", {"capacity_of_str_len": 9, "session_id": "one"}, 200),
    ("/close_session", {"session_id": "one"}, 200),
    ("/pause_generation", {"mode": "retract"}, 200),
    ("/continue_generation", {}, 200),
    ("/load_lora_adapter", {"lora_name": "one", "lora_path": "/none"}, 400),
    ("/hicache/storage-backend/clear", {}, 400),
    ("/destroy_weights_update_group", {"group_name": "none"}, 400),
    ("/pd_role_switch", {"new_role": "decode"}, 400),
]


def answer(server: Server, path: str, body: Any) -> tuple[int, str]:
    """HTTP status and text of whatever a path answers; no body is a GET."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(server.url(path), data, headers), timeout=60
        ) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def tokens(server) -> list[int]:
    """What the server says before anybody manages it."""
    return server.generate(**CASE)["output_ids"]


@pytest.mark.parametrize(("path", "body"), GUARDED)
def test_a_request_that_ends_stock_sglang_is_refused(server, tokens, path, body):
    status, text = answer(server, path, body)
    assert (status, f"{path} is refused: " in text) == (400, True)
    assert server.generate(CASE["prompt"], 4)["output_ids"] == tokens[:4]


def test_management_endpoints_leave_a_server_that_serves_the_same_tokens(server, tokens):
    found = [(path, body, answer(server, path, body)[0]) for path, body, _status in MANAGEMENT]
    assert found == MANAGEMENT
    assert server.generate(**CASE)["output_ids"] == tokens
    assert server.request("/dynts/health")["healthy"]


def test_a_profile_is_taken(server, tokens, tmp_path: Path):
    asked = {"activities": ["CPU"], "output_dir": str(tmp_path / "profile")}
    assert answer(server, "/start_profile", asked)[0] == 200
    assert server.generate(CASE["prompt"], 4)["output_ids"] == tokens[:4]
    assert answer(server, "/stop_profile", None)[0] == 200
    assert list((tmp_path / "profile").glob("*.trace.json.gz"))


def test_weights_that_do_not_fit_are_rolled_back(server, tokens, tmp_path: Path):
    path = shutil.copytree(demo_model_path(), tmp_path / "model", ignore=shutil.ignore_patterns("dynts"))
    weights = load_file(path / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.0.input_layernorm.weight"))
    save_file(weights | {name: torch.zeros(7)}, path / "model.safetensors")
    status, text = answer(server, "/update_weights_from_disk", {"model_path": str(path)})
    assert (status, "Rolling back to original weights" in text) == (400, True)
    assert server.generate(**CASE)["output_ids"] == tokens
    health = server.request("/dynts/health")
    assert health["weights"]["path"] == str(demo_model_path())
    assert health["predictor_kept"] is None
