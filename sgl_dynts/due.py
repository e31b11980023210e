"""When a compaction is due: the one rule, for a length and for an array of lengths."""

from typing import Any

NEVER = 1 << 40
"""A length that no window reaches."""
UNKNOWN = 0
"""In place of a length that is not known yet."""


def is_due(remaining: Any) -> Any:
    """Whether a compaction is due, for an int or [n] int64 of tokens until it is."""
    return remaining <= 0
