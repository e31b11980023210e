"""The tokens of one request that asked for them: their scores, and which compaction dropped which."""

from typing import NotRequired, TypedDict

import numpy as np
import torch

from sgl_dynts.head_sets import HeadMoves

NEWEST = 64
"""Tokens that each part of a stream repeats, so that a client may miss parts and lose nothing."""
DIGITS = 4
"""Significant digits of a reported score."""


class Drop(TypedDict):
    """One compaction: tokens seen by then, and the positions that no head holds any more since it."""

    seq_len: int
    positions: list[int]


class Tokens(TypedDict):
    """What is reported: scores from position ``first`` on, None where there is none, and compactions.

    Where heads hold sets of their own, a score is the mean of those that judged the token; ``held_by`` is
    the share of layers and KV heads that hold it at the end, on this rank.
    """

    first: int
    scores: list[float | None]
    dropped: list[Drop]
    held_by: NotRequired[list[float]]


class TokenLog:
    """Scores and fates by position in the sequence.

    ``held`` [sets, columns] are the positions of the window's first columns, a row for each set of tokens
    that the request has; what stands in later columns came after the last compaction, so it is
    consecutive. ``num_unscored`` tokens at the beginning have no score on this server.
    """

    def __init__(self, num_unscored: int = 0) -> None:
        self._num_unscored = num_unscored
        self._scores: list[float | None] = []
        self._held = np.empty((1, 0), dtype=np.int64)
        self._held_before = self._held
        self._drops: list[Drop] = []

    @property
    def num_scored(self) -> int:
        """Tokens whose scores were read, or which had none."""
        return len(self._scores)

    def positions(self, window_len: int, dropped: int) -> np.ndarray:
        """[sets, window_len] int64: where the tokens of a window stand in the sequence."""
        num_sets, num_held = self._held.shape
        newer = np.arange(num_held + dropped, window_len + dropped)
        return np.concatenate([self._held, np.tile(newer, (num_sets, 1))], axis=1)

    def learn(self, positions: np.ndarray, scores: np.ndarray) -> None:
        """Take note of scores; one that is not finite marks an answer token and changes nothing.

        Args:
            positions: [n] int64, ascending; those not scored yet are consecutive.
            scores: [n] float32.
        """
        missing = int(positions[-1]) + 1 - len(self._scores) if len(positions) else 0
        self._scores += [None] * missing
        for position, score in zip(positions.tolist(), scores.tolist(), strict=True):
            if np.isfinite(score) and position >= self._num_unscored:
                self._scores[position] = float(f"{score:.{DIGITS}g}")

    def learn_by_set(self, positions: np.ndarray, scores: np.ndarray) -> None:
        """Take note of what each set's tokens were judged by, as one mean.

        Args:
            positions: [sets or 1, n] int64; of each set ascending.
            scores: [sets, n] float32.
        """
        each, where = np.unique(np.broadcast_to(positions, scores.shape), return_inverse=True)
        sums = np.bincount(where.ravel(), scores.ravel())
        self.learn(each, sums / np.bincount(where.ravel()))

    def compacted(self, seq_len: int, positions: np.ndarray, columns: np.ndarray) -> None:
        """Take note of a compaction.

        Args:
            seq_len: tokens the request had seen.
            positions: [sets or 1, window_len] of the window before it.
            columns: [sets, kept] int64, the columns whose tokens each set goes on to hold, in order.
        """
        each = np.broadcast_to(positions, (len(columns), positions.shape[1]))
        held = np.take_along_axis(each, columns, 1)
        self._held_before, self._held = self._held, held
        self._drops.append({"seq_len": seq_len, "positions": np.setdiff1d(positions, held).tolist()})

    def undo(self) -> None:
        """Forget the last compaction."""
        self._held = self._held_before
        self._drops.pop()

    def restart(self) -> None:
        """Forget all: the request lost its KV and will compute all of it again."""
        self._held = self._held_before = np.empty((1, 0), dtype=np.int64)
        self._drops.clear()
        self._scores.clear()

    def whole(self) -> Tokens:
        """Return everything."""
        tokens: Tokens = {"first": 0, "scores": list(self._scores), "dropped": list(self._drops)}
        if len(self._held) > 1:
            tokens["held_by"] = self._shares()
        return tokens

    def newest(self) -> Tokens:
        """Return the newest scores and the compactions that came while these tokens did."""
        first = max(0, len(self._scores) - NEWEST)
        dropped = [drop for drop in self._drops if drop["seq_len"] > first]
        return {"first": first, "scores": self._scores[first:], "dropped": dropped}

    def _shares(self) -> list[float]:
        """The share of sets that hold each token; all hold what came since the last compaction."""
        counts = np.bincount(self._held.ravel(), minlength=len(self._scores))[: len(self._scores)]
        shares = counts / len(self._held)
        shares[int(self._held.max()) + 1 :] = 1.0
        return [float(f"{share:.{DIGITS}g}") for share in shares.tolist()]


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
    positions = log.positions(len(row), dropped)[0, :-1]
    log.learn(positions, scores[row[:-1].long()].cpu().numpy())


def read_by_head(
    log: TokenLog, scores: torch.Tensor, fixed: torch.Tensor, window_len: int, first: int, dropped: int
) -> None:
    """Read the scores that a compaction with a set per head judges by; waits for the device.

    Args:
        log: of the request.
        scores: [layers, heads, n] float32, of the candidates in every head's own columns.
        fixed: [n] bool, candidates that are answers.
        window_len: tokens that the request holds.
        first: column of the first candidate.
        dropped: tokens the request has dropped.
    """
    num = scores.shape[-1]
    positions = log.positions(window_len, dropped)
    judged = scores.reshape(-1, num)[:, ~fixed].cpu().numpy()
    log.learn_by_set(positions[:, first : first + num][:, (~fixed).cpu().numpy()], judged)


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
    log.compacted(seq_len, log.positions(len(before), dropped), np.flatnonzero(survives)[None])


def note_moves(
    log: TokenLog, moves: HeadMoves, window_len: int, first: int, dropped: int, seq_len: int
) -> None:
    """Take note of what each head goes on to hold; waits for the device.

    Args:
        log: of the request.
        moves: of its compaction.
        window_len: tokens that it held.
        first: column of the first candidate.
        dropped: tokens the request had dropped before it.
        seq_len: tokens the request has seen.
    """
    order = moves.targets.argsort()
    chosen = first + moves.sources[:, :, order].flatten(0, 1).cpu().numpy()
    question, newest = np.arange(first), np.arange(first + len(moves.slots), window_len)
    always = [np.tile(columns, (len(chosen), 1)) for columns in (question, newest)]
    columns = np.concatenate([always[0], chosen, always[1]], axis=1)
    log.compacted(seq_len, log.positions(window_len, dropped), columns)
