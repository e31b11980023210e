"""Watchers of requests stand in the application, whether it has started or not."""

import sys
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sglang.srt.plugins import hook_registry
from sglang.srt.server_args import ServerArgs

from sglang_dynts import seams
from sglang_dynts.entry.carriers import watch_bodies
from sglang_dynts.entry.front_end import tell_no_images
from sglang_dynts.names import HTTP_SERVER

BAD = {"custom_params": {"dynts": {"bugdet": 1}}}


@pytest.fixture
def client(monkeypatch) -> TestClient:
    app = FastAPI()
    app.post("/generate")(lambda: "reached")
    monkeypatch.setitem(sys.modules, HTTP_SERVER, SimpleNamespace(app=app))
    return TestClient(app)


@pytest.mark.parametrize("has_started", [False, True])
def test_bodies_are_watched_in_a_tokenizer_worker_too(serve, client, has_started):
    serve("--attention-backend", "dynts")
    if has_started:
        assert client.post("/generate", json=BAD).status_code == 200
    watch_bodies(None, SimpleNamespace(served_model_name="m"))
    assert client.post("/generate", json=BAD).status_code == 400
    assert client.post("/generate", json={}).status_code == 200


def test_a_server_without_dynts_is_not_watched(serve, client):
    serve("--attention-backend", "torch_native")
    watch_bodies(None, SimpleNamespace(served_model_name="m"))
    assert client.post("/generate", json=BAD).status_code == 200


@pytest.mark.parametrize(("kernels", "understood"), [("dynts", False), ("torch_native", True)])
def test_a_server_with_dynts_is_warmed_up_without_an_image(serve, kernels, understood):
    serve("--attention-backend", kernels)
    manager = SimpleNamespace(model_config=SimpleNamespace(is_image_understandable_model=True))
    tell_no_images(None, manager)
    assert manager.model_config.is_image_understandable_model is understood


def test_a_tokenizer_worker_starts_with_every_hook_or_not_at_all(resolve, serve, monkeypatch):
    args: ServerArgs = resolve("--attention-backend", "dynts", "--tokenizer-worker-num", "2")
    serve("--attention-backend", "dynts")
    assert args.get_tokenizer_worker_class().__name__ == "TokenizerWorker"
    patched = hook_registry.HookRegistry._patched - {seams.VERIFY_SAMPLING_PARAMS}
    monkeypatch.setattr(hook_registry.HookRegistry, "_patched", patched)
    with pytest.raises(
        RuntimeError, match=r"sampling_params\.SamplingParams\.verify could not be hooked"
    ):
        args.get_tokenizer_worker_class()
