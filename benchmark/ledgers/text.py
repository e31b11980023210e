"""Print solved ledgers as a text, from which a server learns what the demo model's queries are like.

    python -m benchmark.ledgers.text --num-problems 8 > ledgers.txt

They are of the training split, so no problem that is measured is among them.
"""

import argparse
import sys

from benchmark.ledgers.evaluate import problems_of
from sgl_dynts.demo import ledger


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each problem."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.ledgers.text", description=__doc__)
    parser.add_argument("--num-problems", type=int, default=8)
    parser.add_argument("--steps", type=int, default=ledger.DEFAULT_STEPS, help="entries of a ledger")
    args = parser.parse_args(arguments)
    for problem in problems_of("train", args.num_problems, args.steps):
        sys.stdout.write(f"{problem.prompt} {problem.completion}\n")


if __name__ == "__main__":
    main()
