"""Servers that start in seconds: copies of a process that has imported SGLang already.

Each of a server's processes imports SGLang, which is most of its start. A copy (``fork``) has that behind
it. Whatever comes after the imports happens in the copy as in a new process, the plug-in's loading
included; and the server's own processes are copies as well, where SGLang says ``spawn``.
"""

import gc
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import uvicorn._subprocess as uvicorn_processes

SECONDS_BETWEEN_LOOKS = 0.05
MILLISECONDS_TO_WAIT = 5


class Warm:
    """A process that has imported SGLang, and starts copies of itself; not for a machine's GPU."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start it; it imports meanwhile.

        Args:
            environment: variables beside this process's own, of every copy.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
            text=True,
        )
        self._lock = Lock()

    def start(
        self, words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> "Copy":
        """Start a copy that does what ``python`` does with these words, and writes into the log.

        Args:
            words: ``-m`` and a module, or a file; then its arguments.
            log: for both of its streams.
            environment: variables beside those of all copies. What is read of them during the imports
                must be in ``_read_again``.
        """
        question = {"words": list(words), "log": str(log), "environment": dict(environment or {})}
        return Copy(self, self.ask(**question))

    def ask(self, **question: Any) -> Any:
        """Send one line of JSON and return what comes back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        assert answer, f"the process that has imported SGLang ended with {self._process.wait()}"
        return json.loads(answer)

    def stop(self) -> None:
        """End it, and its copies if any are left."""
        with suppress(BrokenPipeError):
            self._process.communicate()


class Copy:
    """A copy's process, with what tests use of ``subprocess.Popen``."""

    def __init__(self, origin: Warm, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._origin = origin

    def poll(self) -> int | None:
        """Return its exit status, None while it runs."""
        if self.returncode is None:
            self.returncode = self._origin.ask(status_of=self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status once it has ended.

        Raises:
            subprocess.TimeoutExpired: it runs for longer than these seconds.
        """
        started = time.monotonic()
        while (status := self.poll()) is None:
            if timeout is not None and time.monotonic() - started > timeout:
                raise subprocess.TimeoutExpired(f"copy {self.pid}", timeout)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return status

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, sign: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, sign)


def main() -> None:
    """Import SGLang, then start a copy or tell a copy's fate for each line of standard input."""
    _import()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # at the end of the input it takes its copies along
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running = set()
    for line in sys.stdin:
        question = json.loads(line)
        if "status_of" in question:
            answer = _status(question["status_of"])
            running -= set() if answer is None else {question["status_of"]}
        else:
            answer = _copy(**question)
            running.add(answer)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in running:
        os.killpg(pid, signal.SIGKILL)


def _import() -> None:
    """Import what a server's processes import, none of which may start a thread."""
    import sglang.launch_server
    import sglang.srt.entrypoints.http_server
    import sglang.srt.managers.detokenizer_manager
    import sglang.srt.managers.scheduler
    import sglang.srt.models.registry  # noqa: F401

    assert len(os.listdir("/proc/self/task")) == 1
    _let_controllers_wait()
    gc.freeze()  # pages that no copy's collector writes to stay shared


def _let_controllers_wait() -> None:
    """SGLang 0.5.23's controller of several ranks asks its socket without a pause, which takes a core."""
    from sglang.srt.managers import data_parallel_controller as controller

    ask: Any = controller.sock_recv

    def ask_patiently(socket: Any, flags: int = 0) -> Any:
        socket.poll(MILLISECONDS_TO_WAIT)
        return ask(socket, flags=flags)

    controller.sock_recv = ask_patiently


def _status(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _copy(words: list[str], log: str, environment: dict[str, str]) -> int:
    """Return the pid of a copy that runs a program; the copy itself does not return."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    try:
        os.environ.update(environment)
        sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
        _read_again()
        _become(words, log)
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _read_again() -> None:
    """Read those variables of a copy again that SGLang reads while it is imported."""
    from sglang.srt.environ import envs
    from sglang.srt.managers import scheduler

    scheduler.TEST_RETRACT = envs.SGLANG_TEST_RETRACT.get()
    scheduler.TEST_RETRACT_INTERVAL = envs.SGLANG_TEST_RETRACT_INTERVAL.get()


def _become(words: list[str], log: str) -> None:
    """Run a program as the leader of a session, as the harness starts servers."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(os.devnull) as nothing, open(log, "w") as out:
        os.dup2(nothing.fileno(), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    set_method = multiprocessing.set_start_method
    multiprocessing.set_start_method = lambda _method, force=False: set_method("fork", force)
    uvicorn_processes.spawn = multiprocessing.get_context("fork")  # several tokenizer workers
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
