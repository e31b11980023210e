"""What keeps a predictor from the oracle, measured on forced traces of the demo model.

    python -m benchmark.studies.predictor_gap

The demo model reads reference traces of ledgers with what each way of scoring would hold, all tokens at
once; nothing is generated (`benchmark/ledgers/forced.py`). Every way is fitted to the same training
problems; its windows are chosen on the validation split for each budget, and the test split is judged
once, with them.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmark.harness.grading import interval_of
from benchmark.harness.provenance import RESULTS, parser_of, provenance, publish
from benchmark.ledgers.evaluate import SHIPPED_MODEL, problems_of
from benchmark.ledgers.export import load_model_folder
from benchmark.ledgers.forced import Reading, num_right, read_held
from benchmark.ledgers.model import DemoModel
from benchmark.ledgers.rollout import DynTSPolicy
from benchmark.studies.gap_ways import FITTED, Batch, Ways, fit_ways
from sgl_dynts.config import DynTSConfig
from sgl_dynts.demo.ledger import DEFAULT_STEPS, Problem
from sgl_dynts.window_flags import window_number

BATCH = 20
LOCAL_SHARES = (0.22, 0.31)
KEEP_RATIOS = (0.9, 0.95)
NOTE = "forced traces, nothing simulated, one CPU thread"
SETTINGS = ("way", "budget", "n", "seed")
PolicyOf = Callable[[Batch, DynTSConfig, Reading], DynTSPolicy]
"""Makes the policy of a batch under some windows, from what was read of it before."""


def main() -> None:
    """Fit, choose on validation, judge on test, and keep a row for each way and budget."""
    args = parse()
    torch.set_num_threads(1)
    model = load_model_folder(SHIPPED_MODEL)
    training = problems_of("train", args.num_training, DEFAULT_STEPS)
    ways = fit_ways(batches(model, training), args.seed, args.epochs)
    print({way: fitted.held_out for way, fitted in ways.fitted.items()}, flush=True)
    validation = batches(model, problems_of("validation", args.num_validation, DEFAULT_STEPS))
    test = batches(model, problems_of("test", args.num_test, DEFAULT_STEPS))
    for budget in args.budgets:
        for way in args.ways:
            windows, found = choose(model, ways, way, budget, validation)
            right, held = judge(model, partial(ways.policy, way), windows, test)
            result = row(args, ways, way, windows, found, right)
            print(
                f"{way:<16}{budget:>5}  validation {found:.2f}  test {right}/{args.num_test}  "
                f"{windows}, {held} held",
                flush=True,
            )
            publish(args.out, result, SETTINGS)


def choose(
    model: DemoModel, ways: Ways, way: str, budget: int, validation: list[Batch]
) -> tuple[DynTSConfig, float]:
    """Return the windows under which a way does best, and its share right with them."""
    num_problems = sum(len(batch.problems) for batch in validation)
    tried = {}
    for share in LOCAL_SHARES:
        for ratio in KEEP_RATIOS:
            windows = DynTSConfig(budget, round(share * budget), ratio)
            right, _ = judge(model, partial(ways.policy, way), windows, validation)
            tried[windows] = right / num_problems
            print(f"  {way:<16}{windows}  {tried[windows]:.3f}", flush=True)
    best = max(tried, key=lambda windows: tried[windows])
    return best, tried[best]


def judge(
    model: DemoModel, policy_of: PolicyOf, windows: DynTSConfig, judged: list[Batch]
) -> tuple[int, float]:
    """Return how many problems are read right under a policy, and the mean tokens held while thinking."""
    right, held = 0, []
    for batch in judged:
        make_policy = partial(policy_of, batch, windows)
        reading, mask = read_held(model, batch.tokens, batch.question_len, make_policy, batch.whole)
        right += num_right(batch.problems, reading)
        held.append(mask[:, batch.question_len : batch.thinking_end].sum(-1).float().mean().item())
    return right, round(sum(held) / len(held), 1)


def batches(model: DemoModel, problems: list[Problem]) -> list[Batch]:
    """Split problems of one length into batches, and read them."""
    starts = range(0, len(problems), BATCH)
    return [Batch.of(model, problems[start : start + BATCH]) for start in starts]


def row(
    args: argparse.Namespace, ways: Ways, way: str, windows: DynTSConfig, found: float, right: int
) -> dict[str, Any]:
    """Return what is kept of one way under one budget."""
    return {
        "way": way,
        **judged(args, windows, right),
        "validation_n": args.num_validation,
        "validation_share": round(found, 4),
        **cost(ways, way),
        **provenance(NOTE),
    }


def judged(args: argparse.Namespace, windows: DynTSConfig, right: int) -> dict[str, Any]:
    """Return what a row says of the fits, the windows and the test split."""
    return {
        **windows.given(),
        **{name: getattr(args, name) for name in ("seed", "num_training", "epochs")},
        "n": args.num_test,
        "right": right,
        **interval_of(right, args.num_test),
    }


def cost(ways: Ways, way: str) -> dict[str, Any]:
    """Return a fitted way's parameters, and microseconds for 250 tokens; nothing for an oracle."""
    if way not in FITTED:
        return {}
    predictor = ways.fitted[way].predictor
    inputs = torch.rand(250, predictor.hidden_size)
    with torch.inference_mode():
        seconds = min(timed(lambda: predictor(inputs)) for _ in range(20))
    parameters = sum(parameter.numel() for parameter in predictor.parameters())
    return {"parameters": parameters, "us_for_250_tokens": round(1e6 * seconds)}


def timed(call: Any) -> float:
    """Return the seconds of one call."""
    start = perf_counter()
    call()
    return perf_counter() - start


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("studies.predictor_gap", __doc__)
    add, tokens = parser.add_argument, window_number("budget")
    add("--ways", nargs="+", choices=(*FITTED, "oracle", "delayed_oracle"), default=None)
    add("--budgets", nargs="+", type=tokens, default=[185, 308], help="tokens; 30 and 50 %% of a trace")
    add("--num-validation", type=int, default=100)
    add_fit_arguments(add, num_test=500)
    add("--out", type=Path, default=RESULTS / "predictor_gap.json")
    args = parser.parse_args()
    args.ways = args.ways or [*FITTED, "oracle", "delayed_oracle"]
    return args


def add_fit_arguments(add: Callable[..., Any], num_test: int) -> None:
    """Add what every study of fits on forced traces takes."""
    add("--num-training", type=int, default=160, help="traces of each predictor")
    add("--num-test", type=int, default=num_test)
    add("--epochs", type=int, default=15)
    add("--seed", type=int, default=1, help="of the fits")


if __name__ == "__main__":
    main()
