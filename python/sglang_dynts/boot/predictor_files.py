"""Where the files of the served model lie on this machine."""

from pathlib import Path

from huggingface_hub import snapshot_download

MODEL_FILES = ["*.safetensors", "*.json"]


def local_model_folder(model_path: str, revision: str | None) -> Path:
    """Return the folder of a model named by path or by hub id, fetching the latter if need be."""
    if Path(model_path).is_dir():
        return Path(model_path)
    return Path(snapshot_download(model_path, revision=revision, allow_patterns=MODEL_FILES))
