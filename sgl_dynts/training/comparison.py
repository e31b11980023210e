"""Whether a predictor foretells better than the policy `calibrated`, which needs no training.

Held-out traces are forced through the model under the windows of three policies: `predictor`,
`calibrated` and `window`. What counts is the KL of the full cache's distribution over the next token
against each policy's, after the first compaction: the same tokens, the same budget, each policy with the
sets it has on a server (one for the predictor, one per KV head for `calibrated`).

What this says: which of them disturbs the model less on texts like those held out. What it cannot say:
what is answered right, what happens where the model goes on from its own error, what other texts or much
longer ones give, and what other windows give where these had to be scaled down to the traces' length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, islice
from statistics import fmean

import torch
from transformers import PreTrainedModel

from sgl_dynts.config import DynTSConfig
from sgl_dynts.policies import PREDICTOR, Calibrated, ModelFacts, Policy, policies
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.training.forced.full_cache import FullCache, Text
from sgl_dynts.training.forced.measures import likelihood, standard_error
from sgl_dynts.training.forced.reader import Reader, positions_for
from sgl_dynts.training.trace_file import Trace

COMPARED = ("window", Calibrated.name, PREDICTOR)
MODEL_TYPES = ("llama", "qwen2", "qwen3")
"""Whose reading over a shortened cache is tested against a server's."""
MOST_TEXTS, MOST_PERIODS = 8, 4
"""How many are read, and how far behind the first compaction."""
CALIBRATION_TOKENS = 4096
ROWS_AT_ONCE = 256
SHARE_OF_LENGTH = 0.5
"""Budget of scaled windows, as a share of the tokens of the shortest trace."""


@dataclass(frozen=True)
class Comparison:
    """How far a predictor and policies without one move the model from what it says with the full cache.

    ``windows`` are those of the comparison. ``kl`` has by policy the mean over texts in nats per token,
    ``num_texts`` how many there were. ``difference`` is the mean of predictor less calibrated over
    texts, ``error`` its standard error, None of one text.
    """

    windows: DynTSConfig
    num_texts: int
    kl: Mapping[str, float]
    difference: float
    error: float | None

    @property
    def is_worse(self) -> bool:
        """Whether the predictor's mean is the larger one, by however little."""
        return self.difference > 0

    @property
    def is_clear(self) -> bool:
        """Whether the difference is more than twice its standard error."""
        return self.error is not None and abs(self.difference) > 2 * self.error

    def __str__(self) -> str:
        found = ", ".join(f"{name} {value:.4f}" for name, value in self.kl.items())
        given = ", ".join(f"{name} {value}" for name, value in self.windows.given().items())
        return (
            f"KL to the full cache on {self.num_texts} held-out texts ({given}): {found}\n{self.verdict}"
        )

    @property
    def verdict(self) -> str:
        """What follows, in one line."""
        error = "" if self.error is None else f" ± {self.error:.4f}"
        by = f"by {abs(self.difference):.4f}{error} nats per token"
        if not self.is_worse:
            clear = "" if self.is_clear else ", which may be chance: hold out more"
            return f"better than `calibrated` {by}{clear}"
        clear = "" if self.is_clear else " (which may be chance: hold out more)"
        return (
            f"WORSE than `calibrated` {by}{clear}: do not ship it; a server without a predictor does "
            "better on these texts"
        )


def compare(
    model: PreTrainedModel,
    predictor: ImportancePredictor,
    fitted: Sequence[Trace],
    held_out: Sequence[Trace],
    windows: DynTSConfig,
) -> Comparison:
    """Force held-out traces through the model under each policy's windows.

    Args:
        model: a loaded causal LM, on the device to compute on.
        predictor: fitted to `fitted`.
        fitted: `calibrated` takes its statistics of queries from these, at most 4,096 tokens.
        held_out: of these at most 8 are read, of each question or text the longest first, and none that
            is less than half as long as the longest.
        windows: to compare under, in tokens; scaled down where the traces are too short for them.

    Raises:
        ValueError: the model cannot be read over a shortened cache, or the traces are too short.
    """
    kind = model.config.model_type
    if kind not in MODEL_TYPES:
        raise ValueError(
            f"model_type={kind!r} is not simulated, only {', '.join(MODEL_TYPES)}; compare on a server "
            "with benchmark.accuracy"
        )
    chosen = texts_to_read(held_out)
    config = windows_for(windows, min(trace.length for trace in chosen))
    with torch.device(model.device), torch.inference_mode():
        reader = Reader(model)
        group = _policies(reader, fitted, config)
        own = deepcopy(predictor).to(model.device)
        read = (FullCache(reader, _text(trace, config), own) for trace in chosen)
        kls = [found for full in read if (found := _kls(full, group, config))]
    if not kls:
        raise ValueError("no held-out trace is long enough for a compaction; give longer ones")
    return _compared(config, kls)


