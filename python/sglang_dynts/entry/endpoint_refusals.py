"""Where requests to management endpoints are refused, each with path, reason and remedy.

What raises in SGLang's scheduler ends the server, and SGLang 0.5.23 checks little of what these requests
ask for before it is there. So they are checked here, and get HTTP 400.
"""

import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from sglang.srt.configs.load_config import LoadFormat
from sglang.srt.constants import GPU_MEMORY_ALL_TYPES
from sglang.srt.environ import envs
from sglang.srt.runtime_context import get_device, get_exec, get_parallel, get_serving
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sglang_dynts.boot.configuration import gets_prompts
from sglang_dynts.entry.bodies import read_body, refusal, replay
from sglang_dynts.entry.front_end import watch

Fields = Mapping[str, Any]
"""A body's, by name."""

RELEASE, RESUME = "/release_memory_occupation", "/resume_memory_occupation"
PAUSE, CONTINUE = "/pause_generation", "/continue_generation"
OPEN_GROUP, SEND = "/init_weights_send_group_for_remote_instance", "/send_weights_to_remote_instance"
JOIN_GROUP, FROM_DISK = "/init_weights_update_group", "/update_weights_from_disk"
STORAGE = "/hicache/storage-backend"
PROFILE = "/start_profile"
CUDA_ACTIVITIES = {"MEM", "CUDA_PROFILER"}
LOAD_FORMATS = [
    one.value for one in LoadFormat if one not in (LoadFormat.EXPERT_PACK, LoadFormat.PRIVATE)
]
LONGEST_ENDING = "-TP-000-DP-000-PP-000-EP-000-DECODE.trace.json.gz"
RECORDER = tuple(f"/{verb}_expert_distribution_record" for verb in ("start", "stop", "dump"))


@dataclass
class Past:
    """What this server did before that decides what it can do now."""

    requests: Mapping[str, Any] = field(default_factory=dict)
    """Those that are being served, by id: the tokenizer manager's own."""
    released: set[str] = field(default_factory=set)
    """Tags of memory."""
    groups: set[tuple[str, str]] = field(default_factory=set)
    """Open ones, to send weights: by name and ports."""
    is_retracted: bool = False
    """Whether generation is paused with nothing running."""

    def note(self, path: str, fields: Fields, status: int) -> None:
        """Remember what SGLang answered to a request."""
        if path == SEND:
            self.groups.discard(_group(fields))  # closed, whether it sent or failed
        elif status != HTTPStatus.OK:
            return
        elif path == RELEASE:
            self.released |= _tags(fields)
        elif path == RESUME:
            self.released -= _tags(fields)
        elif path == OPEN_GROUP:
            self.groups.add(_group(fields))
        elif path in (PAUSE, CONTINUE):
            self.is_retracted = path == PAUSE and fields.get("mode") == "retract"


@dataclass(frozen=True)
class EndpointRefusal:
    """Requests to some paths that would raise in the scheduler."""

    paths: tuple[str, ...]
    applies: Callable[[Fields, Past], bool]
    why: str
    remedy: str

    def message(self, path: str) -> str:
        """What to tell the client."""
        return f"{path} is refused: {self.why}; {self.remedy}"


ENDPOINT_REFUSALS = (
    EndpointRefusal(
        RECORDER,
        lambda _fields, _past: get_exec().moe.expert_distribution_recorder_mode is None,
        "this server records no expert distribution",
        "start it with --expert-distribution-recorder-mode stat, and a model that has experts",
    ),
    EndpointRefusal(
        (RELEASE, RESUME, OPEN_GROUP, SEND),
        lambda _fields, _past: get_serving().tokenizer_worker_num > 1,
        "none of several tokenizer workers knows what the others serve and did before",
        "start the server with --tokenizer-worker-num 1",
    ),
    EndpointRefusal(
        (RELEASE, RESUME),
        lambda _fields, _past: not _has_gpu(),
        "only a GPU's memory can be released",
        "leave it out on this machine",
    ),
    EndpointRefusal(
        (PAUSE,),
        lambda fields, _past: gets_prompts() and fields.get("mode") == "retract",
        "a decode server cannot compute what a request thought again",
        'give "mode": "in_place" or "abort"',
    ),
    EndpointRefusal(
        (RESUME,),
        lambda fields, past: not _tags(fields) <= past.released,
        "it names memory that is not released",
        f"name in tags what {RELEASE} released",
    ),
    EndpointRefusal(
        (RELEASE,),
        lambda _fields, past: bool(past.requests) and not past.is_retracted,
        "requests are running",
        f'wait for their end, or call {PAUSE} with "mode": "retract"',
    ),
    EndpointRefusal(
        (OPEN_GROUP, SEND),
        lambda fields, _past: len(_group(fields)[1].split(",")) != get_parallel().tp_size,
        "ports must hold one port for each rank",
        "give as many, with commas between them, as --tp-size says",
    ),
    EndpointRefusal(
        (OPEN_GROUP, JOIN_GROUP),
        lambda fields, _past: not _group(fields)[0],
        "group_name is empty",
        "give a name, or leave it out",
    ),
    EndpointRefusal(
        (SEND,),
        lambda fields, past: _group(fields) not in past.groups,
        "there is no such group",
        f"open it by {OPEN_GROUP}, with these ports and this group_name",
    ),
    EndpointRefusal(
        (FROM_DISK,),
        lambda fields, _past: _load_format(fields) not in LOAD_FORMATS,
        "load_format is none that weights are updated from",
        f"leave it out, or give one of {', '.join(LOAD_FORMATS)}",
    ),
    EndpointRefusal(
        (STORAGE,),
        lambda fields, _past: "hicache_storage_backend" in fields,
        "prefixes in a storage have not been tested yet",
        "keep them on the host, with --enable-hierarchical-cache",
    ),
    EndpointRefusal(
        (PROFILE,),
        lambda fields, _past: not _has_gpu() and bool(CUDA_ACTIVITIES & set(_activities(fields))),
        "the activities MEM and CUDA_PROFILER are CUDA's",
        'give "activities": ["CPU"] on this machine',
    ),
    EndpointRefusal(
        (PROFILE,),
        lambda fields, _past: "activities" in fields and not _profiles_something(fields),
        "none of the activities is one of this machine",
        'give "activities": ["CPU"], or leave them out',
    ),
    EndpointRefusal(
        (JOIN_GROUP,),
        lambda fields, _past: not _is_an_address(fields.get("master_address")),
        "master_address is no address that this machine can resolve",
        "give the name or the IP address of the machine that sends the weights",
    ),
    EndpointRefusal(
        (PROFILE,),
        lambda fields, _past: "RPD" in _activities(fields) and find_spec("rpdTracerControl") is None,
        "the activity RPD needs rpdTracerControl, which is not installed",
        'give "activities": ["CPU", "GPU"]',
    ),
    EndpointRefusal(
        (PROFILE,),
        lambda fields, _past: bool(fields.get("profile_by_stage")) and not fields.get("num_steps"),
        "profile_by_stage counts steps, and num_steps is not given",
        'give "num_steps": 5 or another number',
    ),
    EndpointRefusal(
        (PROFILE,),
        lambda fields, _past: not _can_be_written(fields),
        "the server cannot write the file that output_dir, profile_prefix and profile_id make",
        "name a folder that it can write, and short names without a slash",
    ),
)


