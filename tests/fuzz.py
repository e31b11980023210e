"""Hostile input: what it is drawn from, and a count of what came of it."""

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FIELDS = ["enabled", "return_compactions", "return_tokens", "budget", "local_window", "keep_ratio"]

numbers = st.one_of(
    st.integers(-3, 200),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(0, 1),
)
texts = st.text(string.printable + "\0é漢\u202e", max_size=20)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=10,
)
near_valid = st.fixed_dictionaries(
    {},
    optional={
        "enabled": st.booleans() | json_values,
        "return_compactions": st.booleans() | json_values,
        "return_tokens": st.booleans() | json_values,
        "budget": st.integers(2, 400) | numbers | json_values,
        "local_window": st.integers(1, 300) | numbers | json_values,
        "keep_ratio": st.floats(0.01, 0.99) | numbers | json_values,
    },
)
valid = st.fixed_dictionaries(
    {"budget": st.integers(100, 2**31), "local_window": st.integers(1, 99)},
    optional={
        "enabled": st.booleans(),
        "return_compactions": st.booleans(),
        "return_tokens": st.booleans(),
        "keep_ratio": st.floats(0.001, 0.999),
    },
)
options = st.one_of(
    valid,
    near_valid,
    json_values,
    st.dictionaries(st.sampled_from(FIELDS) | texts, json_values, max_size=6),
)
"""What may stand under ``custom_params.dynts``: valid, nearly valid, and anything JSON can say."""


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """A file with bytes replaced, inserted, cut out or cut off, most often in its header."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        end = min(len(data), draw(st.sampled_from([16, 600, len(good)])))
        at = draw(st.integers(0, end))
        match draw(st.sampled_from(["replace", "insert", "cut", "end", "digit"])):
            case "replace":
                new = draw(st.binary(min_size=1, max_size=8))
                data[at : at + len(new)] = new
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "cut":
                del data[at : at + draw(st.integers(1, 8))]
            case "end":
                del data[at:]
            case "digit":
                data[at : at + 1] = str(draw(st.integers(0, 9))).encode()
    return bytes(data)


@dataclass
class Tally:
    """How many examples were tried, and how they ended; anything else than these fails the test."""

    surface: str
    accepted: int = 0
    refused: int = 0

    @property
    def tried(self) -> int:
        """All examples."""
        return self.accepted + self.refused

    def row(self) -> str:
        """A line of the report."""
        return f"| {self.surface} | {self.tried} | {self.accepted} | {self.refused} |"


def fuzz(surface: str, drawn: st.SearchStrategy, act: Callable[[Any], bool], num_examples: int) -> Tally:
    """Call ``act`` with each example; it returns whether the input was accepted and raises for a bug."""
    tally = Tally(surface)

    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.filter_too_much,
            HealthCheck.data_too_large,
        ],
    )
    @given(drawn)
    def run(example: Any) -> None:
        if act(example):
            tally.accepted += 1
        else:
            tally.refused += 1

    run()
    return tally
