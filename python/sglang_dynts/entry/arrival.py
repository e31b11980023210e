"""Where every request reaches the scheduler, whichever way it came: a bad one ends there, alone."""

from http import HTTPStatus

from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import FINISH_ABORT

from sglang_dynts.boot.configuration import is_enabled, server_config
from sglang_dynts.boot.sliding_window import refuse_short_window
from sglang_dynts.entry.options import check_options, config_of_request

NO_IMAGES = (
    "this server runs with DynTS, which serves text alone: images and audio have other positions; "
    "send text, or ask a server without DynTS"
)

NO_EMBEDDINGS = (
    "this server runs with DynTS, which takes no input_embeds: they hide whether the prompt leaves off "
    "in thinking, and SGLang ends where they meet another request in one forward, or a model that is not "
    "bfloat16; give text or input_ids, or ask a server without DynTS"
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
    if _is_admitted(scheduler, recv_req, has_embeddings=recv_req.input_embeds is not None):
        original(scheduler, recv_req, **kwargs)


def admit_embedding(original, scheduler, recv_req, **kwargs) -> None:
    """AROUND Scheduler.handle_embedding_request: the same for a request that generates nothing."""
    if _is_admitted(scheduler, recv_req):
        original(scheduler, recv_req, **kwargs)


def _is_admitted(scheduler, recv_req, has_embeddings: bool = False) -> bool:
    """Whether a request may be made; one that may not is told why."""
    try:
        check_options(recv_req.sampling_params.custom_params)
        if is_enabled() and recv_req.mm_inputs is not None:
            raise ValueError(NO_IMAGES)
        if is_enabled() and has_embeddings:
            raise ValueError(NO_EMBEDDINGS)
        if is_enabled() and not len(recv_req.input_ids):
            raise ValueError(NO_TOKENS)
        if is_enabled():
            config = config_of_request(recv_req.sampling_params, server_config())
            refuse_short_window(config, scheduler.tp_worker.model_runner)
    except ValueError as error:
        reason = FINISH_ABORT(str(error), HTTPStatus.BAD_REQUEST, "BadRequestError").to_json()
        scheduler.send_abort_output(AbortReq(rid=recv_req.rid, finished_reason=reason), recv_req)
        return False
    return True
