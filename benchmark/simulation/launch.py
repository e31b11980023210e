"""Starts a process per side and hands it jobs; imports no SGLang."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmark.harness.provenance import ROOT
from benchmark.simulation.job import DYNTS, STOCK, Job

PLATFORM_PLUGIN, PLUGIN = "dynts_host_cpu", "dynts"
PLUGINS = {STOCK: PLATFORM_PLUGIN, DYNTS: f"{PLUGIN},{PLATFORM_PLUGIN}"}
"""Entry points that each side loads: stock SGLang gets the platform alone."""

LINES_OF_A_FAILURE = 40


class SimulationError(RuntimeError):
    """A job failed; the message ends with the log of its process."""


class SideProcess:
    """One side's process, for as many jobs as there are, one after the other.

    SGLang is told by its own environment variable which plug-ins to load; no accelerator is shown to
    it, and its temporary files go where this object's do.
    """

    def __init__(self, side: str, **environment: str) -> None:
        """Start the process.

        Args:
            side: ``stock`` or ``dynts``.
            environment: SGLang's own variables, beside those that a simulation needs.
        """
        self.side = side
        self._folder = tempfile.TemporaryDirectory(prefix="dynts-simulation-")
        self._log = Path(self._folder.name) / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "benchmark.simulation", side],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=os.environ | environment | self._environment(),
            )

    def _environment(self) -> dict[str, str]:
        return {
            "SGLANG_PLUGINS": PLATFORM_PLUGIN,  # the other one registers itself, with the clock
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": self._folder.name,
        }

    def run(self, job: Job) -> dict[str, Any]:
        """Run one job and return its measures.

        Raises:
            SimulationError: the job failed.
        """
        result = Path(self._folder.name) / "result.json"
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"job": job.to_json(), "result": str(result)}) + "\n")
        stdin.flush()
        answer = stdout.readline().strip()
        while answer and not answer.lstrip("-").isdigit():  # a library that prints
            answer = stdout.readline().strip()
        if answer != "0":
            tail = "\n".join(self._log.read_text().splitlines()[-LINES_OF_A_FAILURE:])
            raise SimulationError(f"the {self.side} side ended with {answer or 'no answer'}:\n{tail}")
        return json.loads(result.read_text())

    def __enter__(self) -> "SideProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        if kind is not None:
            self._process.terminate()
        self._process.wait()
        self._folder.cleanup()
