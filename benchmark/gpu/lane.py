"""One script for a GPU: installs, tests and measures, in steps that end by themselves.

    python3 -m benchmark.gpu.lane --dry-run
    python3 -m benchmark.gpu.lane
    python3 -m benchmark.gpu.lane --step fixed_batch
    python3 -m benchmark.gpu.lane --step serving_tests   # whole servers; not among the 25 minutes
    python3 -m benchmark.gpu.lane --step install kernels attention short   # what 10 minutes have room for
    python3 -m benchmark.gpu.lane --tiny --step untriggered

Any Python 3.11 starts it; each step runs by the one that ``benchmark.gpu.install`` prepared. A step that
fails does not keep the others from running; the exit status tells. The estimates are the roofline's, plus
START_SECONDS for each server and LOAD_SECONDS for each load: assumptions, as are the limits made from
them.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.gpu import install
from benchmark.gpu.shapes import TINY, WINDOWS
from benchmark.harness.provenance import RESULTS, ROOT, commit, parser_of
from benchmark.predict import Outlook
from benchmark.simulation.job import SIDES
from sgl_dynts.config import DynTSConfig
from sgl_dynts.roofline import GPUS, SHAPES, Gpu, ModelShape

START_SECONDS = 45
"""Of one server on a GPU: imports, dummy weights, CUDA graphs."""
LOAD_SECONDS = 10
"""Of one start of the load generator, which imports SGLang."""
TINY_LIMIT = 595
"""Of a step with the tiny shape, whose servers start on a slow CPU."""
SECONDS_TO_END = 60
QUESTION_LEN = 200
TIMED_OUT = 124
NOT_INSTALLED = 127
FIXED_BATCH_LIMIT = 525
LENGTHS = (16384, 8192)
"""Of the outputs of fixed_batch: the longest that fits its limit, by the estimate."""
SMALL_WINDOWS = DynTSConfig(3000, 1500, 0.4)
"""The paper's for shorter traces, so that short outputs are compacted too."""


@dataclass(frozen=True)
class Step:
    """One command, the seconds after which it is ended, and the seconds it should take.

    ``estimate`` None: nothing predicts it. ``on_request`` steps run only when they are named.
    """

    name: str
    words: tuple[str, ...]
    limit: int
    estimate: float | None = None
    on_request: bool = False


@dataclass(frozen=True)
class Forecast:
    """The roofline's times of the loads that the steps send, both sides together."""

    gpu: Gpu
    shape: ModelShape

    def seconds(
        self, output_len: int, batch: int, waves: float = 1, question_len: int = QUESTION_LEN
    ) -> float:
        """Seconds of so many batches of requests, one after the other."""
        outlook = self._outlook(output_len, question_len, WINDOWS[self.shape.name])
        return sum(waves * output_len * outlook.step_seconds(side, batch) for side in SIDES)

    def seconds_at_capacity(
        self, output_len: int, num_prompts: int, pool_tokens: int, windows: DynTSConfig
    ) -> float:
        """Seconds of more requests than a pool holds."""
        outlook = self._outlook(output_len, QUESTION_LEN, windows, pool_tokens)
        return sum(
            num_prompts * output_len / outlook.tokens_per_s(side, min(num_prompts, outlook.fitting(side)))
            for side in SIDES
        )

    def _outlook(
        self, output_len: int, question_len: int, windows: DynTSConfig, pool_tokens: int | None = None
    ) -> Outlook:
        config = DynTSConfig(windows.budget, windows.local_window, windows.keep_ratio)
        return Outlook(self.gpu, self.shape, config, question_len, output_len, pool_tokens)


