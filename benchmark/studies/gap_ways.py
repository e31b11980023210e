"""The ways of scoring that `benchmark.studies.predictor_gap` compares."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from benchmark.ledgers.fit_importance import DEMO_RECIPE
from benchmark.ledgers.forced import Reading, causal, read
from benchmark.ledgers.model import DemoModel
from benchmark.ledgers.oracle import FAR_DISTANCE
from benchmark.ledgers.rollout import DynTSPolicy, ScoreFn
from sgl_dynts.config import DynTSConfig
from sgl_dynts.demo.ledger import END_THINK, Problem, Vocabulary
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.training.fit import Split, fit_predictor
from sgl_dynts.training.metrics import Ranking
from sgl_dynts.training.recipe import FitRecipe
from sgl_dynts.training.states import TraceStates
from sgl_dynts.training.targets import far_attention

FITTED = {
    "answer": "the paper's target: what the answer reads",
    "future": "what any token reads from far, from the last layer's state",
    "future_listwise": "the same with the loss of a list, for the top of the ranking",
    "layers": "the same as future, from the states after all layers",
    "delayed": "future's score judged again at each compaction, with what the newest tokens read",
}
NUM_OBSERVED = 32
"""Newest tokens whose attention `delayed` sees."""
NUM_MOMENTS = 12
"""Moments of each training trace at which `delayed` learns to judge."""
SMALL = {"widen": 4.0, "narrow": 2.0}


@dataclass(frozen=True)
class Batch:
    """Problems of one length, their tokens [b, s], and what the model reads with everything held.

    ``question_len`` and ``thinking_end`` say where question and thinking end in all of them.
    """

    problems: list[Problem]
    tokens: Tensor
    question_len: int
    thinking_end: int
    whole: Reading

    @classmethod
    def of(cls, model: DemoModel, problems: list[Problem]) -> Self:
        """Encode and read problems."""
        vocabulary = Vocabulary()
        texts = [f"{problem.prompt} {problem.completion}" for problem in problems]
        tokens = torch.tensor([vocabulary.encode(text) for text in texts])
        end = texts[0].split().index(END_THINK)
        whole = read(model, tokens, causal(tokens))
        return cls(problems, tokens, len(problems[0].prompt.split()), end, whole)


@dataclass(frozen=True)
class FittedWay:
    """A predictor, and how it orders training problems held out of its fit."""

    predictor: ImportancePredictor
    held_out: Ranking


class InMemory:
    """States of traces that a fit reads by key."""

    def __init__(self, traces: list[TraceStates]) -> None:
        self.traces = {str(number): states for number, states in enumerate(traces)}

    def read(self, key: str) -> TraceStates:
        """Return one trace's states."""
        return self.traces[key]

    def length(self, key: str) -> int:
        """Return how many tokens it has."""
        return len(self.traces[key])

    def fit(self, recipe: FitRecipe) -> FittedWay:
        """Fit to all but a tenth."""
        keys = tuple(self.traces)
        cut = len(keys) - max(1, len(keys) // 10)
        predictor, history = fit_predictor(self, Split(keys[:cut], keys[cut:]), recipe)
        return FittedWay(predictor, history[-1].held_out)


@dataclass
class DelayedPolicy(DynTSPolicy):
    """Scores all candidates anew at each compaction, from an attention that was read before.

    ``judge`` maps (scores at birth [b, n], tokens read now) to scores [b, n].
    """

    reading: Reading | None = None
    judge: "Judge | None" = None

    def scores_now(self, question_len: int) -> Tensor:
        """Return the scores of all tokens after the question: [b, n] float32."""
        assert self.reading is not None
        assert self.judge is not None
        born = torch.stack(self.scores, dim=1)
        return self.judge(born, self.reading.attention, question_len)


class Rejudge:
    """Judges by a small predictor on (1, score at birth, most read by the newest tokens, age)."""

    def __init__(self, predictor: ImportancePredictor) -> None:
        self.predictor = predictor

    def __call__(self, born: Tensor, attention: Tensor, question_len: int) -> Tensor:
        """Return scores [b, n] of tokens with scores `born` [b, n]."""
        return self.predictor(moment_inputs(born, attention, question_len))


class SeeFuture:
    """Judges by what tokens after this moment will read, given the whole trace's attention."""

    def __init__(self, attention: Tensor) -> None:
        self.most_from = attention.flip(1).cummax(1).values.flip(1)

    def __call__(self, born: Tensor, attention: Tensor, question_len: int) -> Tensor:
        """Return [b, n], the most that any later token reads each."""
        now = question_len + born.shape[1]
        row = min(now, self.most_from.shape[1] - 1)
        return self.most_from[:, row, question_len:now]


Judge = Rejudge | SeeFuture


class Ways:
    """All ways, ready to make policies."""

    def __init__(self, fitted: dict[str, FittedWay]) -> None:
        self.fitted = fitted

    def policy(self, way: str, batch: Batch, windows: DynTSConfig, reading: Reading) -> DynTSPolicy:
        """Return the policy of a way for a batch that was read as `reading` before."""
        if way == "delayed_oracle":
            judge = SeeFuture(batch.whole.attention)
            return DelayedPolicy(
                windows, scores_at(torch.zeros(batch.tokens.shape)), [], 0, reading, judge
            )
        if way == "oracle":
            return DynTSPolicy(windows, scores_at(far_attention(batch.whole.attention, FAR_DISTANCE)))
        if way == "delayed":
            born = self.fitted["future"].predictor(reading.states[-1])
            judge = Rejudge(self.fitted["delayed"].predictor)
            return DelayedPolicy(windows, scores_at(born), [], 0, reading, judge)
        inputs = torch.cat(reading.states, -1) if way == "layers" else reading.states[-1]
        return DynTSPolicy(windows, scores_at(self.fitted[way].predictor(inputs)))


def fit_ways(training: Sequence[Batch], seed: int, epochs: int) -> Ways:
    """Fit every way to the training batches; a fit's held-out traces are the last tenth."""
    recipe = replace(DEMO_RECIPE, seed=seed, epochs=epochs)
    last, layers, answer = [], [], []
    for batch in training:
        reading = batch.whole
        last += far_states(batch, reading.states[-1], reading.attention, FAR_DISTANCE)
        layers += far_states(batch, torch.cat(reading.states, -1), reading.attention, FAR_DISTANCE)
        answer += _answer_states(batch, reading)
    fitted = {
        "answer": InMemory(answer).fit(recipe),
        "future": InMemory(last).fit(recipe),
        "future_listwise": InMemory(last).fit(replace(recipe, loss="listwise")),
        "layers": InMemory(layers).fit(recipe),
    }
    moments = _moments(training, fitted["future"].predictor)
    fitted["delayed"] = InMemory(moments).fit(replace(recipe, **SMALL, scale_inputs=False))
    return Ways(fitted)


def moment_inputs(born: Tensor, attention: Tensor, question_len: int) -> Tensor:
    """Return what is known of tokens when the last of them has just been read: [b, n, 4].

    Args:
        born: [b, n], scores at birth of all tokens after the question.
        attention: [b, s, s], what each token read.
        question_len: tokens before them.
    """
    now = question_len + born.shape[1]
    seen = attention[:, max(0, now - NUM_OBSERVED) : now, question_len:now].amax(1)
    age = torch.arange(born.shape[1], 0, -1).expand_as(born)
    return torch.stack([torch.ones_like(born), born.log1p(), (1e3 * seen).log1p(), age.log1p() / 5], -1)


def _moments(training: Sequence[Batch], predictor: ImportancePredictor) -> list[TraceStates]:
    """Return old tokens at a few moments of each trace, and the most that reads them later."""
    moments = []
    for batch in training:
        reading = batch.whole
        future = SeeFuture(reading.attention)
        born = predictor(reading.states[-1])[:, batch.question_len :]
        places = torch.linspace(FAR_DISTANCE, batch.thinking_end - batch.question_len, NUM_MOMENTS)
        for length in places.int().tolist():
            scores, old = born[:, :length], length - FAR_DISTANCE // 2
            inputs = moment_inputs(scores, reading.attention, batch.question_len)[:, :old]
            targets = future(scores, reading.attention, batch.question_len)[:, :old]
            moments += _each(inputs, targets)
    return moments


def far_states(batch: Batch, states: Tensor, attention: Tensor, distance: int) -> list[TraceStates]:
    """Return each trace's tokens that can be read from more than a distance, and the most that does."""
    counted = slice(batch.question_len, batch.tokens.shape[1] - distance - 1)
    return _each(states[:, counted], far_attention(attention, distance)[:, counted])


def _answer_states(batch: Batch, reading: Reading) -> list[TraceStates]:
    counted = slice(batch.question_len, batch.thinking_end)
    targets = reading.attention[:, batch.thinking_end + 1 :].mean(1)[:, counted]
    return _each(reading.states[-1][:, counted], targets)


def _each(states: Tensor, targets: Tensor) -> list[TraceStates]:
    none_known = torch.zeros(targets.shape[1], dtype=torch.bool)
    return [TraceStates(*pair, none_known) for pair in zip(states, targets, strict=True)]


def scores_at(scores: Tensor) -> ScoreFn:
    """Return what a policy asks at each position, of scores [b, s] that are known before."""
    return lambda hidden, position: scores[:, min(position, scores.shape[1] - 1)]
