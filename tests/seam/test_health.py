"""What a running server proves about itself."""

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sglang.srt.managers.io_struct import GetInternalStateReqOutput

from sgl_dynts.checkpoint import PREDICTOR_FILE, digest, find_predictor, load_predictor
from sgl_dynts.config import DynTSConfig
from sgl_dynts.thinking import ThinkMarkers
from sglang_dynts import seams
from sglang_dynts.forward.device_state import loaded_from, on_runner
from sglang_dynts.names import HTTP_SERVER
from sglang_dynts.seams import Process
from sglang_dynts.telling.health import (
    HEALTH_PATH,
    add_facts,
    judge,
    offer_health,
)
from tests.seam.engine import PROMPT, Engine, thoughts


@pytest.fixture
def engine(serve) -> Engine:
    serve("--attention-backend", "dynts")
    return Engine()


@pytest.fixture
def resolved(engine, model) -> Engine:
    """A scheduler as the tiny model's own server has it."""
    source = find_predictor(model)
    runner = engine.scheduler.tp_worker.model_runner
    on_runner(runner).predictor = loaded_from(source, load_predictor(source))
    engine.governor.config = DynTSConfig(96, 16, 0.4)
    engine.governor.markers = ThinkMarkers((3,), (4,))
    return engine


def state_of(engine: Engine) -> dict[str, Any]:
    output = GetInternalStateReqOutput(internal_state={"dynts_budget": 96})
    add_facts(output, SimpleNamespace(scheduler=engine.scheduler), None)
    return output.internal_state


def test_server_info_shows_the_resolved_windows_and_the_predictor_s_header(resolved, model):
    ours = state_of(resolved)["dynts"]
    assert ours["windows"] == {
        "budget": 96,
        "local_window": 16,
        "keep_ratio": 0.4,
        "min_selection": 8,
        "period": 48,
    }
    assert ours["thinking"] == {"opening": [3], "closing": [4]}
    predictor = ours["predictor"]
    assert predictor.pop("sha256") == digest(find_predictor(model))
    assert predictor == {
        "path": str(model / PREDICTOR_FILE),
        "inner_sizes": [96, 32],
        "hidden_size": 64,
        "base_model": "random",
        "target": "random",
        "budget": 96,
        "local_window": 16,
        "keep_ratio": 0.4,
    }


def test_weights_and_predictor_are_named_together_and_one_that_is_older_says_why(resolved, model):
    body, _ = judge([state_of(resolved)])
    assert body["weights"] == {"path": str(model), "version": "default"}
    assert body["predictor"]["path"] == str(model / PREDICTOR_FILE)
    assert body["predictor_kept"] is None
    on_runner(resolved.scheduler.tp_worker.model_runner).kept = "weights came alone"
    body, healthy = judge([state_of(resolved)])
    assert body["predictor_kept"] == "weights came alone"
    assert healthy


def test_a_scheduler_without_dynts_says_nothing(serve):
    serve()
    output = GetInternalStateReqOutput(internal_state={})
    add_facts(output, SimpleNamespace(scheduler=SimpleNamespace(tree_cache=object())), None)
    assert output.internal_state == {}


def test_a_server_that_computes_prompts_is_healthy_and_has_compacted_nothing(serve):
    serve("--attention-backend", "dynts", "--disaggregation-mode", "prefill")
    output = GetInternalStateReqOutput(internal_state={})
    add_facts(output, SimpleNamespace(scheduler=SimpleNamespace(tree_cache=object())), None)
    body, healthy = judge([output.internal_state])
    assert healthy
    assert body["disaggregation"] == "prefill"
    assert not body["has_compacted"]
    assert body["policy"] is None


def test_compactions_of_all_schedulers_are_added_up(engine):
    other = Engine()
    for one, length in ((engine, 40), (other, 20)):
        one.decode(one.prefill(PROMPT), thoughts(100, length))
    body, healthy = judge([state_of(engine), state_of(other)])
    assert healthy
    assert body["healthy"]
    assert body["has_compacted"]
    assert body["num_compactions"] == 5
    assert body["num_dropped"] == 35
    assert body["num_governed"] == body["num_schedulers"] == 2
    assert body["missing"] == []
    assert set(body["seams"]) == {*seams.targets(Process.SCHEDULER), *seams.targets(Process.LAUNCHER)}


def test_a_server_that_served_nothing_is_healthy_and_says_so(engine):
    body, healthy = judge([state_of(engine)])
    assert healthy
    assert body["has_compacted"] is False


@pytest.mark.parametrize("lost", [seams.FORWARD_BATCH, seams.VERIFY_SAMPLING_PARAMS])
def test_a_missing_seam_is_named_wherever_it_is(engine, monkeypatch, lost):
    registry = seams.HookRegistry
    monkeypatch.setattr(registry, "_patched", registry._patched - {lost})
    body, healthy = judge([state_of(engine)])
    assert not healthy
    assert body["missing"] == [lost]


def test_a_scheduler_that_says_nothing_is_not_healthy(engine):
    body, healthy = judge([state_of(engine), {}])
    assert not healthy
    assert body["missing"] == ["1 of 2 schedulers run without DynTS"]


class Manager:
    """As much of a tokenizer manager as the path asks."""

    def __init__(self, states: list[dict[str, Any]]) -> None:
        self.states = states

    async def get_internal_state(self) -> list[dict[str, Any]]:
        await asyncio.sleep(0)
        return self.states


@pytest.fixture
def client(monkeypatch) -> TestClient:
    app = FastAPI()
    monkeypatch.setitem(sys.modules, HTTP_SERVER, SimpleNamespace(app=app))
    return TestClient(app)


def test_the_path_answers_200_and_503(serve, client, engine):
    serve("--attention-backend", "dynts")
    manager = Manager([state_of(engine)])
    offer_health(None, manager, "server_args", "port_args")
    assert client.get(HEALTH_PATH).status_code == 200
    manager.states = [{}]
    reply = client.get(HEALTH_PATH)
    assert reply.status_code == 503
    assert reply.json()["healthy"] is False


def test_a_server_without_dynts_does_not_know_the_path(serve, client):
    serve("--attention-backend", "torch_native")
    offer_health(None, Manager([]), "server_args", "port_args")
    assert client.get(HEALTH_PATH).status_code == 404


def test_an_engine_without_a_server_gets_nothing(serve, monkeypatch):
    serve("--attention-backend", "dynts")
    monkeypatch.delitem(sys.modules, HTTP_SERVER, raising=False)
    offer_health(None, Manager([]), "server_args", "port_args")
    assert HTTP_SERVER not in sys.modules
