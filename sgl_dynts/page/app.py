"""The page's own server: files for the browser, and one way through to SGLang.

It speaks HTTP to the server that it was told of and to no other, keeps the API key to itself, and
answers only requests that name it by an expected host, so that no foreign site reaches it through a
visitor's browser.
"""

import json
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from sgl_dynts.harness.client import parse_event
from sgl_dynts.page.replies import Follower, ServerError

STATIC = Path(__file__).parent / "static"
LONGEST_QUESTION = 200_000
"""Characters."""
MOST_TOKENS = 131_072
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
POLICY += "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
LINES = "application/x-ndjson"


class Question(BaseModel):
    """What the browser asks; fields that are left out are the server's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str = Field(min_length=1, max_length=LONGEST_QUESTION)
    max_new_tokens: int = Field(default=2000, ge=1, le=MOST_TOKENS)
    temperature: float = Field(default=0, ge=0, le=2)
    enabled: bool = True
    budget: int | None = None
    local_window: int | None = None
    keep_ratio: float | None = None

    def options(self) -> dict[str, Any]:
        """Return what goes under ``custom_params.dynts``."""
        windows = self.model_dump(include={"budget", "local_window", "keep_ratio"}, exclude_none=True)
        return {"enabled": self.enabled, "return_tokens": True} | windows

    def body(self, input_ids: list[int]) -> dict[str, Any]:
        """Return the request to ``/generate``."""
        sampling = {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "skip_special_tokens": False,
            "custom_params": {"dynts": self.options()},
        }
        return {"input_ids": input_ids, "sampling_params": sampling, "stream": True}


def create_app(server: httpx.AsyncClient, hosts: Sequence[str], question: str = "") -> FastAPI:
    """Build the page.

    Args:
        server: talks to SGLang; its base URL and headers are the only ones ever used.
        hosts: names and addresses that the page is reached by.
        question: what stands in the box at first.
    """
    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.middleware("http")
    async def forbid_foreign_content(request, call_next) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.get("/")
    async def index() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/server")
    async def describe() -> dict[str, Any]:
        health = await _get(server, "/dynts/health")
        models = await _get(server, "/v1/models")
        return {
            "model": models["data"][0]["id"],
            "windows": health["windows"],
            "predictor": health["predictor"],
            "question": question,
        }

    @app.post("/ask")
    async def ask(asked: Question) -> StreamingResponse:
        ids = await _tokenize(server, asked.question)
        request = server.build_request("POST", "/generate", json=asked.body(ids))
        response = await _send(server, request, stream=True)
        return StreamingResponse(_follow(response), media_type=LINES)

    return app


async def _follow(response: httpx.Response) -> AsyncIterator[str]:
    """Yield a JSON line per part; ends SGLang's request when the browser hangs up."""
    follower = Follower()
    try:
        async for line in response.aiter_lines():
            part = parse_event(line)
            if part is not None:
                yield json.dumps(follower.follow(part)) + "\n"
    except (ServerError, httpx.HTTPError) as error:
        yield json.dumps({"error": str(error) or type(error).__name__}) + "\n"
    finally:
        await response.aclose()


async def _tokenize(server: httpx.AsyncClient, question: str) -> list[int]:
    """Let the server put the question into the model's chat template."""
    body = {"messages": [{"role": "user", "content": question}], "add_generation_prompt": True}
    response = await _send(server, server.build_request("POST", "/v1/tokenize", json=body))
    return response.json()["tokens"]


async def _get(server: httpx.AsyncClient, path: str) -> dict[str, Any]:
    return (await _send(server, server.build_request("GET", path))).json()


async def _send(
    server: httpx.AsyncClient, request: httpx.Request, stream: bool = False
) -> httpx.Response:
    """Send a request; what the server refuses is refused here with its words and its status.

    Raises:
        HTTPException: 502 where the server cannot be reached.
    """
    try:
        response = await server.send(request, stream=stream)
        if response.is_error:
            await response.aread()
    except httpx.HTTPError as error:
        raise HTTPException(
            HTTPStatus.BAD_GATEWAY, f"no SGLang server at {request.url}: {error!r}"
        ) from error
    if response.is_error:
        raise HTTPException(response.status_code, _reason(response))
    return response


def _reason(response: httpx.Response) -> str:
    try:
        said = response.json()
    except ValueError:
        return response.text
    error = said.get("error", said) if isinstance(said, dict) else said
    return str(error.get("message", error) if isinstance(error, dict) else error)
