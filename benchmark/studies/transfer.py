"""Whether a predictor that was fitted to one kind of problem works on another, a row for each pair.

    python -m benchmark.studies.transfer

The demo model reads reference traces of its four kinds of ledger, as `predictor_gap` does: all
tokens at once, each seeing what would be held. A predictor is fitted to each kind alone, its target what
is read from more than DISTANCE of a trace away, and judged on the test split of every kind, beside one
that is fitted to as many traces of all kinds together, and the oracle, which knows the target. The
windows are the same for all, as shares of the budget: no choice is made here.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmark.harness.provenance import RESULTS, parser_of, provenance, publish
from benchmark.ledgers.evaluate import SHIPPED_MODEL
from benchmark.ledgers.export import load_model_folder
from benchmark.ledgers.fit_importance import DEMO_RECIPE
from benchmark.ledgers.fit_model import Kind
from benchmark.ledgers.forced import Reading
from benchmark.ledgers.rollout import DynTSPolicy
from benchmark.studies.gap_ways import Batch, InMemory, far_states, scores_at
from benchmark.studies.predictor_gap import NOTE, PolicyOf, add_fit_arguments, batches, judge, judged
from sgl_dynts.config import DynTSConfig
from sgl_dynts.demo.ledger import TEST_SEEDS, TRAIN_SEEDS
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.training.states import TraceStates
from sgl_dynts.training.targets import far_attention

KINDS = {
    "ledger-10": Kind(10),
    "ledger-14": Kind(14),
    "ledger-16": Kind(16),
    "ledger-14-brief": Kind(14, brief=True),
}
"""What the model was trained on; a brief trace has no remarks."""
ALL, ORACLE = "all", "oracle"
DISTANCE = 0.2
LOCAL_SHARE, KEEP_RATIO = 0.22, 0.95
SETTINGS = ("fitted_to", "used_on", "n", "seed")


def main() -> None:
    """Fit to each kind, judge on each, and keep a row for each pair."""
    args = parse()
    torch.set_num_threads(1)
    model = load_model_folder(SHIPPED_MODEL)
    training, test = (
        {name: batches(model, [kind.problem(seed) for seed in seeds]) for name, kind in KINDS.items()}
        for seeds in (TRAIN_SEEDS[: args.num_training], TEST_SEEDS[: args.num_test])
    )
    states = {name: states_of(found) for name, found in training.items()}
    share = args.num_training // len(KINDS)
    states[ALL] = [each for name in KINDS for each in states[name][:share]]
    policies = {name: fitted(found, args) for name, found in states.items()} | {ORACLE: oracle}
    for fitted_to, policy_of in policies.items():
        for used_on, found in test.items():
            windows = windows_of(found[0], args.trace_share)
            right, held = judge(model, policy_of, windows, found)
            result = {
                "fitted_to": fitted_to,
                "used_on": used_on,
                **judged(args, windows, right),
                **provenance(NOTE),
            }
            print(f"{fitted_to:16} on {used_on:16} {right}/{args.num_test}, {held} held", flush=True)
            publish(args.out, result, SETTINGS)


def distance_of(batch: Batch) -> int:
    """Return from how many tokens on a reader counts as far."""
    return round(DISTANCE * (batch.thinking_end - batch.question_len))


def states_of(found: list[Batch]) -> list[TraceStates]:
    """Return states and targets of every trace."""
    return [
        each
        for batch in found
        for each in far_states(batch, batch.whole.states[-1], batch.whole.attention, distance_of(batch))
    ]


def fitted(states: list[TraceStates], args: argparse.Namespace) -> PolicyOf:
    """Fit a predictor and return the policy that asks it."""
    recipe = replace(DEMO_RECIPE, seed=args.seed, epochs=args.epochs)
    predictor = InMemory(states).fit(recipe).predictor
    return lambda batch, windows, reading: predicted(predictor, windows, reading)


def predicted(predictor: ImportancePredictor, windows: DynTSConfig, reading: Reading) -> DynTSPolicy:
    """Return the policy that keeps what a predictor scores highest."""
    scores: Tensor = predictor(reading.states[-1])
    return DynTSPolicy(windows, scores_at(scores))


def oracle(batch: Batch, windows: DynTSConfig, reading: Reading) -> DynTSPolicy:
    """Return the policy that keeps what will be read most."""
    return DynTSPolicy(windows, scores_at(far_attention(batch.whole.attention, distance_of(batch))))


def windows_of(batch: Batch, trace_share: float) -> DynTSConfig:
    """Return windows that hold the question and a share of the trace."""
    budget = batch.question_len + round(trace_share * (batch.thinking_end - batch.question_len))
    return DynTSConfig(budget, round(LOCAL_SHARE * budget), KEEP_RATIO)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("studies.transfer", __doc__)
    add = parser.add_argument
    add("--trace-share", type=float, default=0.3, help="of the trace that fits beside the question")
    add_fit_arguments(add, num_test=200)
    add("--out", type=Path, default=RESULTS / "transfer.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
