"""Write generated problems as a file that `benchmark.accuracy` and `training.traces` read.

python -m sgl_dynts.tasks ledger --size 14 --num-problems 2000 --split train > problems.jsonl
"""

import argparse
import sys
from collections.abc import Callable

from sgl_dynts.demo import ledger
from sgl_dynts.tasks import dead_ends, dfs
from sgl_dynts.tasks.problems import SPLITS, Problem, seeds_of, write_problems

GENERATORS: dict[str, Callable[[int, int], Problem]] = {
    "ledger": ledger.make_task_problem,
    "dfs": dfs.make_problem,
    "dead-ends": dead_ends.make_problem,
}
SIZES = {"ledger": "entries", "dfs": "nodes", "dead-ends": "ways"}


def main(arguments: list[str] | None = None) -> int:
    """Print problems and return the exit status."""
    args = _parse(arguments)
    try:
        problems = [
            GENERATORS[args.task](seed, args.size) for seed in seeds_of(args.split, args.num_problems)
        ]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_problems(sys.stdout, problems)
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sgl_dynts.tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sizes = ", ".join(f"{task}: {unit}" for task, unit in SIZES.items())
    parser.add_argument("task", choices=GENERATORS)
    parser.add_argument("--size", type=int, required=True, help=f"of a problem ({sizes})")
    parser.add_argument("--num-problems", type=int, default=500)
    parser.add_argument("--split", choices=SPLITS, default="test", help="splits share no problem")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
