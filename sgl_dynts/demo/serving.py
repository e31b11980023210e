"""The server of a demo: started, waited for, asked and ended."""

import shlex
import textwrap
import time
import urllib.error
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgl_dynts.harness.client import LOST
from sgl_dynts.harness.server import HOST, Server, free_port, new_log, unwind_on_sigterm


class DemoError(RuntimeError):
    """The demo cannot go on; the message is for the user."""


@dataclass(frozen=True)
class Reply:
    """What the server answered: the text, its ``meta_info``, and the tokens of the text."""

    text: str
    meta: dict
    output_ids: list[int] = field(default_factory=list)

    @property
    def window(self) -> dict:
        """The request's DynTS numbers."""
        return self.meta["dynts"]

    @property
    def seq_len(self) -> int:
        """Tokens whose KV was computed: held now or dropped."""
        return self.window["window_len"] + self.window["dropped_tokens"]


def flags_of(model: Path, *more: str) -> list[str]:
    """Return the flags of a demo's server, each with its value, and then others."""
    usual = {
        "--model-path": str(model),
        "--attention-backend": "dynts",
        "--max-total-tokens": "4096",
        "--max-running-requests": "8",
        "--mem-fraction-static": "0.5",
    }
    return [*(word for pair in usual.items() for word in pair), *more]


@contextmanager
def serving(
    flags: Sequence[str],
    environment: Mapping[str, str],
    shown: Sequence[str],
    *,
    port: int | None = None,
    keep: bool = False,
) -> Iterator[Server]:
    """Start a server and end it, unless it is to be kept and nothing failed.

    Args:
        flags: of the server, each with its value.
        environment: variables that it gets beside this process's own.
        shown: how lines of its log begin that are printed once it answers.
        port: on loopback; default: a free one.
        keep: leave it running.
    """
    unwind_on_sigterm()
    server = _start(flags, environment, port or free_port())
    try:
        _wait(server, shown)
        yield server
    except LOST as error:
        raise server.failure(f"{error}: {server.fate()}") from error
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            server.stop()
            print("Server ended.")


def _start(flags: Sequence[str], environment: Mapping[str, str], port: int) -> Server:
    log = new_log("sgl_dynts_demo_")
    words = [*flags, "--host", HOST, "--port", str(port)]
    pairs = [shlex.join(words[i : i + 2]) for i in range(0, len(words), 2)]
    shown = " \\\n    ".join(pairs)
    print(f"SGLang with DynTS:\n  python -m sglang.launch_server {shown}\n  log: {log}")
    return Server(flags, log, environment=environment, port=port)


def _wait(server: Server, shown: Sequence[str]) -> None:
    started = time.monotonic()
    server.wait(say=lambda sign: print(f"  {sign}", flush=True))
    print(f"  ready after {time.monotonic() - started:.0f} s at {server.client.url}")
    for line in server.log.read_text(errors="replace").splitlines():
        for start in shown:
            if start in line:
                print(textwrap.indent(textwrap.fill(line[line.index(start) :], 96), "  "))


def generate(
    server: Server, text: str, max_new_tokens: int, dynts: dict[str, Any], **sampling: Any
) -> Iterator[Reply]:
    """Yield the growing reply to a prompt, decoded greedily with these DynTS options.

    Args:
        server: that answers.
        text: the prompt.
        max_new_tokens: where the reply is cut.
        dynts: the request's own options.
        sampling: more parameters of sampling.

    Raises:
        DemoError: the server refused the request, or failed.
    """
    params = {
        "temperature": 0,
        "max_new_tokens": max_new_tokens,
        "custom_params": {"dynts": dynts},
        **sampling,
    }
    try:
        for event in server.client.stream("/generate", {"text": text, "sampling_params": params}):
            if "error" in event:
                raise DemoError(f"the server failed: {event['error']['message']}")
            yield Reply(event["text"], event["meta_info"], event["output_ids"])
    except urllib.error.HTTPError as error:
        raise DemoError(f"the server refused: {error.read().decode(errors='replace')}") from error
