"""How well predicted scores order the thinking tokens of a trace, beside the true importance."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast

import torch
from scipy import stats
from torch import Tensor

from sgl_dynts.selection import select_kept

SHARES = (0.2, 0.3)
"""Shares of a trace's thinking tokens that are compared at the top."""


@dataclass(frozen=True)
class Ranking:
    """Of one trace, or the mean over traces.

    ``tau`` is Kendall's tau-b, 1 where the order is the same. ``overlap_20`` and ``overlap_30`` are the
    shares of the truly highest 20 and 30 % that are among the predicted highest. ``recall_20`` and
    ``recall_30`` are the shares of the tokens known to be critical that are; None where none is known.
    """

    tau: float
    overlap_20: float
    overlap_30: float
    recall_20: float | None
    recall_30: float | None


def rank_quality(scores: Tensor, targets: Tensor, critical: Tensor) -> Ranking:
    """Compare one trace's scores with its targets.

    Args:
        scores: [n] float32, predicted; finite.
        targets: [n] float32, at least 2 of them.
        critical: [n] bool, tokens known to be critical; all False where none is known.
    """
    chosen = [in_the_top(scores, share) for share in SHARES]
    true = [in_the_top(targets, share) for share in SHARES]
    tau = cast(Any, stats.kendalltau(scores.cpu().numpy(), targets.cpu().numpy())).statistic
    return Ranking(
        0.0 if tau != tau else float(tau),  # all equal: no order to agree on
        *(_share_found(*pair) for pair in zip(true, chosen, strict=True)),
        *(_share_found(critical, top) if critical.any() else None for top in chosen),
    )


def in_the_top(scores: Tensor, share: float) -> Tensor:
    """Mark the highest `share` of scores [n], at least one, ties to the older token: [n] bool."""
    count = max(1, round(share * len(scores)))
    sizes = torch.tensor([[len(scores)], [count]], device=scores.device)
    return select_kept(scores.float()[None], sizes[0], sizes[1])[0]


def mean_ranking(rankings: list[Ranking]) -> Ranking:
    """Return the mean over traces; recalls over those where critical tokens are known."""
    return Ranking(
        *(fmean(getattr(one, name) for one in rankings) for name in ("tau", "overlap_20", "overlap_30")),
        *(
            _mean_of_known([getattr(one, name) for one in rankings])
            for name in ("recall_20", "recall_30")
        ),
    )


def _share_found(wanted: Tensor, found: Tensor) -> float:
    return ((wanted & found).sum() / wanted.sum()).item()


def _mean_of_known(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
