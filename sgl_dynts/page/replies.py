"""A reply of SGLang that grows, as the parts that a browser draws; no network and no framework."""

from dataclasses import dataclass
from typing import Any


class ServerError(RuntimeError):
    """The server refused, or ended a reply with an error; the message is what it said."""


@dataclass
class Follower:
    """Turns the parts of one reply, each of them whole, into what is new in each."""

    num_chars: int = 0
    num_tokens: int = 0

    def follow(self, part: dict[str, Any]) -> dict[str, Any]:
        """Return what a part adds.

        Args:
            part: an object that ``/generate`` streams, of a request with ``return_tokens``.

        Returns:
            text: what was written since the last part.
            first, end: the positions in the sequence that it was written by, ``end`` excluded.
            held, seen: KV tokens held now, and what the full cache would hold.
            budget: of the request, None where DynTS is off for it.
            question_len, compactions, tokens, finish: as the server says them.

        Raises:
            ServerError: the part tells of an error.
        """
        if "error" in part:
            raise ServerError(part["error"].get("message", "the server gave no reason"))
        meta, numbers = part["meta_info"], part["meta_info"]["dynts"]
        text = part["text"][self.num_chars :]
        first = meta["prompt_tokens"] + self.num_tokens
        self.num_chars += len(text)
        self.num_tokens = meta["completion_tokens"]
        end = meta["prompt_tokens"] + self.num_tokens
        return {
            "text": text,
            "first": first,
            "end": end,
            "held": numbers["window_len"],
            "seen": max(numbers["window_len"], end - 1),
            "budget": numbers.get("budget"),
            "question_len": numbers["question_len"],
            "compactions": numbers["compactions"],
            "tokens": numbers["tokens"],
            "finish": meta["finish_reason"],
        }
