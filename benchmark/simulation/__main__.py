"""A process of one side: imports SGLang once, then runs each job it is given in a child of its own.

Reads one JSON line per job from standard input, ``{"job": ..., "result": path}``, and answers each
with one line of standard output: the child's exit code.
"""

import json
import multiprocessing
import sys
import tempfile
from pathlib import Path

import sglang.srt.managers.scheduler
import sglang.srt.models.registry  # noqa: F401  imports every model: once for all children
import torch
from sglang.srt.plugins import load_plugins

from benchmark.simulation.hook_clock import CLOCK
from benchmark.simulation.job import DYNTS, SIDES, Job
from benchmark.simulation.simulation import simulate
from sglang_dynts import plugin, seams
from sglang_dynts.boot.cpu import recurrent
from sglang_dynts.seams import Process


def main(side: str) -> None:
    """Serve jobs until standard input ends.

    Stock SGLang gets the stand-ins that let it build recurrent layers without a GPU, and nothing else.
    """
    torch.set_num_threads(1)
    if side == DYNTS:
        plugin.register(wrap=CLOCK.around)
    else:
        seams.put_in_place(Process.HOST_CPU, recurrent.scheduler_seams())
    load_plugins()
    assert bool(seams.declared(Process.SCHEDULER)) == (side == DYNTS), f"plug-ins do not fit {side=}"
    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        message = json.loads(line)
        job = Job.from_json(message["job"])
        child = fork.Process(target=_run, args=(job, side, Path(message["result"])))
        child.start()
        child.join()
        sys.stdout.write(f"{child.exitcode}\n")
        sys.stdout.flush()


def _run(job: Job, side: str, result: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result.write_text(json.dumps(simulate(job, side, Path(folder))))


if __name__ == "__main__":
    assert sys.argv[1] in SIDES, sys.argv
    main(sys.argv[1])
