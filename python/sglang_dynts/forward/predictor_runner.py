"""The predictor beside the served model: loaded with it, run on every token inside its forward."""

import logging

import torch

from sgl_dynts.checkpoint import check_scores, load_predictor
from sgl_dynts.scoring import write_scores
from sglang_dynts.boot.configuration import governs
from sglang_dynts.boot.predictor_files import find_served_predictor
from sglang_dynts.boot.refusals import refuse_other_width
from sglang_dynts.forward.device_state import LoadedPredictor, OnRunner, loaded_from, on_runner
from sglang_dynts.forward.weight_updates import listen_to_loads, size_of_states

logger = logging.getLogger(__name__)


def install_predictor(_result, model_runner) -> None:
    """AFTER ModelRunner.load_model: load the predictor before the KV pool is sized, and listen.

    The predictor stays outside the served module tree, so that weight updates and checks of the model
    never meet it. Where none is loaded, every token scores 0: a slot must not keep the score of its
    earlier owner.

    Raises:
        ValueError: no usable predictor, or one of another hidden size.
    """
    if not governs() or model_runner.is_draft_worker:
        return
    ours = on_runner(model_runner)
    ours.predictor = _load_for(model_runner)
    if ours.predictor is not None:
        listen_to_loads(model_runner.model, ours)

    def score_before_logits(_module, args) -> None:
        _input_ids, hidden, _lm_head, forward_batch = args[:4]
        score_tokens(ours, hidden, forward_batch.out_cache_loc)

    model_runner.model.logits_processor.register_forward_pre_hook(score_before_logits)


def score_tokens(ours: OnRunner, hidden: torch.Tensor, slots: torch.Tensor) -> None:
    """Write the scores of one forward's tokens; captured in CUDA graphs, never waits for the device.

    Args:
        ours: predictor and pool; without a predictor every token scores 0.
        hidden: [num_tokens, hidden_size], after the final norm.
        slots: [num_tokens], KV slots of the same tokens.
    """
    if ours.state is None:  # a forward before the pools exist scores nothing that is kept
        return
    assert hidden.shape[0] == slots.shape[0], f"{hidden.shape=} {slots.shape=}"
    if ours.predictor is None:
        ours.state.scores.write(slots, torch.zeros(hidden.shape[0], device=hidden.device))
    else:
        write_scores(ours.predictor.predictor, hidden, slots, ours.state.scores)


def _load_for(model_runner) -> LoadedPredictor | None:
    source = find_served_predictor()
    if source is None:
        logger.info("DynTS serves without a predictor")
        return None
    refuse_other_width(source.path, source.header.hidden_size, model_runner.model_config.hidden_size)
    predictor = load_predictor(source)
    dtype = torch.float32 if model_runner.dtype == torch.float32 else torch.bfloat16
    predictor = predictor.to(device=model_runner.device, dtype=dtype)
    with torch.inference_mode():
        check_scores(predictor, source.path, size_of_states(model_runner.model, predictor.hidden_size))
    loaded = loaded_from(source, predictor)
    logger.info("DynTS predictor: %s", loaded.facts())
    return loaded
