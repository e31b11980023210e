"""Weights that are replaced while a server runs: the predictor that comes with them is taken, too.

A predictor reads the hidden states of the weights it was trained with. So one that new weights do not
bring is kept with a warning, which :attr:`OnRunner.kept` repeats to whoever asks.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from sglang.srt.configs.load_config import LoadFormat
from sglang.srt.layers.layernorm import Gemma3RMSNorm, GemmaRMSNorm
from sglang.srt.managers.io_struct import UpdateWeightsFromTensorReqOutput
from sglang.srt.runtime_context import get_model

from sgl_dynts.checkpoint import (
    AUTHOR_LAYER_NAMES,
    PredictorSource,
    check_scores,
    digest_of,
    find_predictor_if_any,
    load_predictor,
)
from sgl_dynts.config import shortened
from sgl_dynts.predictor import ImportancePredictor
from sglang_dynts.boot.configuration import arguments, governs, is_enabled
from sglang_dynts.boot.predictor_files import local_model_folder
from sglang_dynts.boot.refusals import refuse_other_width
from sglang_dynts.forward.device_state import LoadedPredictor, OnRunner, loaded_from, on_runner

logger = logging.getLogger(__name__)

ONE_MORE = (GemmaRMSNorm, Gemma3RMSNorm)
"""Norms that multiply by 1 + weight."""

Weights = Iterable[tuple[str, torch.Tensor]]
Found = tuple[PredictorSource, ImportancePredictor]


def listen_to_loads(model: Any, ours: OnRunner) -> None:
    """Take ``is_head.*`` out of all weights that this model will be given, wherever they come from."""
    load_weights: Callable[..., Any] = model.load_weights

    def load_without_predictor(weights: Weights, *args: Any, **kwargs: Any) -> Any:
        return load_weights(_set_aside(ours, weights), *args, **kwargs)

    model.load_weights = load_without_predictor


def update_from_disk(original, updater, model_path: str, *args: Any, **kwargs: Any) -> tuple[bool, str]:
    """AROUND WeightUpdater.update_weights_from_disk: load the predictor beside the weights, too.

    It is read before a weight is touched: one that cannot be used refuses the update as a whole.
    """
    if not governs():
        return original(updater, model_path, *args, **kwargs)
    ours = on_runner(updater.get_model_runner())
    try:
        found = None if ours.predictor is None else _find_beside(ours.predictor, model_path)
    except (OSError, ValueError) as error:
        return False, f"Weights were not updated, for the predictor that comes with them: {error}"
    success, message = _load_or_roll_back(original, updater, model_path, *args, **kwargs)
    ours.arrived.clear()
    if success:
        _note_update(ours)
        _adopt(ours, found, model_path)
    return success, message


def _note_update(ours: OnRunner) -> None:
    ours.weights_updated = True
    if arguments().dynts_calibrates:
        logger.warning(
            "DynTS: weights were updated, and what is known of the model's queries is of those before; "
            "restart the server where the new ones differ much"
        )


def _load_or_roll_back(original, updater, *args: Any, **kwargs: Any) -> tuple[bool, str]:
    """Let SGLang load weights, and return to those that are served where the new ones do not fit.

    SGLang 0.5.23 rolls back to the folder that has just failed; that raises, and ends the server.
    """
    model = updater.get_model()
    load_weights: Callable[..., Any] = model.load_weights

    def load_or_name_the_served_folder(*args: Any, **kwargs: Any) -> Any:
        try:
            return load_weights(*args, **kwargs)
        except BaseException:
            updater.model_config.model_path = get_model().model_path
            raise

    model.load_weights = load_or_name_the_served_folder
    try:
        return original(updater, *args, **kwargs)
    finally:
        model.load_weights = load_weights


def refuse_unusable(original, manager, recv_req, *args: Any, **kwargs: Any) -> Any:
    """AROUND SchedulerWeightUpdaterManager.update_weights_from_tensor: say no, do not end the server.

    SGLang 0.5.23 lets out whatever reading and loading the tensors raises.
    """
    try:
        return original(manager, recv_req, *args, **kwargs)
    except Exception as error:
        if not is_enabled():
            raise
        torch.distributed.barrier(group=manager.tp_cpu_group)  # where ranks that could read them wait
        message = f"The tensors cannot be used: {shortened(repr(error))}. Weights may be updated in part."
        logger.error(message)
        return UpdateWeightsFromTensorReqOutput(success=False, message=message)


def settle_session(_result, updater, *_args: Any, **_kwargs: Any) -> None:
    """AFTER WeightUpdater.end_weight_update: the tensors of a session are complete."""
    _settle(on_runner(updater.get_model_runner()))


def settle_shared(result: tuple[bool, str], updater, *_args: Any, **_kwargs: Any) -> None:
    """AFTER WeightUpdater.update_weights_from_ipc: such an update is complete by itself."""
    ours = on_runner(updater.get_model_runner())
    is_updated, _message = result
    if is_updated:
        _settle(ours)
    ours.arrived.clear()


def _settle(ours: OnRunner) -> None:
    """Take what arrived for the predictor, or keep the old one."""
    _note_update(ours)
    loaded = ours.predictor
    if loaded is None:
        return
    weights = [ours.arrived.get(name) for name in AUTHOR_LAYER_NAMES]
    given = [weight for weight in weights if weight is not None]
    shapes = [weight.shape for weight in loaded.predictor.parameters()]
    ours.arrived.clear()
    if [weight.shape for weight in given] == shapes and all(bool(one.isfinite().all()) for one in given):
        _copy(loaded.predictor, given)
        ours.predictor = replace(loaded, sha256=digest_of(given), path="is_head.* of a weight update")
        ours.kept = None
    elif given:
        _keep(ours, f"is_head.* came as {[list(one.shape) for one in given]}, or not finite")
    else:
        _keep(ours, "weights were updated without is_head.* tensors")


def size_of_states(model: torch.nn.Module, hidden_size: int) -> torch.Tensor | float:
    """[hidden_size] how large a model's last hidden states are: the weight of its final norm, else 1.

    A norm's output has about the size of its weight, and the final one is the last of this shape.
    Weights that ``--load-format dummy`` draws are near 0 and tell nothing of the model: 1 there too.
    """
    if get_model().load_format == LoadFormat.DUMMY:
        return 1.0
    alike = [
        (module, weight)
        for module in model.modules()
        for weight in module.parameters(recurse=False)
        if weight.shape == (hidden_size,)
    ]
    if not alike:
        return 1.0
    norm, weight = alike[-1]
    return weight.float() + 1 if isinstance(norm, ONE_MORE) else weight.float()


def _set_aside(ours: OnRunner, weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in weights:
        if name in AUTHOR_LAYER_NAMES:
            ours.arrived[name] = weight.detach().clone()
        else:
            yield name, weight


def _find_beside(loaded: LoadedPredictor, model_path: str) -> Found | None:
    """The predictor that lies with new weights; None where there is none, or a flag names another."""
    if arguments().dynts_predictor is not None:
        return None
    source = find_predictor_if_any(local_model_folder(model_path, get_model().revision))
    if source is None:
        return None
    refuse_other_width(source.path, source.header.hidden_size, loaded.predictor.hidden_size)
    fresh = load_predictor(source)
    check_scores(fresh, source.path)
    if fresh.inner_sizes != loaded.predictor.inner_sizes:
        raise ValueError(
            f"{source.path} has inner sizes {list(fresh.inner_sizes)}, the served one "
            f"{list(loaded.predictor.inner_sizes)}; restart the server with it"
        )
    return source, fresh


def _adopt(ours: OnRunner, found: Found | None, model_path: str) -> None:
    if ours.predictor is None:
        return
    if found is not None:
        source, fresh = found
        _copy(ours.predictor.predictor, list(fresh.parameters()))
        ours.predictor = loaded_from(source, ours.predictor.predictor)
        ours.kept = None
        logger.info("DynTS predictor: %s", ours.predictor.facts())
    elif arguments().dynts_predictor is not None:
        _keep(ours, f"weights came from {model_path}, and --dynts-predictor names another file")
    else:
        _keep(ours, f"weights came from {model_path}, which holds no predictor")


def _copy(predictor: ImportancePredictor, weights: list[torch.Tensor]) -> None:
    """Write new weights in place, where captured graphs read them."""
    with torch.no_grad():
        for parameter, weight in zip(predictor.parameters(), weights, strict=True):
            parameter.copy_(weight)


def _keep(ours: OnRunner, why: str) -> None:
    assert ours.predictor is not None
    ours.kept = why
    logger.warning(
        "DynTS keeps the predictor %s: %s. Its scores may not fit the new weights; give them a "
        "predictor of their own, or restart the server with one",
        ours.predictor.path,
        why,
    )
