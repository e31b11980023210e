"""Who decides which thinking tokens survive: the predictor, and what it is compared with.

All policies share the windows, the budget and the compaction; each turns the candidates of one request
into scores, and that is all it does. Scores are float32, higher is kept, equal scores go to the older
token. The question stands outside the choice and answer tokens are never dropped, whatever the policy,
as the method has it; so a baseline here is its paper's idea under this method's rules, and each class
says what differs from its paper. One set of tokens is kept for all layers and heads.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar
from zlib import crc32

import numpy as np
import torch

from sgl_dynts.score_pool import HIGHEST_SCORE

PREDICTOR = "predictor"
FULL = "full"
"""The name of the policy that drops nothing; its requests have no window, so it has no class here."""
ABOVE_ALL_POSITIONS = float(1 << 23)
"""Added to a position it outranks every bare one, and float32 still tells all of them apart."""
QUERIES_AT_ONCE = 64
"""Bounds what the attention of many queries takes at a time: query heads * 64 * held floats."""


@dataclass(frozen=True)
class LayerView:
    """One attention layer as the newest queries of a request see it.

    ``queries`` [w, query_heads, head_dim], older first, are those of the last w tokens of ``keys``
    [held, kv_heads, head_dim], which hold question, candidates and local window.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    scaling: float

    def attention(self) -> torch.Tensor:
        """Return [kv_heads, group, w, held] float32, what each query attends to; causal."""
        num, held = len(self.queries), len(self.keys)
        queries = self.queries.float().view(num, self.keys.shape[1], -1, self.keys.shape[2])
        logits = torch.einsum("wkgd,hkd->kgwh", queries, self.keys.float()) * self.scaling
        columns = torch.arange(held, device=logits.device)
        unseen = columns > columns[held - num :, None]
        return logits.masked_fill(unseen, -torch.inf).softmax(-1)

    def received(self) -> torch.Tensor:
        """Return [held] float32, what each key gets from all queries together, the mean over heads."""
        total = torch.zeros(len(self.keys), device=self.keys.device)
        before = len(self.keys) - len(self.queries)
        for first in range(0, len(self.queries), QUERIES_AT_ONCE):
            queries = self.queries[first : first + QUERIES_AT_ONCE]
            seen = before + first + len(queries)
            part = LayerView(queries, self.keys[:seen], self.scaling)
            total[:seen] += part.attention().sum(2).mean((0, 1))
        return total


