"""Calls that never end, that end their process, and those that follow them."""

import asyncio
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sgl_dynts.tasks.limited import Limited, NotDone


@pytest.fixture
def limited():
    made = []

    def make(function, seconds=60.0):
        made.append(Limited(function, seconds))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_function_is_called_in_another_process_and_kept_there(limited):
    pid = limited("os:getpid")
    assert pid() == pid() != threading.get_native_id()
    assert limited("builtins:sorted")([3, 1, "\ud800"][:2]) == [1, 3]


@pytest.mark.parametrize("endless", ["time:sleep", "builtins:pow"])
def test_a_call_ends_at_its_limit_in_one_long_instruction_too(limited, endless):
    call = limited(endless, seconds=0.5)
    start = time.monotonic()
    with pytest.raises(NotDone, match=f"{endless} came to no end in 0.5 s"):
        call(*{"time:sleep": (3600,), "builtins:pow": (7, 10**10)}[endless])
    assert time.monotonic() - start < 30


def test_a_process_that_died_is_replaced(limited):
    end = limited("os:_exit")
    for _ in range(2):
        with pytest.raises(NotDone):
            end(1)


def test_the_callers_signals_are_its_own(limited):
    before = signal.getsignal(signal.SIGALRM)
    assert limited("builtins:len")("abc") == 3
    assert signal.getsignal(signal.SIGALRM) is before


def test_threads_and_a_running_event_loop_call_side_by_side(limited):
    length = limited("builtins:len")

    async def cell():
        return length("four")

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(length, ["a", "bc", "def"])) == [1, 2, 3]
    assert asyncio.run(cell()) == 4


def test_what_the_function_prints_is_no_answer(limited):
    assert limited("builtins:print")("hello") is None


def test_a_function_that_cannot_be_imported_is_named(limited):
    with pytest.raises(ImportError, match="no_such_module:judge cannot be imported"):
        limited("no_such_module:judge")("a")
