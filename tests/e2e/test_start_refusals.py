"""Asked for and impossible: the real server ends before it is up, and says why and what to do."""

import pytest

from tests.e2e.models import build_model, write_predictor
from tests.e2e.server import RefusedError

DYNTS = ("--attention-backend", "dynts")


def test_a_predictor_of_another_width_ends_the_server(models, start, tmp_path):
    write_predictor(tmp_path / "wide.safetensors", hidden_size=128)
    with pytest.raises(
        RefusedError, match="made for hidden_size=128, the served model has hidden_size=64"
    ):
        start(models["llama"], *DYNTS, "--dynts-predictor", str(tmp_path / "wide.safetensors"))


def test_a_model_without_predictor_ends_the_server(start, tmp_path):
    folder = build_model("llama", tmp_path / "bare")
    (folder / "dynts" / "predictor.safetensors").unlink()
    with pytest.raises(RefusedError, match="no predictor: --dynts-predictor is not given"):
        start(folder, *DYNTS)


def test_think_markers_the_tokenizer_lacks_end_the_server(models, start):
    with pytest.raises(
        RefusedError, match="--dynts-think-end: '</muse>' is not in the tokenizer's vocab"
    ):
        start(models["llama"], *DYNTS, "--dynts-think-end", "</muse>")
