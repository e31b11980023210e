"""A tokenizer with what asking and reading need of it: chat template, markers, longest sequence."""

from typing import Any

from sgl_dynts.markers import find_marker
from sgl_dynts.tasks.graders import grader_of
from sgl_dynts.tasks.problems import Problem
from sgl_dynts.thinking import ThinkMarkers
from sgl_dynts.training.trace_file import fingerprint


class Language:
    """A model's tokenizer, markers and longest sequence.

    Raises:
        ValueError: a marker is not in the vocabulary, or there is no chat template.
    """

    def __init__(
        self,
        folder: str,
        think_start: str = "<think>",
        think_end: str = "</think>",
        max_len: int | None = None,
    ) -> None:
        from transformers import AutoConfig, AutoTokenizer  # not above: a command's --help needs no torch

        self.think_end = think_end
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        if not self.tokenizer.chat_template:
            raise ValueError(f"--model {folder}: its tokenizer has no chat template to ask with")
        self.fingerprint = fingerprint(self.tokenizer.get_vocab())
        self.markers = self._markers(think_start, think_end)
        self.max_len: int = max_len or AutoConfig.from_pretrained(folder).max_position_embeddings

    def _markers(self, start: str, end: str) -> ThinkMarkers:
        opening = self._marker(start, "--think-start")
        closing = self._marker(end, "--think-end")
        if start == end:
            raise ValueError(f"--think-start and --think-end are both {start!r}; name distinct ones")
        openers = find_marker(self.tokenizer, start, opening)
        closers = find_marker(self.tokenizer, end, closing)
        return ThinkMarkers(opening, closing, (openers,), (closers,))

    def _marker(self, text: str, flag: str) -> tuple[int, ...]:
        ids = self.encode(text)
        if not ids or self.tokenizer.unk_token_id in ids:
            raise ValueError(
                f"{flag}: {text!r} is not in the vocabulary of {self.tokenizer.name_or_path}; name the "
                f"model's own marker with {flag}. A model without any has no thinking to train on"
            )
        return ids

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text as it stands."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def prompt(self, problem: Problem) -> list[int]:
        """Return the ids of a question in the chat template, ready to be answered."""
        return asked_in_chat(self.tokenizer, grader_of(problem).ask(problem))

    def agrees(self, ids: list[int], text: str) -> bool:
        """Whether a server's text is what its ids mean here, spaces and broken characters aside."""
        meanings = (self.tokenizer.decode(ids, skip_special_tokens=skip) for skip in (True, False))
        return _bare(text) in map(_bare, meanings)

    def answer(self, ids: list[int]) -> str:
        """Return the text after the last end of thinking, all of it where there is none."""
        text = self.tokenizer.decode(ids)
        if self.think_end not in text:
            return self.decode(ids).strip()
        after = self.tokenizer(text.rpartition(self.think_end)[2], add_special_tokens=False)
        return self.decode(after["input_ids"]).strip()


def asked_in_chat(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of what a user says in a tokenizer's chat template, ready to be answered."""
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )


def _bare(text: str) -> str:
    return "".join(text.replace("\ufffd", "").split())
