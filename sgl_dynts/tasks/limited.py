"""A function in a process of its own with a hard limit of seconds, for what may never come back.

The process asks the kernel to end it, so that it ends in the midst of one long instruction too, where a
handler of Python's would wait. It works from any thread, and beside an event loop.
"""

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Any

MOST_BYTES = 4 << 30
START = "from sgl_dynts.tasks.limited import serve; serve()"
READY = "ready"


class NotDone(RuntimeError):  # noqa: N818  an outcome to count rather than a fault
    """The process came to its limit of seconds, or died of what it was given."""


class Limited:
    """One function, called in processes that are kept for the next call.

    Args:
        function: ``module:name`` of a function whose arguments and result JSON can hold.
        seconds: after which a call is given up; importing the module does not count.
    """

    def __init__(self, function: str, seconds: float) -> None:
        self.function = function
        self.seconds = seconds
        self._idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        atexit.register(self.close)

    def __call__(self, *arguments: Any) -> Any:
        """Call the function; calls from several threads run side by side.

        Raises:
            NotDone: it took too long, or its process died.
        """
        process = self._take()
        answer = ""
        try:
            answer = _exchange(process, arguments)
        finally:  # an interrupted call leaves none that still computes
            if not answer:
                _end(process)
        if not answer:
            raise NotDone(f"{self.function} came to no end in {self.seconds:g} s")
        self._idle.put(process)
        return json.loads(answer)

    def close(self) -> None:
        """End the idle processes; the next call starts a fresh one."""
        while True:
            try:
                _end(self._idle.get_nowait())
            except Empty:
                return

    def _take(self) -> subprocess.Popen[str]:
        try:
            return self._idle.get_nowait()
        except Empty:
            return self._start()

    def _start(self) -> subprocess.Popen[str]:
        """Start a process and wait until it has imported the function.

        Raises:
            ImportError: it cannot; its own message is on stderr.
        """
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                START,
                self.function,
                str(self.seconds),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            text=True,
            start_new_session=True,  # Ctrl-C ends the caller, who closes stdin
        )
        assert process.stdout
        if process.stdout.readline().strip() != READY:
            _end(process)
            raise ImportError(f"{self.function} cannot be imported; the message stands above")
        return process


def serve() -> None:
    """Answer calls, one JSON line each, until stdin ends; what the function prints goes to stderr."""
    name, seconds = sys.argv[1], float(sys.argv[2])
    replies, sys.stdout = sys.stdout, sys.stderr
    function = _function(name)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    print(READY, file=replies, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        result = function(*json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(result), file=replies, flush=True)


def _function(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def _exchange(process: subprocess.Popen[str], arguments: tuple[Any, ...]) -> str:
    """Send a call and return its line; an empty one from a process that ended."""
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(json.dumps(arguments) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