def _has_gpu() -> bool:
    return get_device().device == "cuda"


def _tags(fields: Fields) -> set[str]:
    return set(_words(fields.get("tags"))) or set(GPU_MEMORY_ALL_TYPES)


def _group(fields: Fields) -> tuple[str, str]:
    return str(fields.get("group_name", "weight_send_group")), str(fields.get("ports"))


def _load_format(fields: Fields) -> str:
    given = fields.get("load_format")
    return LoadFormat.AUTO.value if given is None else str(given).lower()


def _activities(fields: Fields) -> list[str]:
    return _words(fields.get("activities"))


def _profiles_something(fields: Fields) -> bool:
    """Whether a profile has an activity here; what is no list of them is left to SGLang."""
    here = {"CPU", "GPU", "RPD", *CUDA_ACTIVITIES} if _has_gpu() else {"CPU"}
    return not isinstance(fields["activities"], list) or bool(here & set(_activities(fields)))


def _is_an_address(host: Any) -> bool:
    """Whether a name has an address; what is no text is left to SGLang."""
    if not isinstance(host, str):
        return True
    try:
        return bool(socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return False


def _words(value: Any) -> list[str]:
    """The strings of a list; SGLang answers where it is none."""
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def _can_be_written(fields: Fields) -> bool:
    """Whether a profile's file can be made; what is no text is left to SGLang."""
    folder, prefix, profile_id = (
        str(fields.get(name) or "") for name in ("output_dir", "profile_prefix", "profile_id")
    )
    try:
        path = Path(folder or envs.SGLANG_TORCH_PROFILER_DIR.get()).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(prefix=f"{prefix}-{profile_id}", suffix=LONGEST_ENDING, dir=path):
            return True
    except (OSError, ValueError, RuntimeError):  # a zero byte; a user without a home
        return False


def why_not(path: str, fields: Fields, past: Past) -> str | None:
    """Return the message with which a request is refused, None where it may go on."""
    for one in ENDPOINT_REFUSALS:
        if path in one.paths and one.applies(fields, past):
            return one.message(path)
    return None


def guard_endpoints(_result, manager, *_args, **_kwargs) -> None:
    """AFTER TokenizerManager.__init__: check what management endpoints are asked."""
    watch(EndpointGuard, past=Past(manager.rid_to_state))


WATCHED = {path for one in ENDPOINT_REFUSALS for path in one.paths} | {PAUSE, CONTINUE}


class EndpointGuard:
    """Refuses a request that would end the server, and remembers the others."""

    def __init__(self, app: ASGIApp, past: Past) -> None:
        self.app, self.past = app, past

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path not in WATCHED:
            await self.app(scope, receive, send)
            return
        messages = await read_body(receive)
        fields = fields_of(messages)
        reason = why_not(path, fields, self.past)
        if reason is not None:
            await refusal(reason)(scope, receive, send)
            return

        async def note_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.past.note(path, fields, message["status"])
            await send(message)

        await self.app(scope, replay(messages, receive), note_and_send)


def fields_of(messages: list[Message]) -> Fields:
    """Return the fields of a JSON body, none where it holds no object: then SGLang answers."""
    try:
        fields = json.loads(b"".join(message.get("body", b"") for message in messages))
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
