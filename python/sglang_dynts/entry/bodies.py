"""Bodies of HTTP: requests, read before their endpoint reads them, and errors, kept short.

SGLang repeats in an error what a client sent, megabytes if it were so.
"""

import json
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sglang_dynts.entry.front_end import watch

Fields = dict[str, Any]
"""A body's, by name."""
MOST_BYTES = 2000
"""Of an error reply that is left as it is."""
MOST_LETTERS = 400
"""Of a text in a longer one: it begins with what is wrong, then quotes."""
MOST_ITEMS = 20
ERROR_IN_A_STREAM = b'data: {"error"'
FIRST_ERROR = 400
"""The lowest status of an error."""


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


def objects_in(value: Any) -> list[Fields]:
    """Return an object, or the objects of a list; SGLang answers where it is neither."""
    some = value if isinstance(value, list) else [value]
    return [one for one in some if isinstance(one, dict)]


def shorten_errors(_result, _manager, *_args, **_kwargs) -> None:
    """AFTER TokenizerManager.__init__: look at every reply."""
    watch(ErrorShortener)


class ErrorShortener:
    """Sends replies on as they come, but for long errors."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        held: list[Message] = []

        async def send_short(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= FIRST_ERROR:
                held.append(message)
            elif not held:
                await send(_without_long_error(message))
            else:
                held.append(message)
                if not message.get("more_body", False):
                    for one in _shortened(held):
                        await send(one)

        await self.app(scope, receive, send_short)


def _shortened(reply: list[Message]) -> list[Message]:
    """The reply as it is sent: its start and its body."""
    start, *parts = reply
    body = b"".join(part.get("body", b"") for part in parts)
    if len(body) <= MOST_BYTES:
        return reply
    try:
        body = json.dumps(_cut(json.loads(body))).encode()
    except (ValueError, RecursionError):
        body = body[:MOST_LETTERS]
    others = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
    length = (b"content-length", str(len(body)).encode())
    return [{**start, "headers": [*others, length]}, {"type": "http.response.body", "body": body}]


def _without_long_error(part: Message) -> Message:
    """A part of a stream, whose errors come with status 200."""
    body = part.get("body", b"")
    if len(body) <= MOST_BYTES or not body.startswith(ERROR_IN_A_STREAM):
        return part
    try:
        told = json.loads(body.removeprefix(b"data: "))
    except (ValueError, RecursionError):
        return part
    return {**part, "body": b"data: " + json.dumps(_cut(told)).encode() + b"\n\n"}


def _cut(value: Any) -> Any:
    """A value of JSON with its long texts and lists cut off."""
    if isinstance(value, str):
        return value if len(value) <= MOST_LETTERS else f"{value[:MOST_LETTERS]}..."
    if isinstance(value, list):
        return [_cut(one) for one in value[:MOST_ITEMS]]
    if isinstance(value, dict):
        return {key[:MOST_LETTERS]: _cut(one) for key, one in list(value.items())[:MOST_ITEMS]}
    return value
