"""The predictor beside the served model: loaded with it, run on every token inside its forward."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from sglang.srt.runtime_context import get_context, get_model

from sgl_dynts.checkpoint import (
    PredictorSource,
    digest,
    find_predictor,
    find_predictor_if_any,
    load_predictor,
)
from sgl_dynts.policies import NEED_PREDICTOR
from sgl_dynts.predictor import ImportancePredictor
from sglang_dynts.boot.predictor_files import local_model_folder
from sglang_dynts.forward.device_state import is_enabled, score_tokens
from sglang_dynts.names import BACKEND_NAME

logger = logging.getLogger(__name__)
_LOADED: "WeakKeyDictionary[object, LoadedPredictor | None]" = WeakKeyDictionary()


@dataclass(frozen=True)
class LoadedPredictor:
    """The predictor of one model runner, where it came from, and the digest that identifies it."""

    predictor: ImportancePredictor
    source: PredictorSource
    sha256: str

    def facts(self) -> dict[str, Any]:
        """Return what a server tells about its predictor."""
        return {
            "path": str(self.source.path),
            "sha256": self.sha256,
            "inner_sizes": list(self.predictor.inner_sizes),
            **asdict(self.source.header),
        }


def loaded_predictor(model_runner) -> LoadedPredictor | None:
    """Return the predictor that scores a model runner's tokens, None where it serves without one."""
    return _LOADED[model_runner]


def install_predictor(_result, model_runner) -> None:
    """AFTER ModelRunner.load_model: load the predictor before the KV pool is sized, and listen.

    The predictor stays outside the served module tree, so that weight updates and checks of the model
    never meet it. Where none is loaded, every token scores 0: a slot must not keep the score of its
    earlier owner.

    Raises:
        ValueError: no usable predictor, or one of another hidden size.
    """
    if not is_enabled() or model_runner.is_draft_worker:
        return
    loaded = _load_for(model_runner)
    _LOADED[model_runner] = loaded
    predictor = None if loaded is None else loaded.predictor

    def score_before_logits(_module, args) -> None:
        _input_ids, hidden, _lm_head, forward_batch = args[:4]
        score_tokens(model_runner, predictor, hidden, forward_batch.out_cache_loc)

    model_runner.model.logits_processor.register_forward_pre_hook(score_before_logits)


def find_served_predictor(policy: str | None = None) -> PredictorSource | None:
    """Find the predictor of this server, None where it has none and the policy does without.

    Args:
        policy: name of the policy that is to be served; default: the server's.

    Raises:
        ValueError: the policy needs a predictor and there is none, or it is not usable.
    """
    bag = get_context().config_bag(BACKEND_NAME)
    model = get_model()
    return find_for_policy(
        policy or bag.dynts_policy, model.model_path, model.revision, bag.dynts_predictor
    )


def find_for_policy(
    policy: str, model_path: str, revision: str | None, named: str | None
) -> PredictorSource | None:
    """Find the predictor of a model; arguments and errors as in :func:`find_served_predictor`."""
    find = find_predictor if policy in NEED_PREDICTOR else find_predictor_if_any
    return find(local_model_folder(model_path, revision), Path(named) if named else None)


def _load_for(model_runner) -> LoadedPredictor | None:
    source = find_served_predictor()
    if source is None:
        logger.info("DynTS serves without a predictor")
        return None
    check_hidden_size(source.path, source.header.hidden_size, model_runner.model_config.hidden_size)
    predictor = load_predictor(source)
    dtype = torch.float32 if model_runner.dtype == torch.float32 else torch.bfloat16
    loaded = LoadedPredictor(
        predictor.to(device=model_runner.device, dtype=dtype), source, digest(source)
    )
    logger.info("DynTS predictor: %s", loaded.facts())
    return loaded


def check_hidden_size(path: Path, found: int, wanted: int) -> None:
    """Refuse a predictor made for another width.

    Raises:
        ValueError: naming both sizes.
    """
    if found != wanted:
        raise ValueError(
            f"--dynts-predictor {path}: made for hidden_size={found}, the served model has "
            f"hidden_size={wanted}; name a predictor trained for this model"
        )
