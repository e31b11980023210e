"""Options at the top of a body: several endpoints of SGLang's accept the field and pass nothing of it on.

So a body is read before its endpoint reads it. What stands at its top reaches the request through
:data:`CARRIED`; what stands where nobody would look is refused with the right spelling.
"""

import json
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sglang_dynts.entry.front_end import watch
from sglang_dynts.entry.options import CARRIED, check_options
from sglang_dynts.names import BACKEND_NAME

FIELD = "custom_params"
UNREAD = {
    "extra_body": (FIELD, BACKEND_NAME),
    "options": (FIELD, BACKEND_NAME),
    "sampling_params": (BACKEND_NAME,),
}
"""By objects of a body: what people write into them, and nobody reads there."""
SPELLING = f'"{FIELD}": {{"{BACKEND_NAME}": {{...}}}}'
_MARKS = (FIELD.encode(), BACKEND_NAME.encode())


def watch_bodies(_result, _manager, *_args, **_kwargs) -> None:
    """AFTER TokenizerManager.__init__: look into every body."""
    watch(OptionsCarrier)


class OptionsCarrier:
    """Reads a body, and hands it on as it came."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT"):
            await self.app(scope, receive, send)
            return
        messages = await read_body(receive)
        try:
            options = options_at_top(b"".join(message.get("body", b"") for message in messages))
        except ValueError as error:
            await refusal(str(error))(scope, receive, send)
            return
        token = CARRIED.set(options)
        try:
            await self.app(scope, replay(messages, receive), send)
        finally:
            CARRIED.reset(token)


def options_at_top(body: bytes) -> dict[str, Any] | None:
    """Return what a JSON body says under ``custom_params.dynts`` at its top, checked.

    Raises:
        ValueError: it is no possible value, or stands where nobody would read it.
    """
    if not any(mark in body for mark in _MARKS):
        return None
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None  # SGLang answers
    if not isinstance(fields, dict):
        return None
    _refuse_misplaced(fields)
    custom = fields.get(FIELD)
    check_options(custom)
    return custom.get(BACKEND_NAME) if custom else None


def _refuse_misplaced(fields: dict[str, Any]) -> None:
    places = [BACKEND_NAME] if BACKEND_NAME in fields else []
    for wrapper, names in UNREAD.items():
        inner = fields.get(wrapper)
        places += [f"{wrapper}.{name}" for name in names if isinstance(inner, dict) and name in inner]
    if places:
        raise ValueError(
            f"{places[0]} stands where nobody reads it: write {SPELLING} at the top of the body, or in "
            "sampling_params where the endpoint has them"
        )


async def read_body(receive: Receive) -> list[Message]:
    """Every message up to the end of the body, or to the client's leaving."""
    messages = [await receive()]
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body", False):
        messages.append(await receive())
    return messages


def replay(messages: list[Message], receive: Receive) -> Receive:
    """Give what was read once more, then what comes after it."""
    waiting = list(messages)

    async def receive_again() -> Message:
        return waiting.pop(0) if waiting else await receive()

    return receive_again


def refusal(message: str) -> JSONResponse:
    """Say no as SGLang's endpoints do: one form for its own clients, one for OpenAI's and Anthropic's."""
    facts = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
    return JSONResponse({"object": "error", "error": facts, **facts}, HTTPStatus.BAD_REQUEST)
