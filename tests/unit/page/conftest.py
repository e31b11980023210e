"""A stand-in for SGLang that streams what a test wrote, and the page in front of it."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from sgl_dynts.page.app import create_app

WINDOWS = {"budget": 12, "local_window": 4, "keep_ratio": 0.5}
QUESTION_LEN = 4


@dataclass
class Script:
    """What the stand-in says: texts of a token each, and which positions fall when one is written."""

    texts: list[str] = field(default_factory=list)
    drops: dict[int, list[int]] = field(default_factory=dict)
    refusal: str | None = None
    endless: bool = False
    asked: list[dict] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)

    def score(self, position: int) -> float:
        return float((position * 7) % 10)

    def parts(self) -> Iterator[dict]:
        """Every part of the reply, in the words of ``/generate``."""
        dropped: list[dict] = []
        for count in range(1, len(self.texts) + 1):
            seen = QUESTION_LEN + count - 1
            if count in self.drops:
                dropped.append({"seq_len": seen, "positions": self.drops[count]})
            gone = sum(len(drop["positions"]) for drop in dropped)
            numbers = {
                "question_len": QUESTION_LEN,
                "window_len": seen - gone,
                "dropped_tokens": gone,
                "compactions": len(dropped),
                "budget": WINDOWS["budget"],
                "tokens": {
                    "first": 0,
                    "scores": [self.score(position) for position in range(seen)],
                    "dropped": list(dropped),
                },
            }
            finish = {"type": "stop"} if count == len(self.texts) and not self.endless else None
            counts = {"prompt_tokens": QUESTION_LEN, "completion_tokens": count}
            meta = {**counts, "finish_reason": finish, "dynts": numbers}
            yield {"text": "".join(self.texts[:count]), "meta_info": meta}


def stand_in(script: Script) -> FastAPI:
    app = FastAPI()

    @app.get("/dynts/health")
    async def health() -> dict:
        return {"windows": WINDOWS, "predictor": None}

    @app.get("/v1/models")
    async def models() -> dict:
        return {"data": [{"id": "a-model"}]}

    @app.post("/v1/tokenize")
    async def tokenize() -> dict:
        return {"tokens": list(range(QUESTION_LEN))}

    @app.post("/generate")
    async def generate(request: Request):
        script.asked.append(await request.json())
        if script.refusal is not None:
            return JSONResponse({"error": {"message": script.refusal}}, 400)
        return StreamingResponse(stream(), media_type="text/event-stream")

    async def stream() -> AsyncIterator[str]:
        try:
            for part in script.parts():
                yield f"data: {json.dumps(part)}\n\n"
            while script.endless:
                await asyncio.sleep(0.05)
                yield ": still here\n\n"
            yield "data: [DONE]\n\n"
        finally:
            if script.endless:
                script.hung_up.set()

    return app


class Running:
    """An application that is served on a free loopback port until it is stopped."""

    def __init__(self, app: FastAPI) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(30)
        self._socket.close()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def page_url(script) -> Iterator[str]:
    """The address of a page whose server is the stand-in."""
    sglang = Running(stand_in(script))
    client = httpx.AsyncClient(base_url=sglang.url, trust_env=False)
    page = Running(create_app(client, ["127.0.0.1"], "From the command line"))
    yield page.url
    page.stop()
    sglang.stop()
