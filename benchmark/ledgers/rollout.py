"""Greedy generation under a policy that decides which tokens' KV a request still holds.

A batch of problems of one length runs in lockstep. Dropping is a mask over a cache that keeps all
positions: exactly what a dropped token means for the model, at no gain in memory or speed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmark.ledgers.model import DemoModel, KVCache
from sgl_dynts.config import DynTSConfig
from sgl_dynts.selection import select_kept

FREE = -1
"""In place of a token that is not forced."""
ScoreFn = Callable[[Tensor, int], Tensor]
"""(hidden [b, d] of the token just read, its position) -> scores [b] float32."""


@dataclass
class HeldTokens:
    """Which positions each request of a batch holds.

    ``held`` [b, capacity] bool; ``thinking`` [b] bool, True until a request has written the end of
    its thinking; ``question_len`` is common to the batch.
    """

    held: Tensor
    thinking: Tensor
    question_len: int

    def lengths(self) -> Tensor:
        """Return the tokens held per request: [b] int64."""
        return self.held.sum(1)


class FullPolicy:
    """Hold everything."""

    def after_token(self, windows: HeldTokens, hidden: Tensor, position: int) -> None:
        """Drop nothing."""


@dataclass
class RecentPolicy:
    """Hold the question and the newest tokens, `budget` together with the token being read."""

    budget: int

    def after_token(self, windows: HeldTokens, hidden: Tensor, position: int) -> None:
        """Drop the oldest thinking token once the next one would not fit."""
        oldest = position + 2 - (self.budget - windows.question_len)
        if oldest > windows.question_len:
            windows.held[windows.thinking, windows.question_len : oldest] = False


@dataclass
class DynTSPolicy:
    """Compact by `config`, keeping the thinking tokens that `score` rates highest."""

    config: DynTSConfig
    score: ScoreFn
    scores: list[Tensor] = field(default_factory=list)
    num_compactions: int = 0

    def after_token(self, windows: HeldTokens, hidden: Tensor, position: int) -> None:
        """Score the token just read; compact the requests whose window reached the budget."""
        self.scores.append(self.score(hidden, position))
        budget = self.config.budget_for(windows.question_len)
        due = windows.thinking & (windows.lengths() >= budget)
        if due.any():
            self.num_compactions += int(due.sum())
            self._compact(windows, due, budget)

    def scores_now(self, question_len: int) -> Tensor:
        """Return the scores of all tokens after the question, as they count now: [b, n] float32."""
        return torch.stack(self.scores, dim=1)

    def _compact(self, windows: HeldTokens, due: Tensor, budget: int) -> None:
        first = windows.question_len
        positions = windows.held[due].nonzero()[:, 1].view(-1, budget)
        candidates = positions[:, first : budget - self.config.local_window]
        scores = self.scores_now(first)[due].gather(1, candidates - first)
        rows, count = candidates.shape
        num_kept = self.config.selection_len(first)
        sizes = scores.new_tensor([[count], [num_kept]], dtype=torch.int64).expand(2, rows)
        kept = select_kept(scores, sizes[0], sizes[1])
        held = windows.held[due]
        windows.held[due] = held.scatter(1, candidates, kept)


Policy = FullPolicy | RecentPolicy | DynTSPolicy


@dataclass(frozen=True)
class Rollout:
    """What a batch generated, and what it held while thinking.

    ``tokens``: per request, generated ids up to and without the end of text. ``thinking_len``,
    ``mean_held``, ``peak_held``: [b], tokens; ``held`` counts question and thinking.
    """

    tokens: list[list[int]]
    thinking_len: Tensor
    mean_held: Tensor
    peak_held: Tensor


@torch.inference_mode()
def generate(
    model: DemoModel,
    prompts: Tensor,
    policy: Policy,
    *,
    end_think: int,
    eos: int,
    max_new_tokens: int,
    forced: Tensor | None = None,
) -> Rollout:
    """Continue prompts greedily.

    Args:
        model: in the dtype to compute in.
        prompts: [b, q] int64, equally long, on the model's device.
        policy: what to hold; told about every generated token once its KV is written.
        end_think: token id after which nothing is dropped.
        eos: token id that ends a request.
        max_new_tokens: where requests that do not end are cut.
        forced: [b, f] int64 with f <= max_new_tokens, tokens to write first in place of the model's own;
            FREE where the model writes.
    """
    batch, question_len = prompts.shape
    capacity = question_len + max_new_tokens
    cache = KVCache(model, batch, capacity)
    held = torch.zeros(batch, capacity, dtype=torch.bool, device=prompts.device)
    held[:, :question_len] = True
    running = held[:, 0].clone()
    windows = HeldTokens(held, running.clone(), question_len)
    meter = _Meter(batch, prompts.device)
    hidden = model.hidden(prompts, cache)[:, -1]
    written: list[Tensor] = []
    for position in range(question_len, capacity):
        token = torch.where(running, model.logits(hidden).argmax(-1), eos)
        if forced is not None and position - question_len < forced.shape[1]:
            given = forced[:, position - question_len]
            token = torch.where(given == FREE, token, given)
        written.append(token)
        running = running & (token != eos)
        if not running.any():
            break
        windows.thinking &= token != end_think
        held[:, position] = True
        mask = held[:, None, None, : position + 1]
        hidden = model.hidden(token[:, None], cache, mask)[:, 0]
        meter.read(windows, running)
        policy.after_token(windows, hidden, position)
    tokens = [_until(row, eos) for row in torch.stack(written, dim=1).tolist()]
    return Rollout(tokens, meter.steps, meter.total / meter.steps.clamp(min=1), meter.peak)


class _Meter:
    """Sums up the tokens held over the thinking steps of each request."""

    def __init__(self, batch: int, device: torch.device) -> None:
        self.steps, self.total, self.peak = torch.zeros(3, batch, dtype=torch.int64, device=device)

    def read(self, windows: HeldTokens, running: Tensor) -> None:
        counted = windows.thinking & running
        lengths = windows.lengths() * counted
        self.steps += counted
        self.total += lengths
        self.peak = self.peak.maximum(lengths)


def _until(ids: list[int], eos: int) -> list[int]:
    return ids[: ids.index(eos)] if eos in ids else ids
