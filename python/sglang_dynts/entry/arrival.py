"""Where every request reaches the scheduler, whichever way it came: a bad one ends there, alone."""

from http import HTTPStatus

from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import FINISH_ABORT

from sglang_dynts.entry.options import check_options


def admit_verified(original, scheduler, recv_req, **kwargs) -> None:
    """AROUND Scheduler.handle_generate_request and handle_embedding_request: verify before it is made.

    A front end that calls ``SamplingParams.verify`` has refused such a request already; others pass on
    what a client sent. Behind this line options are read, and nothing may raise: it would end the server.
    """
    try:
        check_options(recv_req.sampling_params)
    except ValueError as error:
        _abort(scheduler, recv_req, str(error))
    else:
        original(scheduler, recv_req, **kwargs)


def _abort(scheduler, recv_req, message: str) -> None:
    reason = FINISH_ABORT(message, HTTPStatus.BAD_REQUEST, "BadRequestError").to_json()
    scheduler.send_abort_output(AbortReq(rid=recv_req.rid, finished_reason=reason), recv_req)