def main() -> None:
    """Print the plan or run it; exits with 1 if a step failed."""
    args = parse()
    common = ["--out", str(args.out)] + (["--commit", args.commit] if args.commit else [])
    steps = tiny_steps(common) if args.tiny else gpu_steps(args.shape, GPUS[args.gpu], common)
    steps = chosen(steps, args.step)
    print_plan(steps)
    if args.dry_run:
        return
    if not (args.commit or commit()):
        raise SystemExit("no repository is here to ask for the commit; name it with --commit")
    failed = run_all(steps)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def chosen(steps: Sequence[Step], names: Sequence[str] | None) -> list[Step]:
    """Return the named steps, or all that need not be named."""
    if names:
        return [step for step in steps if step.name in names]
    return [step for step in steps if not step.on_request]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("gpu.lane", __doc__)
    add = parser.add_argument
    names = [step.name for step in tiny_steps([])]
    add("--dry-run", action="store_true", help="print the plan alone")
    add("--step", nargs="+", choices=names, help="run these alone")
    add("--tiny", action="store_true", help="a tiny model with small lengths, on any machine")
    add("--shape", default="qwen-7b", choices=sorted(SHAPES))
    add("--gpu", default="h200", choices=sorted(GPUS), help="for the estimates, and how long outputs are")
    add("--out", type=Path, default=RESULTS / "gpu.json", help="of the benches")
    add("--commit", help="of this code; default: what git says")
    return parser.parse_args()


def gpu_steps(shape: str, gpu: Gpu, common: Sequence[str] = ()) -> list[Step]:
    """Return the steps on a GPU, the cheap ones first; ``common`` arguments go to every bench."""
    forecast = Forecast(gpu, SHAPES[shape])
    model = ["--shape", shape, *common]
    return [
        *ready_steps(150, 150),
        bench("kernels", model, 40),
        bench("attention", model, 45),
        untriggered_step(forecast, model),
        fixed_batch_step(forecast, model),
        shared_prefix_step(forecast, model),
        capacity_step(forecast, model),
        short_step(forecast, model),
        summary_step(common),
    ]


def short_step(forecast: Forecast, model: Sequence[str]) -> Step:
    """Untriggered, and 32 outputs of 16,384 tokens, on servers that start at once."""
    spent = forecast.seconds(512, 1, waves=5) + forecast.seconds(512, 32, waves=3)
    spent += forecast.seconds(16384, 32)
    flags = "--stock-attention-backend flashinfer --batch 32"
    return bench("short", model, 480, starts(3) / len(SIDES) + spent, flags, on_request=True)


def untriggered_step(forecast: Forecast, model: Sequence[str]) -> Step:
    """Greedy tokens twice and the load once, at batch 1 and 32, attention the same on both sides.

    These servers are the first to start, so the limit leaves time for what else is compiled once.
    """
    length, greedy = 512, 2
    spent = forecast.seconds(length, 1, waves=2 * greedy + 1) + forecast.seconds(length, 32, waves=3)
    flags = f"--stock-attention-backend flashinfer --output-len {length} --requests {greedy}"
    return bench("untriggered", model, 215, starts(2) + spent, flags)


def fixed_batch_step(forecast: Forecast, model: Sequence[str]) -> Step:
    """Batch 1 and 32, at the longest output that fits."""
    estimates = {
        length: starts(2) + forecast.seconds(length, 1) + forecast.seconds(length, 32)
        for length in LENGTHS
    }
    fitting = (length for length in LENGTHS if estimates[length] < FIXED_BATCH_LIMIT)
    length = next(fitting, LENGTHS[-1])
    flags = f"--batch 1 32 --output-len {length}"
    return bench("fixed_batch", model, FIXED_BATCH_LIMIT, estimates[length], flags)


def shared_prefix_step(forecast: Forecast, model: Sequence[str]) -> Step:
    """Four groups of eight."""
    spent = forecast.seconds(2048, 32, question_len=1024 + 128)
    flags = f"--groups 4 --prompts-per-group 8 --output-len 2048 {' '.join(SMALL_WINDOWS.flags())}"
    return bench("shared_prefix", model, 155, starts(1) + spent, flags)


def capacity_step(forecast: Forecast, model: Sequence[str]) -> Step:
    """A pool so small that a few requests fill it: a whole one takes longer than a step may."""
    spent = forecast.seconds_at_capacity(5120, 8, 16_000, SMALL_WINDOWS)
    flags = f"--output-len 5120 --pool-tokens 16000 --num-prompts 8 {' '.join(SMALL_WINDOWS.flags())}"
    return bench("capacity_run", model, 200, starts(1) + spent, flags)


def starts(num_loads: int) -> int:
    """Return the seconds that both sides' servers take to start, and so many loads on each."""
    return len(SIDES) * (START_SECONDS + num_loads * LOAD_SECONDS)


