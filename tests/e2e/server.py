"""The real SGLang server as the tests start it: strict with its books, small, quick to ask."""

import sys
import time
import urllib.error
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sgl_dynts.harness import server as harness
from sgl_dynts.harness.server import LAUNCH_SERVER, ServerError
from tests.warm import Warm

STRICT = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
    **harness.one_thread(),
}
RETRACTING = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "40"}
ROOM = "0.5"
"""Of memory: SGLang counts what other programs take meanwhile as weights. The pools are small."""
SGLANG_SERVE = (str(Path(sys.executable).with_name("sglang")), "serve")


class RefusedError(AssertionError):
    """The server ended instead of starting; the message is its log."""


class Asked(ABC):
    """What clients send requests to: a server, or several that are as one."""

    @abstractmethod
    def request(self, path: str, body: dict | None = None) -> Any: ...

    @abstractmethod
    def stream_of(self, body: dict) -> Iterator[dict]:
        """What ``/generate`` sends of this body, as it grows."""

    @abstractmethod
    def body(self, prompt: list[int], length: int, dynts: dict | None, extra: dict) -> dict:
        """The body of :meth:`generate`."""

    def error(self, path: str, body: dict) -> tuple[int, str]:
        """HTTP status and body of a request that must fail."""
        try:
            reply = self.request(path, body)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        raise AssertionError(f"accepted: {reply}")

    def generate(self, prompt: list[int], length: int, dynts: dict | None = None, **extra: Any) -> dict:
        """Greedy tokens of this length; a server with DynTS also tells where it compacted."""
        return self.request("/generate", self.body(prompt, length, dynts, extra))

    def stream(
        self, prompt: list[int], length: int, dynts: dict | None = None, **extra: Any
    ) -> Generator[dict, None, None]:
        """What :meth:`generate` gives, as it grows: an object per token, fewer if read slowly."""
        yield from self.stream_of(self.body(prompt, length, dynts, extra))

    def generate_all(self, jobs: list[dict], at_once: int | None = None) -> list[dict]:
        """Run keyword sets of :meth:`generate`, all or so many at once; results in the same order."""
        with ThreadPoolExecutor(at_once or len(jobs)) as pool:
            return list(pool.map(lambda job: self.generate(**job), jobs))


class Server(Asked, harness.Server):
    def __init__(
        self,
        model: Path,
        log: Path,
        *flags: str,
        command: Sequence[str] = LAUNCH_SERVER,
        **environment: str,
    ) -> None:
        self.has_dynts = "dynts" in flags or "--enable-dynts" in flags
        headers = {}
        if "--api-key" in flags:
            headers["Authorization"] = f"Bearer {flags[flags.index('--api-key') + 1]}"
        words = ["--model-path", str(model), "--dtype", "float32"]
        words += ["--mem-fraction-static", ROOM, "--skip-server-warmup", "--sleep-on-idle", *flags]
        if "--max-total-tokens" not in flags:
            words += ["--max-total-tokens", "4000"]
        variables = STRICT | environment
        super().__init__(words, log, environment=variables, command=command, headers=headers)

    def wait_ready(self) -> "Server":
        try:
            self.wait()
        except ServerError as error:
            self.stop()
            how = str(error).split(";")[0]
            raise RefusedError(f"{self.log.read_text()[-20000:]}\n{how}") from error
        return self

    def __enter__(self) -> "Server":
        return self

    def url(self, path: str) -> str:
        return self.client.url + path

    def request(self, path: str, body: dict | None = None, timeout: float = 300) -> Any:
        return self.client.call(path, body, timeout)

    def stream_of(self, body: dict) -> Iterator[dict]:
        return self.client.stream("/generate", body, timeout=300)

    def body(self, prompt: list[int], length: int, dynts: dict | None, extra: dict) -> dict:
        params = {"max_new_tokens": length, "temperature": 0, "ignore_eos": True}
        params |= extra.pop("sampling_params", {})
        if dynts is not None or self.has_dynts:
            params["custom_params"] = {"dynts": {"return_compactions": True} | (dynts or {})}
        return {"input_ids": prompt, "sampling_params": params, **extra}

    def used_tokens(self) -> int:
        return sum(load["num_used_tokens"] for load in self.client.loads(timeout=300))

    def assert_nothing_leaked(self) -> None:
        """All slots are free once the tree is flushed; the server checked itself all along."""
        deadline = time.monotonic() + 30
        while self.used_tokens() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert self.used_tokens() == 0
        assert "flushed" in str(self.request("/flush_cache", {})).lower()
        assert self.process.poll() is None
        text = self.log.read_text()
        for sign in ("leak", "hit an exception"):
            assert sign not in text.lower(), text[text.lower().index(sign) :][:3000]


def abort(servers: Iterable[Server], name: str) -> None:
    """End requests whose ids begin like this, wherever they are."""
    for server in servers:
        server.request("/abort_request", {"rid": name})


class WarmServer(Server):
    """One that starts in seconds, as a copy of a process that has imported SGLang."""

    def __init__(self, warm: Warm, model: Path, log: Path, *flags: str, **options: Any) -> None:
        self._warm = warm
        super().__init__(model, log, *flags, **options)

    def launch(self, environment: Mapping[str, str]) -> harness.Process:
        return self._warm.start(self.command[1:], self.log, environment)

    def stop(self) -> None:
        """End it at once: SGLang looks only every five seconds whether it was asked to."""
        self.process.kill()
        super().stop()
