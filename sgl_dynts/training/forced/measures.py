"""What dropping costs in likelihood: per token, per text, and over texts against another policy."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from statistics import fmean, stdev
from typing import Any

import torch

ALL_KINDS = "all"
ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class Likelihood:
    """How a text's tokens are foretold; each [n] float32, by token."""

    nll: torch.Tensor
    """Nats."""
    kl: torch.Tensor
    """Nats, of the full cache's distribution against this one."""
    agrees: torch.Tensor
    """1 where both think the same token the likeliest."""

    def means(self) -> "TextMeans":
        """Return the means over the text."""
        return TextMeans(*(float(one.double().mean()) for one in (self.nll, self.kl, self.agrees)))


@dataclass(frozen=True)
class TextMeans:
    """Means over the tokens of one text."""

    nll: float
    kl: float
    agreement: float


def likelihood(logits: torch.Tensor, full: torch.Tensor, targets: torch.Tensor) -> Likelihood:
    """Compare predictions with those of the full cache, and with what came.

    Args:
        logits: [n, vocab_size] float32.
        full: [n, vocab_size] float32, with nothing dropped.
        targets: [n] int64, the tokens that came.
    """
    parts = []
    for rows in torch.arange(len(targets)).split(ROWS_AT_ONCE):
        found, wanted = logits[rows].log_softmax(-1), full[rows].log_softmax(-1)
        nll = -found.gather(1, targets[rows, None])[:, 0]
        kl = (wanted.exp() * (wanted - found)).sum(-1)
        parts.append((nll, kl, (found.argmax(-1) == wanted.argmax(-1)).float()))
    return Likelihood(*map(torch.cat, zip(*parts, strict=True)))


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of a mean; no number for one value."""
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else nan


def summarize(texts: Sequence[TextMeans], window: Sequence[TextMeans]) -> dict[str, Any]:
    """Return a cell's measures: means over texts, and the paired difference of NLL to `window`.

    Args:
        texts: one for each text.
        window: the same texts under `window`.
    """
    deltas = [own.nll - other.nll for own, other in zip(texts, window, strict=True)]
    return {
        "n": len(texts),
        "nll": round(fmean(one.nll for one in texts), 5),
        "kl": round(fmean(one.kl for one in texts), 5),
        "agreement": round(fmean(one.agreement for one in texts), 5),
        "delta_nll": round(fmean(deltas), 5),
        "delta_nll_se": round(standard_error(deltas), 5) if len(deltas) > 1 else None,
    }


def kinds_of(kinds: Iterable[str]) -> list[str]:
    """Return each kind once, and all together where there are several."""
    once = list(dict.fromkeys(kinds))
    return [*once, ALL_KINDS] if len(once) > 1 else once
