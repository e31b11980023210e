"""How a command is interrupted whose work is kept, so that the same command goes on."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit status of a command that was."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a termination signal raise KeyboardInterrupt, as one from the keyboard does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