def received_from_newest(
    queries: torch.Tensor, keys: torch.Tensor, is_held: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Return [b, width] float32, what each key gets from its request's newest query, the mean over heads.

    Args:
        queries: [b, query_heads, head_dim], one of each request.
        keys: [b, width, kv_heads, head_dim], what the requests hold, padded to one width.
        is_held: [b, width] bool; what is padding gets 0.
        scaling: of the logits.
    """
    num, _, kv_heads, head_dim = keys.shape
    grouped = queries.float().view(num, kv_heads, -1, head_dim)
    logits = torch.einsum("bkgd,bhkd->bkgh", grouped, keys.float()) * scaling
    return logits.masked_fill(~is_held[:, None, None], -torch.inf).softmax(-1).mean((1, 2))


def _no_views() -> Iterable[LayerView]:
    return ()


def _not_counted() -> torch.Tensor:
    raise AssertionError("a policy that needs all attention was accepted where it is not counted")


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
    """Gives the layers, where queries are recorded."""
    received: Callable[[], torch.Tensor] = _not_counted
    """Gives [n] float32, the attention each has got since it was computed, where it is counted."""


class Policy(ABC):
    """Scores the candidates of one request."""

    needs_predictor: ClassVar[bool] = False
    needs_queries: ClassVar[bool] = False
    needs_all_queries: ClassVar[bool] = False
    """Whether the attention of every query is to be counted, not that of the newest alone."""

    @abstractmethod
    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return [n] float32 scores of all candidates, on any device; higher is kept."""


class Predicted(Policy):
    """DynTS: the predictor's scores as they are."""

    needs_predictor = True

    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return what stands in the pool."""
        return candidates.scores


class Bottom(Policy):
    """The predictor upside down, as the DynTS paper's ablation has it: the lowest scores are kept."""

    needs_predictor = True

    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return predicted scores with a minus; a survivor of an earlier time has its minus already."""
        return -candidates.scores.abs()


class ScoredOnce(Policy):
    """A policy for which a token's score never changes and follows from host facts alone."""

    @abstractmethod
    def score_new(self, candidates: Candidates) -> np.ndarray:
        """Return [num_new] scores of the new candidates."""

    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return the survivors' earlier scores and the new ones'."""
        new = torch.from_numpy(self.score_new(candidates).astype(np.float32))
        old = candidates.scores[: len(candidates.scores) - len(new)]
        return torch.cat([old, _to_device(new, old.device)])


class Recent(ScoredOnce):
    """Question and newest tokens, a sliding window.

    The window is at its full size only when a compaction is due, and shrinks to what the keep ratio
    leaves, as for every policy here; the usual baseline drops one token per step.
    """

    def score_new(self, candidates: Candidates) -> np.ndarray:
        """Return the position."""
        return candidates.positions


@dataclass(frozen=True)
class Random(ScoredOnce):
    """Question and random tokens ("Random Attention", arXiv 2609.03430; there every head draws its own).

    Drawn by a hash of seed, question and position, so that ranks and runs agree.
    """

    seed: int = 0

    def score_new(self, candidates: Candidates) -> np.ndarray:
        """Return numbers in [0, 1), 24 bits each."""
        salt = crc32(np.asarray(candidates.question, dtype=np.int64).tobytes(), self.seed)
        return mix(candidates.positions + (salt << 31)) / (1 << 24)


@dataclass(frozen=True)
class Streaming(ScoredOnce):
    """StreamingLLM (arXiv 2309.17453): attention sinks and the newest tokens.

    Its sinks are the first tokens of the sequence, which the question holds here anyway; so ``num_sinks``
    counts thinking tokens. RoPE positions stay the original ones; the paper's count within the cache.
    """

    num_sinks: int = 4

    def score_new(self, candidates: Candidates) -> np.ndarray:
        """Return the position, sinks above all."""
        is_sink = candidates.positions < len(candidates.question) + self.num_sinks
        return np.where(is_sink, ABOVE_ALL_POSITIONS, candidates.positions)


@dataclass(frozen=True)
class Separators(ScoredOnce):
    """SepLLM (arXiv 2412.12094), its training-free form: separators before others, newest first.

    The paper keeps initial tokens and neighbours too, which question and local window are here, and
    bounds its separators by a number of their own; here they share the selection with the rest.
    """

    token_ids: Collection[int]

    def score_new(self, candidates: Candidates) -> np.ndarray:
        """Return the position, separators above all others."""
        separates = np.isin(candidates.token_ids, list(self.token_ids))
        return candidates.positions + ABOVE_ALL_POSITIONS * separates


class HeavyHitters(Policy):
    """H2O, the Heavy-Hitter Oracle (arXiv 2306.14048): the tokens that got most attention so far.

    As in the paper a score is the attention a token has got, added up over every query since it was
    computed, its own included; what was dropped got its last. The paper chooses in each layer and head by
    itself; here these are averaged, for one choice. It drops one token per step and halves its budget
    between heavy hitters and newest tokens; here the windows are those of all policies. It judges the
    prompt too, which is the question here and stays. No kernel gives its attention out, so it is
    computed a second time at every step, in plain torch: this is slow.
    """

    needs_queries = True
    needs_all_queries = True

    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return the sums."""
        return candidates.received()


class Observing(Policy):
    """A policy that asks what the newest tokens attend to, anew at every compaction.

    Its papers choose for each head by itself; here heads and layers are averaged, for one choice.
    """

    needs_queries = True

    @abstractmethod
    def score_layer(self, view: LayerView, chosen: slice) -> torch.Tensor:
        """Return [n] scores of one layer.

        Args:
            view: the layer.
            chosen: where the candidates stand among its keys.
        """

    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return the mean over layers."""
        first = len(candidates.question)
        chosen = slice(first, first + len(candidates.scores))
        return torch.stack([self.score_layer(view, chosen) for view in candidates.views()]).mean(0)


@dataclass(frozen=True)
class SnapKV(Observing):
    """SnapKV (arXiv 2404.14469): what an observation window attends to, pooled over neighbours.

    The paper compresses the prompt once; here generated tokens are judged at every compaction, and the
    observation window is the newest tokens, inside the local window.
    """

    kernel: int = 5

    def score_layer(self, view: LayerView, chosen: slice) -> torch.Tensor:
        """Return attention summed over the window, the mean over heads, average-pooled."""
        pool = torch.nn.functional.avg_pool1d
        return pool(view.received()[None, chosen], self.kernel, 1, self.kernel // 2)[0]


@dataclass(frozen=True)
class RKV(Observing):
    """R-KV (arXiv 2505.24133): importance less redundancy, that is what similar keys repeat.

    Z = lambda * importance - (1 - lambda) * redundancy, its defaults. Importance is attention from the
    newest eight queries, max-pooled; redundancy is a softmax of the mean cosine similarity to other
    keys that are similar above a threshold, where the newest of a key's likes is exempt. The paper holds
    a budget and a buffer of 128 tokens; here the windows are those of all policies.
    """

    weight: float = 0.1
    num_queries: int = 8
    kernel: int = 7
    threshold: float = 0.5

    def score_layer(self, view: LayerView, chosen: slice) -> torch.Tensor:
        """Return the mean of Z over heads."""
        seen = view.attention()[:, :, -self.num_queries :, chosen].mean((1, 2))
        pool = torch.nn.functional.max_pool1d
        importance = pool(seen, self.kernel, 1, self.kernel // 2)
        return (self.weight * importance - (1 - self.weight) * self.redundancy(view.keys[chosen])).mean(0)

    def redundancy(self, keys: torch.Tensor) -> torch.Tensor:
        """Return [kv_heads, n] for keys [n, kv_heads, head_dim], each head's sum 1."""
        unit = torch.nn.functional.normalize(keys.float(), dim=-1).transpose(0, 1)
        similar = unit @ unit.transpose(1, 2)
        alike = (similar > self.threshold) & ~torch.eye(len(keys), dtype=torch.bool, device=keys.device)
        columns = torch.arange(len(keys), device=keys.device)
        newest = (columns * alike).amax(-1, keepdim=True)
        counted = alike & (columns != newest)
        return (similar * counted).mean(1).softmax(-1)


def build_policies(separators: Collection[int]) -> dict[str, Policy]:
    """Return every policy that scores, by name.

    Args:
        separators: token ids of punctuation and line breaks.
    """
    return {
        PREDICTOR: Predicted(),
        "random": Random(),
        "window": Recent(),
        "streaming": Streaming(),
        "sepllm": Separators(frozenset(separators)),
        "bottom": Bottom(),
        "h2o": HeavyHitters(),
        "snapkv": SnapKV(),
        "rkv": RKV(),
    }


NEED_PREDICTOR = tuple(name for name, policy in build_policies(()).items() if policy.needs_predictor)
NEED_QUERIES = tuple(name for name, policy in build_policies(()).items() if policy.needs_queries)
NEED_ALL_QUERIES = tuple(name for name, policy in build_policies(()).items() if policy.needs_all_queries)
POLICIES = (*build_policies(()), FULL)
"""Names that a server or a request may choose."""


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
    scores = _to_device(policy.score(candidates), pool.device)
    finite = torch.nan_to_num(scores, nan=0.0, posinf=HIGHEST_SCORE, neginf=-HIGHEST_SCORE)
    pool[slots] = torch.where(candidates.scores == torch.inf, candidates.scores, finite)


def mix(numbers: np.ndarray) -> np.ndarray:
    """Hash [n] int64 to [n] integers below 2**24: the finaliser of SplitMix64, its upper bits."""
    state = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (state ^ (state >> np.uint64(31))) >> np.uint64(40)


def _to_device(scores: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cuda" and scores.device.type == "cpu":
        scores = scores.pin_memory()
    return scores.to(device, non_blocking=True)