def windows_for(windows: DynTSConfig, length: int) -> DynTSConfig:
    """Return windows that a trace of `length` tokens is compacted under, in the same proportions.

    They are the given ones where a whole period is behind the first compaction.

    Raises:
        ValueError: the trace is too short for any.
    """
    if length > windows.budget + windows.period:
        return windows
    budget = int(SHARE_OF_LENGTH * length)
    local = max(1, round(windows.local_window * budget / windows.budget))
    return DynTSConfig(budget, local, windows.keep_ratio)


def _compared(config: DynTSConfig, kls: list[dict[str, float]]) -> Comparison:
    differences = [kl[PREDICTOR] - kl[Calibrated.name] for kl in kls]
    means = {name: fmean(kl[name] for kl in kls) for name in COMPARED}
    error = standard_error(differences) if len(kls) > 1 else None
    return Comparison(config, len(kls), means, fmean(differences), error)


def texts_to_read(held_out: Sequence[Trace]) -> list[Trace]:
    """Return the traces to read, each question or text in its turn."""
    longest = sorted(held_out, key=lambda trace: -trace.length)
    enough = [trace for trace in longest if 2 * trace.length >= longest[0].length]
    seen: Counter[str] = Counter()
    turns = []
    for trace in enough:
        turns.append(seen[trace.problem])
        seen[trace.problem] += 1
    in_turns = sorted(zip(turns, enough, strict=True), key=lambda pair: pair[0])
    return [trace for _, trace in in_turns[:MOST_TEXTS]]


def _text(trace: Trace, config: DynTSConfig) -> Text:
    """What is read of a trace: until some periods behind the first compaction."""
    ids = [*trace.prompt_ids, *trace.output_ids]
    most = config.budget_for(len(trace.prompt_ids)) + MOST_PERIODS * config.period
    return Text(ids[:most], len(trace.prompt_ids))


def _policies(reader: Reader, fitted: Sequence[Trace], config: DynTSConfig) -> dict[str, Policy]:
    ids = chain.from_iterable((*trace.prompt_ids, *trace.output_ids) for trace in fitted)
    positions = positions_for(config.budget + MOST_PERIODS * config.period, config.budget)
    statistics = reader.calibrate(list(islice(ids, CALIBRATION_TOKENS)))
    facts = ModelFacts(
        num_layers=reader.num_layers,
        num_kv_heads=reader.num_kv_heads,
        queries=reader.layer_queries(statistics, positions),
        period=config.period,
    )
    return {name: policies()[name].build(facts) for name in COMPARED}


def _kls(full: FullCache, group: Mapping[str, Policy], config: DynTSConfig) -> dict[str, float] | None:
    """KL of each policy in nats, the mean over tokens behind the first compaction; None without one."""
    states = full.read_under(group, config)
    if states is None:
        return None
    first = full.first_after(config)
    targets = torch.tensor(full.text.tokens[first + 1 :])
    wanted = full.hidden[first:]
    return {
        name: fmean(chain.from_iterable(_rows(full.reader, hidden, wanted, targets)))
        for name, hidden in zip(group, states, strict=True)
    }


def _rows(
    reader: Reader, hidden: torch.Tensor, wanted: torch.Tensor, targets: torch.Tensor
) -> Iterator[list[float]]:
    """KL of each token; logits of a large vocabulary are made for some of them at a time."""
    for rows in torch.arange(len(targets)).split(ROWS_AT_ONCE):
        found = likelihood(reader.logits(hidden[rows]), reader.logits(wanted[rows]), targets[rows])
        yield found.kl.tolist()
