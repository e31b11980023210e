"""Lets two simulations run by turns, a few iterations each, so that what slows the machine slows both."""

import contextlib
import os
import select
from pathlib import Path

from benchmark.simulation.job import SIDES


class Turns:
    """One side's place at the table: two pipes in a folder that both sides know.

    The side that is first in ``SIDES`` begins once the other has come.
    """

    def __init__(self, folder: Path, side: str, patience: float = 3600) -> None:
        """Sit down.

        Args:
            folder: for the pipes.
            side: one of ``SIDES``.
            patience: seconds to wait for the other side.
        """
        self._patience = patience
        other = next(each for each in SIDES if each != side)
        self._own, self._other = (_pipe(folder / each) for each in (side, other))
        self._comes_last = side == SIDES[-1]
        self._has_begun = False

    def next(self) -> None:
        """Let the other side go on, and wait until it has done its part.

        Raises:
            TimeoutError: the other side did not come.
        """
        if self._has_begun or self._comes_last:
            self.leave()
        self._has_begun = True
        if not select.select([self._own], [], [], self._patience)[0]:
            raise TimeoutError(f"the other side did not take its turn within {self._patience} s")
        os.read(self._own, 1)

    def leave(self) -> None:
        """Let the other side go on, and do not wait."""
        os.write(self._other, b"1")


def _pipe(path: Path) -> int:
    """Open a named pipe both ways, so that neither side waits for the other to open it."""
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path)
    return os.open(path, os.O_RDWR)
