"""Talks to one server of SGLang's."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

REQUEST_SECONDS = 3600
LOST = (urllib.error.URLError, ConnectionError, TimeoutError)
"""What a request that gets no answer raises; the first also stands for `HTTPError`, which is one."""


class Client:
    """Sends requests to one server.

    Every method raises `urllib.error.HTTPError` where the server refuses, and one of `LOST` where it does
    not answer.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self.url = url.rstrip("/")
        self.headers = {"Content-Type": "application/json", **(headers or {})}

    def call(
        self, path: str, body: dict[str, Any] | None = None, timeout: float = REQUEST_SECONDS
    ) -> Any:
        """Return the JSON that a path answers with, its text if it is none; a body makes it a POST."""
        with self._open(path, body, timeout) as reply:
            text = reply.read().decode()
        return json.loads(text) if text.startswith(("{", "[")) else text

    def stream(
        self, path: str, body: dict[str, Any], timeout: float = REQUEST_SECONDS
    ) -> Iterator[dict[str, Any]]:
        """Yield the objects of an event stream as they come."""
        with self._open(path, {"stream": True, **body}, timeout) as reply:
            for line in reply:
                event = parse_event(line.decode())
                if event is not None:
                    yield event

    def loads(self, timeout: float = 30) -> list[dict[str, Any]]:
        """Return what each data-parallel scheduler says of its requests and its pool."""
        return self.call("/v1/loads?include=all", timeout=timeout)["loads"]

    def is_up(self) -> bool:
        """Whether the server is there."""
        try:
            self.call("/health", timeout=5)
        except LOST:
            return False
        return True

    def _open(self, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self.headers)
        return urllib.request.urlopen(request, timeout=timeout)


def parse_event(line: str) -> dict[str, Any] | None:
    """Return the object of one line of an event stream, None where the line holds none."""
    text = line.removeprefix("data:").strip()
    return json.loads(text) if line.startswith("data:") and text.startswith("{") else None
