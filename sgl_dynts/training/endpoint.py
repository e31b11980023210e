"""Asks a server for completions over HTTP: SGLang's own interface, or OpenAI's with token ids."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

SECONDS = 3600.0
TRIES = 4
FIRST_PAUSE = 1.0
"""Seconds before a server that did not answer is asked again; doubled each time."""
APIS = ("sglang", "openai", "openai-text")
"""SGLang's ``/generate``; ``/v1/completions`` that returns token ids (SGLang, vLLM); or text alone."""
BUSY = (429, 502, 503, 504)
FULL_CACHE = {"dynts": {"enabled": False}}
"""``custom_params`` with which SGLang drops nothing."""


class EndpointError(RuntimeError):
    """The server cannot be used; says what it answered and what to do."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; ``top_k`` 0 means all."""

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 20
    max_new_tokens: int = 16384


SAMPLING = Sampling()


class Prompted(Protocol):
    """What is asked: token ids of a prompt, and how they are continued."""

    @property
    def prompt(self) -> list[int]:
        """Token ids."""
        ...

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        ...


@dataclass(frozen=True)
class Completion:
    """What a server generated: ``ids`` is None where it gives text alone; ``is_cut``: by its length."""

    ids: list[int] | None
    text: str
    is_cut: bool


class Endpoint:
    """One model of one server.

    Args:
        url: of the server, without a path.
        api: one of `APIS`.
        model: the name that the server knows it by; OpenAI's interface needs it.
        key: sent as a bearer token, if given.
        custom_params: passed on to SGLang.
    """

    def __init__(
        self, url: str, api: str, model: str, key: str | None, custom_params: dict[str, Any]
    ) -> None:
        self.url = url.rstrip("/")
        self.api = api
        self.model = model
        self.custom_params = custom_params
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=None)
        timeout = httpx.Timeout(SECONDS, connect=10)
        self._http = httpx.AsyncClient(timeout=timeout, headers=headers, limits=limits)

    async def close(self) -> None:
        """Give connections back."""
        await self._http.aclose()

    async def complete(self, prompt: list[int], sampling: Sampling) -> Completion:
        """Continue token ids.

        Raises:
            EndpointError: the server refuses, or does not answer several times in a row.
        """
        if self.api == "sglang":
            return _from_sglang(await self._post("/generate", self._sglang_body(prompt, sampling)))
        return _from_openai(await self._post("/v1/completions", self._openai_body(prompt, sampling)))

    def _sglang_body(self, prompt: list[int], sampling: Sampling) -> dict[str, Any]:
        params = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_new_tokens": sampling.max_new_tokens,
            "custom_params": self.custom_params,
        }
        if sampling.top_k:
            params["top_k"] = sampling.top_k
        return {"input_ids": prompt, "sampling_params": params}

    def _openai_body(self, prompt: list[int], sampling: Sampling) -> dict[str, Any]:
        body = {
            "model": self.model,
            "prompt": prompt,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
        }
        if self.api == "openai":
            body |= {"return_token_ids": True, "skip_special_tokens": False}
            body |= {"top_k": sampling.top_k} if sampling.top_k else {}
        return body

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        pause, problem = FIRST_PAUSE, ""
        for _ in range(TRIES):
            try:
                reply = await self._http.post(self.url + path, json=body)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__} {error}".strip()
            else:
                if reply.status_code == httpx.codes.OK:
                    return reply.json()
                problem = f"HTTP {reply.status_code}: {reply.text[:500]}"
                if reply.status_code not in BUSY:
                    raise EndpointError(f"{self.url}{path} refused a request: {problem}")
            await asyncio.sleep(pause)
            pause *= 2
        raise EndpointError(
            f"{self.url}{path} failed {TRIES} times: {problem}; is the server there? "
            "Start it and give the same command to go on"
        )


@contextmanager
def asking(endpoint: Endpoint) -> Iterator[Callable[[Prompted], Future[Completion]]]:
    """Give a function that asks in a thread beside; whatever is under way in the end is given up."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def ask(prompted: Prompted) -> Future[Completion]:
        answer = endpoint.complete(prompted.prompt, prompted.sampling)
        return asyncio.run_coroutine_threadsafe(answer, loop)

    try:
        yield ask
    finally:
        asyncio.run_coroutine_threadsafe(_give_up(endpoint), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _give_up(endpoint: Endpoint) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await endpoint.close()


def _from_sglang(reply: dict[str, Any]) -> Completion:
    return Completion(
        reply["output_ids"], reply["text"], reply["meta_info"]["finish_reason"]["type"] == "length"
    )


def _from_openai(reply: dict[str, Any]) -> Completion:
    choice = reply["choices"][0]
    return Completion(choice.get("token_ids"), choice["text"], choice["finish_reason"] == "length")
