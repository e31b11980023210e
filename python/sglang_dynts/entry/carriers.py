"""Where a request may say its options, other than where SGLang passes them on by itself.

Several endpoints accept ``custom_params`` at the top of a body and forget it, and routers pass on only
the fields that they know. So each request is read before its endpoint reads it. What it says reaches
``SamplingParams`` through :data:`CARRIED`; what stands where nobody would look is refused with the right
spelling.
"""

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgl_dynts.config import quoted
from sgl_dynts.policies import policies
from sglang_dynts.boot.configuration import is_enabled
from sglang_dynts.entry.front_end import watch
from sglang_dynts.entry.options import CARRIED, NO_EMBEDDINGS, REPORT, check_options, combined
from sglang_dynts.names import BACKEND_NAME

FIELD = "custom_params"
HEADER = "X-DynTS"
ALIAS = "@"
"""Between a model's name and a policy's: ``MODEL@full``."""
PASSED_ON = ("chat_template_kwargs", "session_params")
"""Objects that routers pass on whole; SGLang gives them to the chat template and to its sessions."""
SAMPLING = "sampling_params"
METADATA = "metadata"
"""One that routers pass on whole, too. OpenAI's holds texts, so options may stand there as JSON."""
UNREAD = {
    "extra_body": (FIELD, BACKEND_NAME),
    "options": (FIELD, BACKEND_NAME),
    "parameters": (FIELD, BACKEND_NAME),
    "instances": (FIELD, BACKEND_NAME),
    SAMPLING: (BACKEND_NAME,),
}
"""By objects of a body, or lists of them: what people write into them, and nobody reads there."""
READS_SAMPLING = "/generate"
"""The endpoint whose body has sampling parameters of SGLang's form at its top."""
SPELLING = f'"{FIELD}": {{"{BACKEND_NAME}": {{...}}}}'
OF_ONE_PROMPT = ("top_logprobs_num", "logprob_start_len")
"""Numbers that may be a list for several prompts; SGLang 0.5.23 ends where one prompt has a list."""
EMBEDDINGS = "input_embeds"
NO_JSON = "positional_embed_overrides"
"""A field of SGLang's that holds tensors; it ends where JSON holds it."""
_MARKS = (
    FIELD.encode(),
    BACKEND_NAME.encode(),
    ALIAS.encode(),
    b"\\u",
    *map(str.encode, (*OF_ONE_PROMPT, EMBEDDINGS, NO_JSON)),
)
"""What a body that says something has in it; JSON may write any letter by its number."""

Fields = dict[str, Any]
"""A body's, by name."""


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
    _refuse_misplaced(fields, path)
    _refuse_impossible(fields)
    check_options(fields.get(FIELD))
    for params in _objects(fields.get(SAMPLING)):  # before a stream begins, whose status is 200
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


def _objects(value: Any) -> list[Fields]:
    """An object, or the objects of a list; SGLang answers where it is neither."""
    some = value if isinstance(value, list) else [value]
    return [one for one in some if isinstance(one, dict)]


def _refuse_misplaced(fields: Fields, path: str) -> None:
    places = [BACKEND_NAME] if BACKEND_NAME in fields else []
    unread = UNREAD if path == READS_SAMPLING else UNREAD | {SAMPLING: (FIELD, BACKEND_NAME)}
    for wrapper, names in unread.items():
        for one in _objects(fields.get(wrapper)):
            places += [f"{wrapper}.{name}" for name in names if name in one]
    for wrapper in PASSED_ON:
        of_a_batch = _objects(fields[wrapper]) if isinstance(fields.get(wrapper), list) else []
        places += [f"{wrapper}[].{BACKEND_NAME}" for one in of_a_batch if BACKEND_NAME in one]
    if places:
        raise ValueError(
            f"{places[0]} stands where nobody reads it: write {SPELLING} at the top of the body, or in "
            "sampling_params where the endpoint has them"
        )


def _refuse_impossible(fields: Fields) -> None:
    if is_enabled() and fields.get(EMBEDDINGS) is not None:
        raise ValueError(NO_EMBEDDINGS)
    if fields.get(NO_JSON) is not None:
        raise ValueError(f"{NO_JSON} cannot be sent as JSON; leave it out")
    ids = fields.get("input_ids")
    are_several = isinstance(fields.get("text"), list) or (
        isinstance(ids, list) and list in map(type, ids)
    )
    for name in () if are_several else OF_ONE_PROMPT:
        if isinstance(fields.get(name), list):
            raise ValueError(f"{name}={quoted(fields[name])} of one prompt must be one integer")


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
