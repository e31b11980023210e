"""Asked for and impossible: the real server ends before it is up, and says why and what to do."""

import pytest

from tests.e2e.models import build_model, write_predictor
from tests.e2e.server import RefusedError, Server, WarmServer
from tests.e2e.servers import ATTENTION_RANKS, DYNTS, TWO_CORES


@pytest.fixture(scope="module")
def said(model_of, tmp_path_factory, warm) -> dict[str, str]:
    """What servers wrote that ended instead of serving: one as a user starts it, others as copies."""
    folder = tmp_path_factory.mktemp("refused")
    write_predictor(folder / "wide.safetensors", hidden_size=128)
    bare = build_model("llama", folder / "bare_model")
    (bare / "dynts" / "predictor.safetensors").unlink()
    words = {
        "wide": (model_of("llama"), "--dynts-predictor", str(folder / "wide.safetensors")),
        "bare": (bare, "--dynts-policy", "predictor"),
        "markers": (model_of("llama"), "--dynts-think-end", "</muse>"),
        "ranks": (model_of("llama"), *ATTENTION_RANKS),
    }
    servers = {
        name: Server(model, folder / f"{name}.log", *DYNTS, *flags)
        if name == "bare"
        else WarmServer(warm, model, folder / f"{name}.log", *DYNTS, *flags, **TWO_CORES)
        for name, (model, *flags) in words.items()
    }
    return {name: refusal_of(server) for name, server in servers.items()}


def refusal_of(server: Server) -> str:
    try:
        server.wait_ready()
    except RefusedError as error:
        return str(error)
    server.stop()
    return "the server started"


def test_a_predictor_of_another_width_ends_the_server(said):
    assert "made for hidden_size=128, the served model has hidden_size=64" in said["wide"]


def test_a_model_without_predictor_ends_the_server(said):
    assert "no predictor: --dynts-predictor is not given" in said["bare"]


def test_a_model_whose_code_knows_no_attention_ranks_ends_the_server(said):
    assert "--attn-dp-size 2 with LlamaForCausalLM: SGLang's " in said["ranks"]


def test_think_markers_the_tokenizer_lacks_end_the_server(said):
    assert "--dynts-think-end: '</muse>' is not in the tokenizer's vocab" in said["markers"]
