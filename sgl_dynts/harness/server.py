"""A server in a process of its own: started on loopback, awaited, ended by its own pid."""

import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from sgl_dynts.harness.client import LOST, Client

HOST = "127.0.0.1"
LOWEST_PORT, USUALLY_GIVEN = 10_000, 32_768
GIVEN_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Lowest and highest port that the system gives to whoever names none."""
LAUNCH_SERVER = (sys.executable, "-m", "sglang.launch_server")
START_SECONDS = 900
"""A busy machine, or a GPU whose kernels are compiled at the first start."""
CACHES = "TORCHINDUCTOR_CACHE_DIR"
"""Where torch keeps its caches; default: in the home folder."""
SECONDS_BETWEEN_SIGNS = 10
SECONDS_TO_END = 60
SECONDS_TO_TELL_ITS_FATE = 5
LINES_OF_A_FAILURE = 40


class ServerError(RuntimeError):
    """A server did not start, or ended; the message ends with its log."""


class Process(Protocol):
    """What is used of ``subprocess.Popen``."""

    pid: int

    def poll(self) -> int | None:
        """Return its exit status, None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status once it has ended; raise ``TimeoutExpired`` after these seconds."""
        ...

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


class Server:
    """A process that serves, with its log in a file; as a context it ends with its block."""

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] = LAUNCH_SERVER,
        port: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Start it.

        Args:
            words: its arguments, all but host and port.
            log: what it writes goes there.
            environment: variables that it gets beside this process's own.
            command: what starts it.
            port: on loopback; default: a free one.
            headers: that its client sends.

        Raises:
            ServerError: there is no home folder.
        """
        check_home(environment or {})
        self.port = port or free_port()
        self.log = log
        self.client = Client(f"http://{HOST}:{self.port}", headers)
        self.command = [*command, *words, "--host", HOST, "--port", str(self.port)]
        self.process = self.launch(environment or {})

    def launch(self, environment: Mapping[str, str]) -> Process:
        """Start the command, as the leader of a session, with these variables beside our own."""
        with self.log.open("w") as out:
            return subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,
            )

    def wait(self, seconds: float = START_SECONDS, say: Callable[[str], None] | None = None) -> None:
        """Return once it answers.

        Args:
            seconds: in which it must.
            say: takes a sign of life now and then.

        Raises:
            ServerError: it ended, or did not answer in time.
        """
        started = time.monotonic()
        next_sign = started + SECONDS_BETWEEN_SIGNS
        while not self.client.is_up():
            now = time.monotonic()
            if self.process.poll() is not None:
                raise self.failure(f"the server ended with {self.process.poll()}")
            if now - started > seconds:
                raise self.failure(f"the server did not answer within {seconds:g} s")
            if say is not None and now >= next_sign:
                say(f"starting ... {now - started:.0f} s")
                next_sign += SECONDS_BETWEEN_SIGNS
            time.sleep(0.5)

    def failure(self, what: str) -> ServerError:
        """Return an error that says this and shows the end of the log."""
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-LINES_OF_A_FAILURE:])
        return ServerError(f"{what}; {self.log}:\n{tail}")

    def fate(self) -> str:
        """Say whether a server that dropped a request still runs, some seconds after."""
        with suppress(subprocess.TimeoutExpired):
            return f"the server ended with {self.process.wait(SECONDS_TO_TELL_ITS_FATE)}"
        return "the server still runs"

    def stop(self) -> None:
        """End it by its pid, then whatever is left of its process group."""
        end(self.process)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()


@contextmanager
def running(
    words: Sequence[str], log: Path, environment: Mapping[str, str], seconds: float = START_SECONDS
) -> Iterator[Client]:
    """Give a client of a server that lives as long as the block; arguments as of :class:`Server`.

    Raises:
        ServerError: it did not start, ended by itself, or dropped a request, with the end of its log.
    """
    with Server(words, log, environment=environment) as server:
        server.wait(seconds)
        try:
            yield server.client
        except urllib.error.HTTPError:  # an answer
            raise
        except LOST as error:
            raise server.failure(f"{error}: {server.fate()}") from error
        if server.process.poll() is not None:
            raise server.failure("the server ended by itself")


@contextmanager
def served(url: str | None, model: Path, flags: str) -> Iterator[Client]:
    """Give a client of the server at a URL, or of one with DynTS that lives as long as the block.

    Args:
        url: of a running server; None starts one.
        model: folder of the model to serve.
        flags: more of the server's arguments.

    Raises:
        ServerError: the server did not start.
    """
    if url is not None:
        yield Client(url)
        return
    words = ["--model-path", str(model), "--attention-backend", "dynts", *shlex.split(flags)]
    with running(words, new_log("sgl_dynts_"), {}) as client:
        yield client


def one_thread() -> dict[str, str]:
    """Return variables of a server of a tiny model: a second thread costs more than it gives."""
    return {
        "OMP_NUM_THREADS": "1",
        "SGLANG_CPU_OMP_THREADS_BIND": str(max(os.sched_getaffinity(0))),
        "PYTHONWARNINGS": "ignore",
    }


def check_home(environment: Mapping[str, str]) -> None:
    """Refuse to start where torch, which SGLang imports, finds no folder for its caches.

    Args:
        environment: variables beside this process's own.

    Raises:
        ServerError: HOME is unset, and the system knows none of this user's.
    """
    has_home = "HOME" in environment or os.path.expanduser("~") != "~"
    caches = (os.environ | environment).get(CACHES, "~")  # SGLang sets it, to a folder in the home folder
    if not has_home and caches.startswith("~"):
        raise ServerError(
            "HOME is not set, and SGLang does not start without a folder for caches: set HOME to one "
            "that this user can write"
        )


def new_log(prefix: str) -> Path:
    """Make an empty log among the temporary files, which stays."""
    descriptor, path = tempfile.mkstemp(prefix=prefix, suffix=".log")
    os.close(descriptor)
    return Path(path)


def unwind_on_sigterm() -> None:
    """Let a termination signal leave this process through its ``with`` blocks, which end servers."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def end(process: Process) -> None:
    """End a process by its pid, then whatever is left of its process group."""
    process.terminate()
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """Return a loopback port that nobody listens on, and that no connection gets by itself.

    A server binds its port a minute after it was chosen. Until then the system may give one of its own
    range to any connection of any process.
    """
    ports = range(LOWEST_PORT, _lowest_given())
    for port in random.SystemRandom().sample(ports, len(ports)):
        with suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            return port
    raise ServerError(f"no port of {HOST} from {ports.start} to {ports.stop - 1} is free; name one")


def _lowest_given() -> int:
    """The first port that the system gives by itself; Linux's usual one where it does not tell."""
    try:
        lowest = int(GIVEN_PORTS.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return USUALLY_GIVEN
    return lowest if lowest > LOWEST_PORT else USUALLY_GIVEN
