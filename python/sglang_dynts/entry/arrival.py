"""Where every request reaches the scheduler, whichever way it came: a bad one ends there, alone."""

from collections.abc import Sequence
from http import HTTPStatus

from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import FINISH_ABORT

from sgl_dynts.config import MOST_TOKENS, quoted
from sglang_dynts.boot.configuration import is_enabled, server_config
from sglang_dynts.boot.sliding_window import refuse_short_window
from sglang_dynts.entry.options import NO_EMBEDDINGS, check_options, config_of_request

NO_IMAGES = (
    "this server runs with DynTS, which serves text alone: images and audio have other positions; "
    "send text, or ask a server without DynTS"
)

NO_TOKENS = (
    "the prompt has no tokens, and SGLang ends where it computes such a one; give text or input_ids of "
    "at least one token"
)


def admit_generation(original, scheduler, recv_req, **kwargs) -> None:
    """AROUND Scheduler.handle_generate_request: verify before a request is made.

    A front end that calls ``SamplingParams.verify`` has refused such a request already; others pass on
    what a client sent. Behind this line options are read, and nothing may raise: it would end the server.
    """
    if _is_admitted(scheduler, recv_req, generates=True):
        original(scheduler, recv_req, **kwargs)


def admit_embedding(original, scheduler, recv_req, **kwargs) -> None:
    """AROUND Scheduler.handle_embedding_request: the same for a request that generates nothing."""
    if _is_admitted(scheduler, recv_req):
        original(scheduler, recv_req, **kwargs)


def _is_admitted(scheduler, recv_req, generates: bool = False) -> bool:
    """Whether a request may be made; one that may not is told why."""
    try:
        check_options(recv_req.sampling_params.custom_params)
        if is_enabled():
            vocab_size = scheduler.model_config.vocab_size
            if recv_req.mm_inputs is not None:
                raise ValueError(NO_IMAGES)
            if generates:
                _refuse_impossible_generation(recv_req, vocab_size)
            _refuse_impossible_tokens(recv_req.input_ids, vocab_size)
            config = config_of_request(recv_req.sampling_params, server_config())
            refuse_short_window(config, scheduler.tp_worker.model_runner)
    except ValueError as error:
        reason = FINISH_ABORT(str(error), HTTPStatus.BAD_REQUEST, "BadRequestError").to_json()
        scheduler.send_abort_output(AbortReq(rid=recv_req.rid, finished_reason=reason), recv_req)
        return False
    return True


def _refuse_impossible_tokens(ids: Sequence[int], vocab_size: int) -> None:
    """Refuse a prompt that SGLang 0.5.23 looks up without a check, in its scheduler, which ends there.

    Raises:
        ValueError: it is empty, or the model lacks a token of it.
    """
    if not len(ids):
        raise ValueError(NO_TOKENS)
    if not 0 <= min(ids) <= max(ids) < vocab_size:
        raise ValueError(f"the prompt has token ids that the model lacks; it has 0 to {vocab_size - 1}")


def _refuse_impossible_generation(recv_req, vocab_size: int) -> None:
    """Refuse embeddings, and log-probabilities that SGLang 0.5.23 looks up without a check.

    Raises:
        ValueError: naming the field and what it may be.
    """
    if recv_req.input_embeds is not None:
        raise ValueError(NO_EMBEDDINGS)
    for name, least, most in (
        ("top_logprobs_num", 0, vocab_size),
        ("logprob_start_len", -1, MOST_TOKENS),
    ):
        value = getattr(recv_req, name)
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{name}={quoted(value)} must be an integer, {least} to {most}")
    wanted = recv_req.token_ids_logprob or []
    if not all(type(one) is int and 0 <= one < vocab_size for one in wanted):
        raise ValueError(f"token_ids_logprob={quoted(wanted)} must be token ids, 0 to {vocab_size - 1}")
