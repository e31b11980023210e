"""What is to be reached on an H200 against stock SGLang, and whether a measurement reaches it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TIME = "ms per output token"
THROUGHPUT = "output tokens/s"
PEAK = "peak KV tokens"
IDENTICAL = "greedy requests with stock's tokens"
SHARE_OF_COPY = "share of the copy's speed"
COMPACTION_SHARE = "compaction, % of decode time"
SCORING_SHARE = "scoring, % of decode time"

LLAMA, QWEN = "llama-8b", "qwen-7b"
BOTH = (QWEN, LLAMA)
SETTINGS_OF_ONES_OWN = ("budget", "local_window", "keep_ratio", "pool_tokens", "flags")
"""Arguments that make another measurement of it: a target is for the paper's windows and a whole pool."""


@dataclass(frozen=True)
class Target:
    """One bound on what one kind of cell measures.

    The ratio is DynTS's number over stock's. ``less`` turns it over: how many times less DynTS has.
    ``of_dynts`` bounds DynTS's own number instead. ``batch`` and ``output_len`` None fit every one.
    """

    bench: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    shapes: tuple[str, ...] = BOTH
    batch: int | None = None
    output_len: int | None = None
    less: bool = False
    of_dynts: bool = False
    digits: int = 2
    """A number is rounded to as many decimals as its bound is given with."""

    def fits(self, bench: str, unit: str, shape: str, batch: int, output_len: int) -> bool:
        """Whether a cell is one that this bounds."""
        return (
            (bench, unit) == (self.bench, self.unit)
            and shape in self.shapes
            and self.batch in (None, batch)
            and self.output_len in (None, output_len)
        )

    def number(self, result: Mapping[str, Any]) -> float | None:
        """Return what is compared with the bound, None where a side has no number."""
        if self.of_dynts:
            return result["dynts"]
        ratio = result["ratio"]
        return 1 / ratio if self.less and ratio else ratio

    def is_met(self, result: Mapping[str, Any]) -> bool:
        """Whether a measurement is within the bound; one that is missing is not."""
        number = self.number(result)
        if number is None:
            return False
        number = round(number, self.digits)
        return (self.at_least is None or number >= self.at_least) and (
            self.at_most is None or number <= self.at_most
        )

    @property
    def text(self) -> str:
        """The bound in words."""
        sign, bound = ("<=", self.at_most) if self.at_least is None else (">=", self.at_least)
        what = "DynTS" if self.of_dynts else "stock/DynTS" if self.less else "DynTS/stock"
        return f"{what} {sign} {bound:g}"


def fixed_batch(unit: str, **facts: Any) -> Target:
    """Return a target of ``fixed_batch``."""
    return Target("fixed_batch", unit, **facts)


TARGETS = (
    Target("untriggered", IDENTICAL, at_least=1, batch=1),
    Target("untriggered", IDENTICAL, at_least=1, batch=32),
    Target("untriggered", TIME, at_most=1.02, batch=1),
    Target("untriggered", TIME, at_most=1.02, batch=32),
    fixed_batch(TIME, at_most=1, batch=1, output_len=16384),
    fixed_batch(THROUGHPUT, at_least=1.25, batch=32, output_len=16384, shapes=(QWEN,)),
    fixed_batch(THROUGHPUT, at_least=1.5, batch=32, output_len=16384, shapes=(LLAMA,)),
    fixed_batch(PEAK, at_least=3.3, output_len=16384, less=True, digits=1),
    fixed_batch(PEAK, at_least=6.6, output_len=32768, less=True, digits=1),
    fixed_batch(COMPACTION_SHARE, at_most=0.5, of_dynts=True),
    fixed_batch(SCORING_SHARE, at_most=1, of_dynts=True),
    Target("attention", SHARE_OF_COPY, at_least=0.95),
)


def target_of(result: Mapping[str, Any]) -> Target | None:
    """Return the target of a cell, None where there is none."""
    case = [result[name] for name in ("bench", "unit", "shape", "batch", "output_len")]
    return next((target for target in TARGETS if target.fits(*case)), None)


def is_standard(arguments: Mapping[str, Any]) -> bool:
    """Whether a command's arguments leave windows, pool and flags as the targets mean them."""
    return not any(arguments.get(name) for name in SETTINGS_OF_ONES_OWN)


def judged(result: Mapping[str, Any], standard: bool) -> dict[str, Any]:
    """Return a cell's ``target`` in words and whether it is ``met``; both None where there is none."""
    target = target_of(result) if standard else None
    if target is None:
        return {"target": None, "met": None}
    return {"target": target.text, "met": target.is_met(result)}


def verdict(result: Mapping[str, Any]) -> str:
    """Return a kept cell's verdict for people, empty where it has no target."""
    if result["target"] is None:
        return ""
    return f"target {result['target']}: {'met' if result['met'] else 'falls short'}"
