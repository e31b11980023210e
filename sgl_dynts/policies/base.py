"""What a policy is: it turns the candidates of one request into scores, and that is all it does.

All policies share the windows, the budget and the compaction. Scores are float32, higher is kept, equal
scores go to the older token. The question stands outside the choice and answer tokens are never dropped,
whatever the policy, as the method has it; so a baseline here is its paper's idea under this method's
rules, and each class says what differs from its paper. A policy keeps one set of tokens for all layers
and heads, or a set in each layer, or in each KV head.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Self

import numpy as np
import torch

from sgl_dynts.expected_attention import HeldLayer, LayerQueries
from sgl_dynts.policies.attention import LayerView
from sgl_dynts.score_pool import HIGHEST_SCORE
from sgl_dynts.transfer import to_device

ABOVE_ALL_POSITIONS = float(1 << 23)
"""Added to a position it outranks every bare one, and float32 still tells all of them apart."""

LEAST = 1e-20
"""Instead of a divisor, or of what has a logarithm, that is 0."""


class Sets(StrEnum):
    """How many sets of tokens a policy keeps of one request."""

    ONE = "one"
    PER_LAYER = "per layer"
    PER_HEAD = "per KV head"


@dataclass(frozen=True)
class ModelFacts:
    """What a policy may learn of the served model before the first request."""

    separators: frozenset[int] = frozenset()
    """Token ids of punctuation and line breaks."""
    num_layers: int = 1
    """Layers with KV of their own, on this rank."""
    num_kv_heads: int = 1
    """KV heads of each, on this rank."""
    first_kv_head: int = 0
    """How many KV heads other ranks hold before these."""
    queries: tuple[LayerQueries, ...] = ()
    """Of each attention layer what a calibration found; none without one."""
    period: int = 1
    """Tokens between two compactions, by the server's windows."""


def _no_views() -> Iterable[LayerView]:
    return ()


def _no_layers() -> Iterable[HeldLayer]:
    return ()


def _not_counted() -> torch.Tensor:
    raise AssertionError("a policy that needs all attention was accepted where it is not counted")


def _not_noted() -> torch.Tensor:
    raise AssertionError("what the predictor said is not kept by head here")


@dataclass(frozen=True)
class Candidates:
    """The candidates of one request's compaction, older first: n tokens, all thinking or answer.

    The oldest ``len(scores) - len(positions)`` survived an earlier compaction, and their scores are what
    the request's policy gave them then. The others are new: consecutive tokens, with the scores that
    the predictor gave them when they were computed, or 0 where none is loaded.
    """

    scores: torch.Tensor
    """[n] float32 on the device of the pool."""
    positions: np.ndarray
    """[num_new] int64, sequence positions of the new ones."""
    token_ids: np.ndarray
    """[num_new] int64."""
    question: Sequence[int]
    """Token ids of the question."""
    views: Callable[[], Iterable[LayerView]] = _no_views
    """Gives the layers, where queries are recorded. A token of a set per head stands in its head's own
    place, older ones first."""
    received: Callable[[], torch.Tensor] = _not_counted
    """Gives [n] float32, the attention each has got since it was computed, where it is counted; for a
    policy with sets per KV head [layers, kv_heads, n]."""
    layers: Callable[[], Iterable[HeldLayer]] = _no_layers
    """Gives the layers: question, candidates and local window, whose places are as in ``views``."""
    predicted: Callable[[], torch.Tensor] = _not_noted
    """Gives [layers, kv_heads, n] float32, what the predictor said of each head's tokens at their birth,
    for a policy with sets per KV head that needs a predictor."""
    newest: int = 0
    """Position of the newest token that the layers hold."""

    @property
    def places(self) -> slice:
        """Where the candidates stand among what ``views`` and ``layers`` hold."""
        first = len(self.question)
        return slice(first, first + len(self.scores))


