"""Two sides of a simulation that run by turns."""

import threading

import pytest

from benchmark.simulation.job import DYNTS, STOCK
from benchmark.simulation.turns import Turns


@pytest.mark.parametrize("first_to_come", [STOCK, DYNTS])
def test_turns_alternate_whoever_comes_first(tmp_path, first_to_come):
    order: list[str] = []

    def play(side: str) -> None:
        turns = Turns(tmp_path, side, patience=60)
        for _ in range(3):
            turns.next()
            order.append(side)
        turns.leave()

    last_to_come = DYNTS if first_to_come == STOCK else STOCK
    threads = [threading.Thread(target=play, args=[side]) for side in (first_to_come, last_to_come)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order == [STOCK, DYNTS] * 3


def test_a_side_whose_other_never_comes_does_not_hang(tmp_path):
    with pytest.raises(TimeoutError, match="did not take its turn"):
        Turns(tmp_path, STOCK, patience=0.01).next()