def tiny_steps(common: Sequence[str]) -> list[Step]:
    """Return the same steps with a tiny model and short outputs; they show that the lane runs."""
    model = ["--shape", TINY, *common]
    served = [*model, "--start-seconds", str(TINY_LIMIT // 2)]
    lengths = "--question-len 20"
    return [
        *ready_steps(TINY_LIMIT, TINY_LIMIT),
        bench("kernels", model, TINY_LIMIT, flags="--due 1 4 --batch 1 8 --copy-mib 4"),
        bench("attention", model, TINY_LIMIT, flags="--batch 1 4 --copy-mib 4 --layers 2"),
        bench("untriggered", served, TINY_LIMIT, flags=f"{lengths} --batch 1 4 --output-len 40"),
        bench("fixed_batch", served, TINY_LIMIT, flags=f"{lengths} --batch 1 4 --output-len 150"),
        bench(
            "shared_prefix",
            served,
            TINY_LIMIT,
            flags="--groups 2 --prompts-per-group 3 --prefix-len 32 --question-len 8 "
            "--output-len 80 --batch 2",
        ),
        bench("capacity_run", served, TINY_LIMIT, flags=f"{lengths} --output-len 200 --pool-tokens 600"),
        bench(
            "short",
            served,
            TINY_LIMIT,
            flags=f"{lengths} --batch 4 --output-len 150 --untriggered-len 40 --untriggered-batch 1 4",
            on_request=True,
        ),
        summary_step(common),
    ]


def ready_steps(install_limit: int, tests_limit: int) -> list[Step]:
    """Return what comes before the benches; the tests compile FlashInfer's decode attention."""
    return [
        Step("install", ("benchmark.gpu.install",), install_limit),
        gpu_tests("tests", ("kernels", "attention"), tests_limit),
        gpu_tests("serving_tests", ("serving",), TINY_LIMIT, on_request=True),
    ]


def gpu_tests(name: str, files: Sequence[str], limit: int, *, on_request: bool = False) -> Step:
    """Return a step of GPU tests; without a GPU they are skipped."""
    paths = [f"tests/gpu/test_{file}.py" for file in files]
    return Step(name, ("pytest", "-m", "gpu", "-q", *paths), limit, on_request=on_request)


def summary_step(common: Sequence[str]) -> Step:
    """Return the last step: what was reached, of all that is to be reached."""
    return Step("summary", ("benchmark.gpu.summary", *common), 15)


def bench(
    name: str,
    arguments: Sequence[str],
    limit: int,
    estimate: float | None = None,
    flags: str = "",
    *,
    on_request: bool = False,
) -> Step:
    """Return a bench's step."""
    words = (f"benchmark.gpu.{name}", *arguments, *flags.split())
    return Step(name, words, limit, estimate, on_request)


def print_plan(steps: Sequence[Step]) -> None:
    """Print what would run."""
    print(f"{'step':16}{'limit, s':>9}{'estimate, s':>13}  command")
    for step in steps:
        estimate = "-" if step.estimate is None else f"{step.estimate:.0f}"
        print(f"{step.name:16}{step.limit:9}{estimate:>13}  python -m {' '.join(step.words)}")
    print(f"at most {sum(step.limit for step in steps) / 60:.1f} minutes\n", flush=True)


def run_all(steps: Sequence[Step]) -> list[str]:
    """Run every step and return the names of those that failed."""
    failed = []
    for step in steps:
        print(f"== {step.name}", flush=True)
        start = time.monotonic()
        status = run(step)
        print(f"== {step.name}: status {status} after {time.monotonic() - start:.0f} s", flush=True)
        if status:
            failed.append(step.name)
    return failed


def run(step: Step) -> int:
    """Run one step; returns its exit status, TIMED_OUT if it had to be ended.

    It is asked to end first, so that it can end its servers. Nothing but the first step runs before
    there is a Python to run it: NOT_INSTALLED.
    """
    prepared = install.located()
    if prepared is None and step.name != "install":
        print(f"nothing is installed to run {step.name} with; run --step install first", flush=True)
        return NOT_INSTALLED
    runner = prepared or install.Interpreter(Path(sys.executable))
    process = subprocess.Popen([runner.python, "-m", *step.words], cwd=ROOT, env=runner.environ())
    try:
        return process.wait(step.limit)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return TIMED_OUT


if __name__ == "__main__":
    main()
