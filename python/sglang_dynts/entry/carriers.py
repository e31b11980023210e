"""Where a request may say its options, other than where SGLang passes them on by itself.

Several endpoints accept ``custom_params`` at the top of a body and forget it, and routers pass on only
the fields that they know. So each request is read before its endpoint reads it. What it says reaches
``SamplingParams`` through :data:`CARRIED`; what stands where nobody would look is refused with the right
spelling.
"""

import json
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgl_dynts.config import quoted
from sgl_dynts.policies import policies
from sglang_dynts.entry.bodies import Fields, objects_in, read_body, refusal, replay
from sglang_dynts.entry.field_refusals import (
    EMBEDDINGS,
    FIELD,
    NO_JSON,
    OF_ONE_PROMPT,
    PASSED_ON,
    SAMPLING,
    refuse_impossible,
    refuse_misplaced,
)
from sglang_dynts.entry.front_end import watch
from sglang_dynts.entry.options import CARRIED, REPORT, check_options, combined
from sglang_dynts.names import BACKEND_NAME

HEADER = "X-DynTS"
ALIAS = "@"
"""Between a model's name and a policy's: ``MODEL@full``."""
METADATA = "metadata"
"""One that routers pass on whole, too. OpenAI's holds texts, so options may stand there as JSON."""
_MARKS = (
    FIELD.encode(),
    BACKEND_NAME.encode(),
    ALIAS.encode(),
    b"\\u",
    *(f'"{name}"'.encode() for name in (*OF_ONE_PROMPT, EMBEDDINGS, NO_JSON)),
)
"""What a body that says something has in it; JSON may write any letter by its number."""


def watch_bodies(_result, manager, *_args, **_kwargs) -> None:
    """AFTER TokenizerManager.__init__: look into every request."""
    watch(OptionsCarrier, served_name=manager.served_model_name)


class OptionsCarrier:
    """Reads a request, and hands it on as it came but for what SGLang must not see."""

    def __init__(self, app: ASGIApp, served_name: str) -> None:
        self.app, self.served_name = app, served_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT"):
            await self.app(scope, receive, send)
            return
        messages = await read_body(receive)
        body = b"".join(message.get("body", b"") for message in messages)
        try:
            said = read_request(body, _header(scope), self.served_name, scope["path"])
        except ValueError as error:
            await refusal(str(error))(scope, receive, send)
            return
        if said.body is not None:
            messages: list[Message] = [{"type": "http.request", "body": said.body}]
            scope = _with_length(scope, len(said.body))
        token = CARRIED.set(said.options)
        try:
            await self.app(scope, replay(messages, receive), send)
        finally:
            CARRIED.reset(token)


@dataclass(frozen=True)
class Said:
    """A request's options; ``body`` is what SGLang gets, None where it is the one that came."""

    options: Fields | None
    body: bytes | None = None


def read_request(body: bytes, header: str | None, served_name: str, path: str) -> Said:
    """Return what a request says of its options outside of ``sampling_params``, checked.

    Args:
        body: as it came.
        header: the value of :data:`HEADER`.
        served_name: of the model.
        path: of the endpoint.

    Raises:
        ValueError: it is no possible value, stands where nobody would read it, or two places disagree.
    """
    found = {} if header is None else {f"the header {HEADER}": _parsed(header, f"the header {HEADER}")}
    fields = _object_in(body)
    if fields is None:
        return Said(_checked(found))
    refuse_misplaced(fields, path)
    refuse_impossible(fields)
    check_options(fields.get(FIELD))
    for params in objects_in(fields.get(SAMPLING)):  # before a stream begins, whose status is 200
        check_options(params.get(FIELD))
    if BACKEND_NAME in (fields.get(FIELD) or {}):
        found[f"{FIELD}.{BACKEND_NAME}"] = fields[FIELD][BACKEND_NAME]
    found |= _in_metadata(fields)
    moved = _taken_out(fields) | _taken_from_name(fields, served_name)
    options = _checked(found | moved)
    if options and options.get(REPORT):
        fields[REPORT] = True
    is_changed = moved or fields.get(REPORT)
    return Said(options, json.dumps(fields).encode() if is_changed else None)


def _object_in(body: bytes) -> Fields | None:
    """The fields of a JSON body that may say something; SGLang answers where it is none."""
    if not any(mark in body for mark in _MARKS):
        return None
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _checked(found: Fields) -> Fields | None:
    options = combined(found)
    if options is not None:
        check_options({BACKEND_NAME: options})
    return options


def _in_metadata(fields: Fields) -> Fields:
    """What the metadata say; they stay, for SGLang repeats them in some replies."""
    metadata = fields.get(METADATA)
    if not isinstance(metadata, dict) or BACKEND_NAME not in metadata:
        return {}
    place, value = f"{METADATA}.{BACKEND_NAME}", metadata[BACKEND_NAME]
    return {place: _parsed(value, place) if isinstance(value, str) else value}


def _taken_out(fields: Fields) -> Fields:
    """Take options out of the objects that SGLang would give to a template or a session."""
    found = {}
    for name in PASSED_ON:
        inner = fields.get(name)
        if isinstance(inner, dict) and BACKEND_NAME in inner:
            found[f"{name}.{BACKEND_NAME}"] = inner.pop(BACKEND_NAME)
            fields[name] = inner or None
    return found


def _taken_from_name(fields: Fields, served_name: str) -> Fields:
    """Take a policy out of the model's name, ``MODEL@POLICY`` or ``MODEL@POLICY:ADAPTER``."""
    model = fields.get("model")
    if not isinstance(model, str) or model == served_name:
        return {}
    name, is_alias, rest = model.rpartition(ALIAS)
    policy, colon, adapter = rest.partition(":")
    if not is_alias or (policy not in policies() and name != served_name):
        return {}
    if policy not in policies():
        raise ValueError(f"model={quoted(model)}: after {ALIAS} stands one of {', '.join(policies())}")
    fields["model"] = name + colon + adapter
    return {"model": {"policy": policy}}


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{place}={quoted(text)} must be JSON, such as {{"enabled": false}}') from error


def _header(scope: Scope) -> str | None:
    values = [value for name, value in scope["headers"] if name == HEADER.lower().encode()]
    return b", ".join(values).decode("latin-1") if values else None


def _with_length(scope: Scope, length: int) -> Scope:
    others = [
        pair for pair in scope["headers"] if pair[0] not in (b"content-length", b"transfer-encoding")
    ]
    return {**scope, "headers": [*others, (b"content-length", str(length).encode())]}
