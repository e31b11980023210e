"""Everything that is to be measured on a GPU, in steps that end by themselves.

    python -m benchmark.gpu.lane --dry-run
    python -m benchmark.gpu.lane
    python -m benchmark.gpu.lane --step fixed_batch
    python -m benchmark.gpu.lane --step serving_tests    # whole servers; not among the 25 minutes
    python -m benchmark.gpu.lane --tiny --step untriggered

A step that fails does not keep the others from running; the exit status tells. The estimates are the
roofline's, plus START_SECONDS for each server and LOAD_SECONDS for each load: assumptions, as are the
limits made from them.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.gpu.shapes import TINY, WINDOWS
from benchmark.predict import Outlook
from benchmark.provenance import RESULTS, ROOT, parser_of
from sgl_dynts.config import DynTSConfig
from sgl_dynts.roofline import GPUS, SHAPES, Gpu, ModelShape
from sglang_dynts.simulation.job import SIDES

START_SECONDS = 45
"""Of one server on a GPU: imports, dummy weights, CUDA graphs."""
LOAD_SECONDS = 10
"""Of one start of the load generator, which imports SGLang."""
TINY_LIMIT = 595
"""Of a step with the tiny shape, whose servers start on a slow CPU."""
SECONDS_TO_END = 60
QUESTION_LEN = 200
TIMED_OUT = 124


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

    @property
    def command(self) -> list[str]:
        """The command, by the Python that runs the lane."""
        return [sys.executable, "-m", *self.words]


@dataclass(frozen=True)
class Forecast:
    """The roofline's times of the loads that the steps send, both sides together."""

    gpu: Gpu
    shape: ModelShape

    def seconds(
        self, output_len: int, batch: int, waves: float = 1, question_len: int = QUESTION_LEN
    ) -> float:
        """Seconds of so many batches of requests, one after the other."""
        outlook = self._outlook(output_len, question_len)
        return sum(waves * output_len * outlook.step_seconds(side, batch) for side in SIDES)

    def seconds_at_capacity(self, output_len: int, num_prompts: int, pool_tokens: int) -> float:
        """Seconds of more requests than a pool holds."""
        outlook = self._outlook(output_len, QUESTION_LEN, pool_tokens)
        return sum(
            num_prompts * output_len / outlook.tokens_per_s(side, min(num_prompts, outlook.fitting(side)))
            for side in SIDES
        )

    def _outlook(self, output_len: int, question_len: int, pool_tokens: int | None = None) -> Outlook:
        windows = WINDOWS[self.shape.name]
        config = DynTSConfig(windows.budget, windows.local_window, windows.keep_ratio)
        return Outlook(self.gpu, self.shape, config, question_len, output_len, pool_tokens)


def main() -> None:
    """Print the plan or run it; exits with 1 if a step failed."""
    args = parse()
    steps = tiny_steps(args.out) if args.tiny else gpu_steps(args.shape, GPUS[args.gpu], args.out)
    steps = chosen(steps, args.step)
    print_plan(steps)
    if not args.dry_run:
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
    names = [step.name for step in tiny_steps(RESULTS)]
    add("--dry-run", action="store_true", help="print the plan alone")
    add("--step", nargs="+", choices=names, help="run these alone")
    add("--tiny", action="store_true", help="a tiny model with small lengths, on any machine")
    add("--shape", default="qwen-7b", choices=sorted(SHAPES))
    add("--gpu", default="h200", choices=sorted(GPUS), help="for the estimates")
    add("--out", type=Path, default=RESULTS / "gpu.json", help="of the benches")
    return parser.parse_args()


def gpu_steps(shape: str, gpu: Gpu, out: Path) -> list[Step]:
    """Return the steps on a GPU, the cheap ones first."""
    forecast = Forecast(gpu, SHAPES[shape])
    fixed = forecast.seconds(8192, 1) + forecast.seconds(8192, 32)
    greedy = forecast.seconds(1024, 1, waves=4) + forecast.seconds(1024, 32)
    shared = forecast.seconds(5120, 32, question_len=1024 + 128)
    full = forecast.seconds_at_capacity(16384, 18, 80_000)
    model = f"--shape {shape} --out {out}"
    return [
        *ready_steps(40, 130),
        bench("kernels", model, 60),
        bench(
            "untriggered",
            f"{model} --stock-attention-backend flashinfer --batch 32 --output-len 1024",
            190,
            starts(1) + greedy,
        ),
        bench("fixed_batch", f"{model} --batch 1 32 --output-len 8192", 380, starts(2) + fixed),
        bench(
            "shared_prefix",
            f"{model} --groups 4 --prompts-per-group 8 --output-len 5120",
            220,
            starts(1) + shared,
        ),
        bench(
            "capacity_run",
            f"{model} --output-len 16384 --pool-tokens 80000 --num-prompts 18",
            470,
            starts(1) + full,
        ),
    ]


def starts(num_loads: int) -> int:
    """Return the seconds that both sides' servers take to start, and so many loads on each."""
    return len(SIDES) * (START_SECONDS + num_loads * LOAD_SECONDS)


def tiny_steps(out: Path) -> list[Step]:
    """Return the same steps with a tiny model and short outputs; they show that the lane runs."""
    model = f"--shape {TINY} --out {out}"
    served = f"{model} --start-seconds {TINY_LIMIT // 2}"
    lengths = "--question-len 20"
    return [
        *ready_steps(TINY_LIMIT, TINY_LIMIT),
        bench("kernels", f"{model} --due 1 4 --batch 1 8 --copy-mib 4", TINY_LIMIT),
        bench("untriggered", f"{served} {lengths} --batch 1 4 --output-len 40", TINY_LIMIT),
        bench("fixed_batch", f"{served} {lengths} --batch 1 4 --output-len 150", TINY_LIMIT),
        bench(
            "shared_prefix",
            f"{served} --groups 2 --prompts-per-group 3 --prefix-len 32 --question-len 8 "
            "--output-len 80 --batch 2",
            TINY_LIMIT,
        ),
        bench("capacity_run", f"{served} {lengths} --output-len 200 --pool-tokens 600", TINY_LIMIT),
    ]


def ready_steps(check_limit: int, tests_limit: int) -> list[Step]:
    """Return what comes before the benches."""
    return [
        Step("check", ("benchmark.gpu.check",), check_limit),
        Step("tests", ("pytest", "-m", "gpu", "-q", "tests/gpu/test_kernels.py"), tests_limit),
        Step(
            "serving_tests",
            ("pytest", "-m", "gpu", "-q", "tests/gpu/test_serving.py"),
            TINY_LIMIT,
            on_request=True,
        ),
    ]


def bench(name: str, arguments: str, limit: int, estimate: float | None = None) -> Step:
    """Return a bench's step."""
    return Step(name, (f"benchmark.gpu.{name}", *arguments.split()), limit, estimate)


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

    It is asked to end first, so that it can end its servers.
    """
    process = subprocess.Popen(step.command, cwd=ROOT)
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
