"""The tokens of one request that asked for them: their scores, and which compaction dropped which."""

from typing import TypedDict

import numpy as np
import torch

NEWEST = 64
"""Tokens that each part of a stream repeats, so that a client may miss parts and lose nothing."""
DIGITS = 4
"""Significant digits of a reported score."""


class Drop(TypedDict):
    """One compaction: tokens seen by then, and the positions that it dropped."""

    seq_len: int
    positions: list[int]


class Tokens(TypedDict):
    """What is reported: scores from position ``first`` on, None where there is none, and compactions."""

    first: int
    scores: list[float | None]
    dropped: list[Drop]


class TokenLog:
    """Scores and fates by position in the sequence.

    ``held`` are the positions of the window's first columns; what stands in later columns came after the
    last compaction, so it is consecutive.
    """

    def __init__(self) -> None:
        self._scores: list[float | None] = []
        self._held = np.empty(0, dtype=np.int64)
        self._held_before = self._held
        self._drops: list[Drop] = []

    @property
    def num_scored(self) -> int:
        """Tokens whose scores were read, or which had none."""
        return len(self._scores)

    def positions(self, window_len: int, dropped: int) -> np.ndarray:
        """[window_len] int64: where the tokens of a window stand in the sequence."""
        newer = np.arange(len(self._held) + dropped, window_len + dropped)
        return np.concatenate([self._held, newer])

    def learn(self, positions: np.ndarray, scores: np.ndarray) -> None:
        """Take note of scores; one that is not finite marks an answer token and changes nothing.

        Args:
            positions: [n] int64, ascending; those not scored yet are consecutive.
            scores: [n] float32.
        """
        missing = int(positions[-1]) + 1 - len(self._scores) if len(positions) else 0
        self._scores += [None] * missing
        for position, score in zip(positions.tolist(), scores.tolist(), strict=True):
            if np.isfinite(score):
                self._scores[position] = float(f"{score:.{DIGITS}g}")

    def compacted(self, seq_len: int, positions: np.ndarray, survives: np.ndarray) -> None:
        """Take note of a compaction.

        Args:
            seq_len: tokens the request had seen.
            positions: [window_len] of the window before it.
            survives: [window_len] bool.
        """
        self._held_before, self._held = self._held, positions[survives]
        self._drops.append({"seq_len": seq_len, "positions": positions[~survives].tolist()})

    def undo(self) -> None:
        """Forget the last compaction."""
        self._held = self._held_before
        self._drops.pop()

    def restart(self) -> None:
        """Forget all: the request lost its KV and will compute all of it again."""
        self._held = self._held_before = np.empty(0, dtype=np.int64)
        self._drops.clear()
        self._scores.clear()

    def whole(self) -> Tokens:
        """Return everything."""
        return {"first": 0, "scores": list(self._scores), "dropped": list(self._drops)}

    def newest(self) -> Tokens:
        """Return the newest scores and the compactions that came while these tokens did."""
        first = max(0, len(self._scores) - NEWEST)
        dropped = [drop for drop in self._drops if drop["seq_len"] > first]
        return {"first": first, "scores": self._scores[first:], "dropped": dropped}


def read_new(log: TokenLog, row: torch.Tensor, scores: torch.Tensor, dropped: int, seq_len: int) -> None:
    """Read the scores of the tokens that came since the last look; waits for the device.

    Args:
        log: of the request.
        row: its slots; the columns of these tokens are as they were born.
        scores: [num_slots] float32, of every slot.
        dropped: tokens the request has dropped.
        seq_len: tokens whose forward is done.
    """
    first = log.num_scored
    if first < seq_len:
        slots = row[first - dropped : seq_len - dropped].long()
        log.learn(np.arange(first, seq_len), scores[slots].cpu().numpy())


def read_window(log: TokenLog, row: torch.Tensor, scores: torch.Tensor, dropped: int) -> None:
    """Read the scores that a compaction is about to judge by; waits for the device.

    Args:
        log: of the request.
        row: [window_len] its slots; the newest may still be in computation and is left out.
        scores: [num_slots] float32, of every slot.
        dropped: tokens the request has dropped.
    """
    positions = log.positions(len(row), dropped)[:-1]
    log.learn(positions, scores[row[:-1].long()].cpu().numpy())


def note_compaction(
    log: TokenLog, before: torch.Tensor, after: torch.Tensor, dropped: int, seq_len: int
) -> None:
    """Find what a compaction dropped; waits for the device.

    Args:
        log: of the request.
        before: [window_len] its slots before it.
        after: [fewer] its slots after it.
        dropped: tokens the request had dropped before it.
        seq_len: tokens the request has seen.
    """
    survives = torch.isin(before, after).cpu().numpy()
    log.compacted(seq_len, log.positions(len(before), dropped), survives)