class Policy(ABC):
    """Scores the candidates of one request.

    A class says who it is: ``name`` is what a server or a request asks for, ``color`` its line in charts.
    ``keeps``, ``paper`` and ``differs`` are its row in the list of policies.
    """

    name: ClassVar[str]
    color: ClassVar[str]
    keeps: ClassVar[str]
    paper: ClassVar[str] = ""
    differs: ClassVar[str] = ""
    sets: ClassVar[Sets] = Sets.ONE
    """What its scores tell apart. With more than one set a compaction moves K and V."""
    needs_predictor: ClassVar[bool] = False
    needs_queries: ClassVar[bool] = False
    """Whether the newest queries are to be recorded."""
    needs_all_queries: ClassVar[bool] = False
    """Whether the attention of every query is to be counted, not that of the newest alone."""
    needs_calibration: ClassVar[bool] = False
    """Whether statistics of the model's queries are to be known."""

    @classmethod
    def build(cls, facts: ModelFacts) -> Self:
        """Make the policy for a served model."""
        return cls()

    @abstractmethod
    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return float32 scores of all candidates, on any device; higher is kept.

        [n] for one set, [layers, n] for a set per layer, [layers, kv_heads, n] for a set per KV head.
        """


class ScoredOnce(Policy):
    """A policy for which a token's score never changes and follows from host facts alone."""

    @abstractmethod
    def score_new(self, candidates: Candidates) -> np.ndarray:
        """Return [num_new] scores of the new candidates."""

    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return the survivors' earlier scores and the new ones'."""
        new = torch.from_numpy(self.score_new(candidates).astype(np.float32))
        old = candidates.scores[: len(candidates.scores) - len(new)]
        return torch.cat([old, to_device(new, old.device)])


class Observing(Policy):
    """A policy that asks what the newest tokens attend to, anew at every compaction.

    Its papers choose for each head by itself. With one set, heads and layers are averaged here.
    """

    needs_queries = True

    @abstractmethod
    def score_layer(self, view: LayerView, chosen: slice) -> torch.Tensor:
        """Return scores of one layer: [n], or [kv_heads, n] for a set per KV head.

        Args:
            view: the layer.
            chosen: where the candidates stand among its keys.
        """

    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return every layer's scores, or with one set their mean."""
        views = candidates.views()
        layers = torch.stack([self.score_layer(view, candidates.places) for view in views])
        return layers.mean(0) if self.sets is Sets.ONE else layers


def rewrite_scores(
    policy: Policy, candidates: Candidates, pool: torch.Tensor, slots: torch.Tensor
) -> None:
    """Let a policy score candidates in the pool, whose compaction then goes as for any other.

    Args:
        policy: of the request that owns the slots.
        candidates: its scores are the pool's.
        pool: [num_slots] float32, changed in place; what is infinite stays, for it is answer.
        slots: [n] int64, slots of the candidates.
    """
    finite = _finite(policy.score(candidates), pool.device)
    pool[slots] = torch.where(candidates.scores == torch.inf, candidates.scores, finite)


def scores_by_head(policy: Policy, candidates: Candidates, num_kv_heads: int) -> torch.Tensor:
    """Return what a policy with more than one set thinks of its candidates.

    Args:
        policy: of the request.
        candidates: of its compaction.
        num_kv_heads: of each layer on this rank.

    Returns:
        [layers, num_kv_heads, n] finite float32, on the device of ``candidates.scores``.
    """
    finite = _finite(policy.score(candidates), candidates.scores.device)
    by_layer = finite if policy.sets is Sets.PER_HEAD else finite[:, None]
    return by_layer.expand(-1, num_kv_heads, -1)


def standard(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return scores less their mean, over their spread; 0 for those that do not count.

    Args:
        scores: [..., n] float32.
        counts: [n] bool, or as ``scores``.
    """
    num = counts.sum().clamp_min(1)
    off = (scores - (scores * counts).sum(-1, keepdim=True) / num) * counts
    spread = (off.square().sum(-1, keepdim=True) / num).sqrt()
    return off / spread.clamp_min(LEAST)


def _finite(scores: torch.Tensor, device: torch.device) -> torch.Tensor:
    scores = to_device(scores, device)
    return torch.nan_to_num(scores, nan=0.0, posinf=HIGHEST_SCORE, neginf=-HIGHEST_SCORE)
