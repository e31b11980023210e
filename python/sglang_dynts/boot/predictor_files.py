"""Where the served model's files lie, and which predictor belongs to it."""

from pathlib import Path

from huggingface_hub import snapshot_download
from sglang.srt.runtime_context import get_model

from sgl_dynts.checkpoint import PredictorSource, find_predictor, find_predictor_if_any
from sgl_dynts.policies import policies
from sglang_dynts.boot.configuration import arguments

MODEL_FILES = ["*.safetensors", "*.json"]


def local_model_folder(model_path: str, revision: str | None) -> Path:
    """Return the folder of a model named by path or by hub id, fetching the latter if need be."""
    path = Path(model_path)
    if path.exists():
        return path if path.is_dir() else path.parent
    return Path(snapshot_download(model_path, revision=revision, allow_patterns=MODEL_FILES))


def find_served_predictor() -> PredictorSource | None:
    """Find the predictor of this server, None where it has none and its policy does without.

    Raises:
        ValueError: the policy needs a predictor and there is none, or it is not usable.
    """
    ours, model = arguments(), get_model()
    return find_for_policy(ours.dynts_policy, model.model_path, model.revision, ours.dynts_predictor)


def find_for_policy(
    policy: str | None, model_path: str, revision: str | None, named: str | None
) -> PredictorSource | None:
    """Find the predictor of a model; without a policy there need be none.

    Raises:
        ValueError: as in :func:`find_served_predictor`.
    """
    is_needed = policy is not None and policies()[policy].needs_predictor
    find = find_predictor if is_needed else find_predictor_if_any
    return find(local_model_folder(model_path, revision), Path(named) if named else None)
