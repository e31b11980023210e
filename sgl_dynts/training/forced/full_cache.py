"""Policies' windows over given tokens, as a server without early compactions has them.

One forward reads all tokens up to the next compaction. Requests of all policies are one batch: their
windows are equal, what these hold differs.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from sgl_dynts.config import DynTSConfig
from sgl_dynts.expected_attention import HeldLayer
from sgl_dynts.head_sets import plan_moves
from sgl_dynts.policies import (
    PREDICTOR,
    Candidates,
    LayerView,
    Policy,
    Sets,
    rewrite_scores,
    scores_by_head,
)
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.thinking import ThinkingTracker, ThinkMarkers
from sgl_dynts.training.forced.reader import Held, Reader
from sgl_dynts.window import Cut, RequestWindow


@dataclass(frozen=True)
class Text:
    """Tokens, of which the first are the question."""

    tokens: list[int]
    question_len: int
    kind: str = ""


@dataclass
class _Requests:
    """The requests of all policies over one text; ``scores`` [b, held] float32."""

    held: Held
    scores: torch.Tensor
    received: torch.Tensor | None
    """[b, layers, kv_heads, held] float32, attention that each token has got; None if nobody asks."""
    window: RequestWindow


class FullCache:
    """One text as the model reads it with nothing dropped; every policy begins as this does."""

    def __init__(self, reader: Reader, text: Text, predictor: ImportancePredictor | None = None) -> None:
        """Read it.

        Args:
            reader: of the model.
            text: whose last token is not read, for nothing follows it.
            predictor: gives tokens their scores at birth, 0 without one.
        """
        self.reader = reader
        self.text = text
        self.predictor = predictor
        hidden, self.held = reader.read(text.tokens[:-1], 0)
        self.hidden = hidden[0]
        self.scores = self.score(hidden)[0]

    def judged_by(self, predictor: ImportancePredictor) -> "FullCache":
        """Return the same text, as it was read, with scores of another predictor."""
        other = copy(self)
        other.predictor = predictor
        other.scores = other.score(self.hidden)
        return other

    @torch.inference_mode()
    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the predictor gives hidden states [..., hidden_size]: [...] float32."""
        if self.predictor is None:
            return torch.zeros(hidden.shape[:-1])
        return self.predictor(hidden.flatten(0, -2)).float().view(hidden.shape[:-1])

    @torch.inference_mode()
    def read_under(self, policies: Mapping[str, Policy], config: DynTSConfig) -> torch.Tensor | None:
        """Read the text under each policy's windows.

        Args:
            policies: by name.
            config: budget, local window and keep ratio.

        Returns:
            [policies, n, hidden_size] float32, states of the tokens from the first on that was computed
            after a compaction; None for a text too short for one.
        """
        tokens, window = self.text.tokens, self._window(config)
        start = window.due_len
        if start >= len(tokens) - 1:
            return None
        requests = self._begin(policies, window, start)
        parts = []
        while start < len(tokens) - 1:
            cut = window.cut(requests.held.length, tokens[self.text.question_len :])
            assert cut is not None, (start, requests.held.length)
            self._compact(requests, list(policies.values()), cut)
            end = min(len(tokens) - 1, start + window.remaining(requests.held.length))
            hidden, held = self.reader.read(tokens[start:end], start, requests.held)
            parts.append(hidden)
            requests.held = held
            requests.scores = torch.cat([requests.scores, self.score(hidden)], 1)
            self._count(requests, end - start)
            start = end
        return torch.cat(parts, 1)

    def first_after(self, config: DynTSConfig) -> int:
        """Return the position of the first token that is computed after a compaction."""
        return self._window(config).due_len

    def _window(self, config: DynTSConfig) -> RequestWindow:
        tracker = ThinkingTracker(ThinkMarkers((), ()), True)
        return RequestWindow(config, self.text.question_len, tracker)

    def _begin(self, policies: Mapping[str, Policy], window: RequestWindow, start: int) -> _Requests:
        held = self.held.first(start, len(policies))
        scores = self.scores[:start].expand(len(policies), -1)
        counts = any(policy.needs_all_queries for policy in policies.values())
        shape = (len(policies), self.reader.num_layers, self.reader.num_kv_heads, 0)
        requests = _Requests(held, scores, torch.zeros(shape) if counts else None, window)
        self._count(requests, start)
        return requests

    def _count(self, requests: _Requests, num_new: int) -> None:
        """Add what the newest tokens' queries attend to; they see themselves as well."""
        if requests.received is None:
            return
        grown = torch.nn.functional.pad(requests.received, (0, num_new))
        for request, row in enumerate(grown):
            for layer, own in enumerate(row):
                own += requests.held.view(request, layer, num_new, newest=True).received_by_head()
        requests.received = grown

    def _compact(self, requests: _Requests, policies: Sequence[Policy], cut: Cut) -> None:
        """Let every policy drop what it does not keep."""
        chosen, scores = [], []
        for request, policy in enumerate(policies):
            candidates = self._candidates(requests, request, policy.sets, cut)
            places, after = self._keep(policy, candidates, cut.num_kept)
            chosen.append(places)
            row = requests.scores[request]
            scores.append(torch.cat([row[: cut.first], after, row[len(row) - cut.local_window :]]))
        order = _whole(torch.stack(chosen), cut)
        requests.held = requests.held.gather(order)
        requests.scores = torch.stack(scores)
        if requests.received is not None:
            requests.received = requests.received.gather(3, order)
        requests.window.record(cut)

    def _keep(
        self, policy: Policy, candidates: Candidates, num_kept: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[layers, kv_heads, k] int64 places among the candidates, and [k] float32 their scores."""
        num, pool = len(candidates.scores), candidates.scores.clone()
        slots = torch.arange(num)
        if policy.sets is not Sets.ONE:
            scores = scores_by_head(policy, candidates, self.reader.num_kv_heads)
        else:
            if policy.name != PREDICTOR:
                rewrite_scores(policy, candidates, pool, slots)
            scores = pool[None, None]
        sources = plan_moves(scores, torch.zeros(num, dtype=torch.bool), slots, num_kept).sources
        places = sources.expand(self.reader.num_layers, self.reader.num_kv_heads, -1)
        return places, pool[sources[0, 0]]

    def _candidates(self, requests: _Requests, request: int, sets: Sets, cut: Cut) -> Candidates:
        """What a server tells a policy, the newest token in computation."""
        window, tokens = requests.window, self.text.tokens
        end = cut.first + cut.num_candidates
        positions = np.arange(cut.first + cut.num_survivors, end) + window.dropped
        return Candidates(
            requests.scores[request, cut.first : end],
            positions,
            np.asarray(tokens[positions[0] : positions[-1] + 1]),
            tokens[: cut.first],
            partial(self._views, requests.held, request, cut.local_window),
            partial(_received, requests.received, request, sets, slice(cut.first, end)),
            partial(_layers, requests.held, request),
            newest=window.seq_len(cut.window_len) - 2,
        )

    def _views(self, held: Held, request: int, local_window: int) -> Iterator[LayerView]:
        num = max(1, min(self.reader.num_queries, local_window - 1))
        return (held.view(request, layer, num) for layer in range(self.reader.num_layers))


def _layers(held: Held, request: int) -> Iterator[HeldLayer]:
    for keys, values in zip(held.keys, held.values, strict=True):
        own_keys, own_values = (one[request].transpose(0, 1)[:-1] for one in (keys, values))
        yield HeldLayer(own_keys, own_values, held.scaling)


def _received(received: torch.Tensor | None, request: int, sets: Sets, places: slice) -> torch.Tensor:
    """[n] float32, the mean over layers and heads, or for sets per KV head [layers, kv_heads, n]."""
    assert received is not None
    by_head = received[request, :, :, places]
    return by_head if sets is Sets.PER_HEAD else by_head.mean((0, 1))


def _whole(chosen: torch.Tensor, cut: Cut) -> torch.Tensor:
    """[b, layers, kv_heads, kept] int64, question, chosen and local window; ``chosen`` as candidates."""
    shape = chosen.shape[:-1]
    question = torch.arange(cut.first).expand(*shape, -1)
    local = torch.arange(cut.first + cut.num_candidates, cut.window_len).expand(*shape, -1)
    return torch.cat([question, chosen + cut.first, local], -1)
