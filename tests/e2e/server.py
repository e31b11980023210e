"""The real SGLang server in a process of its own, on a free loopback port, ended by its own pid."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmark.served import end, free_port

STRICT = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
    "SGLANG_CPU_OMP_THREADS_BIND": "1" if (os.cpu_count() or 1) > 1 else "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}
START_SECONDS = 900  # a busy machine, or a GPU whose kernels are compiled at the first start
LAUNCH_SERVER = (sys.executable, "-m", "sglang.launch_server")
SGLANG_SERVE = (str(Path(sys.executable).with_name("sglang")), "serve")


class RefusedError(AssertionError):
    """The server ended instead of starting; the message is its log."""


class Server:
    def __init__(
        self,
        model: Path,
        log: Path,
        *flags: str,
        command: Sequence[str] = LAUNCH_SERVER,
        **environment: str,
    ) -> None:
        self.port = free_port()
        self.log = log
        self.has_dynts = "dynts" in flags or "--enable-dynts" in flags
        self.headers = {"Content-Type": "application/json"}
        if "--api-key" in flags:
            self.headers["Authorization"] = f"Bearer {flags[flags.index('--api-key') + 1]}"
        words = [*command, "--model-path", str(model)]
        words += ["--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32"]
        words += ["--mem-fraction-static", "0.1", "--skip-server-warmup", *flags]
        if "--max-total-tokens" not in flags:
            words += ["--max-total-tokens", "4000"]
        with log.open("w") as out:
            self.process = subprocess.Popen(
                words,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | STRICT | environment,
                start_new_session=True,
            )

    def wait_ready(self) -> "Server":
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RefusedError(self.log.read_text()[-20000:])
            try:
                urllib.request.urlopen(self.url("/health"), timeout=5)
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
            else:
                return self
        self.stop()
        raise RefusedError(self.log.read_text()[-20000:])

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server by its pid, then whatever is left of its process group."""
        end(self.process)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def request(self, path: str, body: dict | None = None, timeout: float = 300) -> Any:
        with self._open(path, body, timeout) as reply:
            text = reply.read().decode()
        return json.loads(text) if text.startswith(("{", "[")) else text

    def _open(self, path: str, body: dict | None, timeout: float) -> Any:
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.urlopen(
            urllib.request.Request(self.url(path), data, self.headers), timeout=timeout
        )

    def error(self, path: str, body: dict) -> tuple[int, str]:
        """HTTP status and body of a request that must fail."""
        try:
            reply = self.request(path, body)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        raise AssertionError(f"accepted: {reply}")

    def generate(self, prompt: list[int], length: int, dynts: dict | None = None, **extra) -> dict:
        """Greedy tokens of this length; a server with DynTS also tells where it compacted."""
        return self.request("/generate", self._body(prompt, length, dynts, extra))

    def stream(
        self, prompt: list[int], length: int, dynts: dict | None = None, **extra
    ) -> Iterator[dict]:
        """What :meth:`generate` gives, as it grows: an object per token, fewer if read slowly."""
        body = self._body(prompt, length, dynts, {"stream": True} | extra)
        with self._open("/generate", body, timeout=300) as reply:
            for line in reply:
                text = line.decode().removeprefix("data:").strip()
                if text and text != "[DONE]":
                    yield json.loads(text)

    def _body(self, prompt: list[int], length: int, dynts: dict | None, extra: dict) -> dict:
        params = {"max_new_tokens": length, "temperature": 0, "ignore_eos": True}
        params |= extra.pop("sampling_params", {})
        if dynts is not None or self.has_dynts:
            params["custom_params"] = {"dynts": {"return_compactions": True} | (dynts or {})}
        return {"input_ids": prompt, "sampling_params": params, **extra}

    def generate_all(self, jobs: list[dict]) -> list[dict]:
        """Run keyword sets of :meth:`generate` at once, results in the same order."""
        with ThreadPoolExecutor(len(jobs)) as pool:
            return list(pool.map(lambda job: self.generate(**job), jobs))

    def used_tokens(self) -> int:
        loads = self.request("/v1/loads?include=all")["loads"]
        return sum(load["num_used_tokens"] for load in loads)

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
