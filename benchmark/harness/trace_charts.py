"""Charts of single traces: what was held when, and what the predictor says of each token."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap

from benchmark.harness.charts import COLORS, save, tidy

HELD_COLORS = ("#f3f3f3", "#30638e", COLORS["dynts"])
"""Dropped or not there yet, held, held and critical."""


@dataclass(frozen=True)
class TracePicture:
    """One trace of s tokens, question included.

    ``predicted`` and ``true`` [s] are scores, NaN for tokens that have none. ``held`` has, for each
    compaction, the positions held after it; ``at`` the tokens seen by then. ``lengths`` are KV tokens
    held after each generated token. ``critical`` are positions that are read again.
    """

    title: str
    question_len: int
    predicted: Sequence[float]
    true: Sequence[float]
    at: Sequence[int]
    held: Sequence[frozenset[int]]
    lengths: Sequence[int]
    critical: frozenset[int]
    budget: int

    @property
    def num_tokens(self) -> int:
        """Tokens of the trace, the question's included."""
        return len(self.predicted)


def draw_heat_strip(path: Path, trace: TracePicture) -> None:
    """Draw predicted and true scores as strips of colour, and below what each compaction left.

    Args:
        path: of the PNG.
        trace: one trace.
    """
    heights = (1, 1, max(3, 0.35 * len(trace.held)))
    size = (12, 2.6 + 0.2 * len(trace.held))
    figure, axes = plt.subplots(
        3, 1, figsize=size, sharex=True, layout="constrained", height_ratios=heights
    )
    for axis, (name, scores) in zip(
        axes, (("predicted", trace.predicted), ("true", trace.true)), strict=False
    ):
        axis.imshow([_ranks(scores)], aspect="auto", cmap="magma_r", interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set_yticks([])
    axes[2].imshow(
        [_states(trace, number) for number in range(len(trace.held))],
        aspect="auto",
        cmap=ListedColormap(HELD_COLORS),
        vmin=0,
        vmax=2,
        interpolation="nearest",
    )
    axes[2].set_ylabel("compaction", rotation=0, ha="right", va="center")
    axes[2].set_xlabel(
        "position (blue: held, red: held and read again later, grey: dropped or not there yet)"
    )
    figure.suptitle(f"{trace.title}: importance by rank, and what each compaction leaves", fontsize=12)
    save(figure, path)


def draw_sawtooth(path: Path, trace: TracePicture) -> None:
    """Draw KV tokens held over the tokens seen, with the full cache's beside them.

    Args:
        path: of the PNG.
        trace: one trace.
    """
    figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
    seen = range(trace.question_len + 1, trace.question_len + 1 + len(trace.lengths))
    axis.plot(seen, seen, color=COLORS["stock"], linewidth=1.4, label="full cache")
    axis.plot(seen, trace.lengths, color=COLORS["dynts"], linewidth=1.4, label="DynTS")
    axis.axhline(trace.budget, color="black", linewidth=0.8, linestyle=":")
    axis.text(trace.question_len, trace.budget, " the budget", va="bottom", fontsize=9)
    tidy(axis, "KV tokens held")
    axis.set_xlabel("tokens seen, the question included")
    axis.legend(frameon=False, loc="upper left")
    figure.suptitle(trace.title, fontsize=12)
    save(figure, path)


def draw_importance(path: Path, traces: Sequence[TracePicture]) -> None:
    """Draw predicted against true importance, a point a token, those that are read again in red.

    Args:
        path: of the PNG.
        traces: of one task.
    """
    figure, axis = plt.subplots(figsize=(6, 5.2), layout="constrained")
    for is_critical, color, label in (
        (False, HELD_COLORS[1], "other"),
        (True, HELD_COLORS[2], "read again"),
    ):
        points = [
            (trace.true[at], trace.predicted[at])
            for trace in traces
            for at in range(trace.num_tokens)
            if (at in trace.critical) == is_critical and trace.true[at] > 0
        ]
        name = f"{label}: {len(points):,} tokens"
        if points:
            axis.scatter(
                *zip(*points, strict=True), s=5, alpha=0.4, color=color, label=name, linewidths=0
            )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("true importance: the most that a far token reads it")
    axis.set_ylabel("predicted score")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, markerscale=3)
    figure.suptitle(f"{len(traces)} traces, thinking tokens", fontsize=12)
    save(figure, path)


def _ranks(scores: Sequence[float]) -> list[float]:
    """Return each score's share of smaller ones, NaN where there is no score."""
    known = sorted(score for score in scores if score == score)
    places = {score: index / max(1, len(known) - 1) for index, score in enumerate(known)}
    return [places.get(score, float("nan")) for score in scores]


def _states(trace: TracePicture, number: int) -> list[int]:
    held = trace.held[number]
    return [(at in held) * (1 + (at in trace.critical)) for at in range(trace.num_tokens)]
