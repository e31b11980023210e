"""Measure what the demo model answers when it holds only part of its trace.

    python -m benchmark.ledgers.evaluate --num-problems 500

Runs without a server: every policy answers the same held-out problems greedily. With ``--out`` a row
for each policy is kept, as `benchmark/results/families.json` has them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmark.harness.grading import wilson_interval
from benchmark.harness.provenance import keep, parser_of, provenance
from benchmark.harness.tables import card
from benchmark.harness.windows import windows_of
from benchmark.ledgers.export import load_model_folder
from benchmark.ledgers.model import DemoModel
from benchmark.ledgers.oracle import trace_targets
from benchmark.ledgers.rollout import DynTSPolicy, FullPolicy, Policy, RecentPolicy, Rollout, generate
from sgl_dynts import demo_model_path
from sgl_dynts.checkpoint import PREDICTOR_FILE, find_predictor, load_predictor
from sgl_dynts.config import DynTSConfig
from sgl_dynts.demo import ledger
from sgl_dynts.demo.ledger import Problem, Vocabulary
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.tasks.problems import seeds_of
from sgl_dynts.training.device import usable_device
from sgl_dynts.window_flags import add_window_flags

SHIPPED_MODEL = demo_model_path()
POLICIES = ("full", "dynts", "window", "random", "oracle")
HELD_OUT = ("validation", "test")
SETTINGS = (
    *("family", "seed", "training_steps", "dtype", "budget", "local_window", "keep_ratio"),
    *("split", "num_steps", "policy", "n"),
)
BATCH_SIZE = 100
SPARE_TOKENS = 16


@dataclass(frozen=True)
class Report:
    """What one policy did on n problems; lengths are tokens, held counts question and thinking.

    ``same_trace`` counts the outputs that equal the reference word by word: an entry that is never
    read again can go wrong without harm to the answer.
    """

    policy: str
    n: int
    correct: int
    same_trace: int
    low: float
    high: float
    mean_held: float
    peak_held: int
    thinking_len: float
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of problems answered right."""
        return self.correct / self.n


class Evaluation:
    """Problems of one length and the model, predictor and windows that answer them."""

    def __init__(
        self,
        model: DemoModel,
        problems: list[Problem],
        config: DynTSConfig,
        predictor: ImportancePredictor | None = None,
    ) -> None:
        """Prepare to run policies; `predictor` is needed by the policy ``dynts`` only.

        Raises:
            ValueError: the model has no token for a word of the problems.
        """
        self.model = model
        self.problems = problems
        self.config = config
        self.predictor = predictor
        self.vocabulary = Vocabulary()
        if max(self.vocabulary.encode(problems[0].prompt)) >= model.shape.vocab_size:
            raise ValueError(
                f"num_steps is {problems[0].num_steps}, and the model knows {model.shape.vocab_size} "
                f"words, not those of wide ledgers; choose at most {ledger.MAX_STEPS}, or a large model"
            )

    def run(self, name: str) -> Report:
        """Answer all problems under the policy called `name`, one of `POLICIES`."""
        started = time.monotonic()
        batches = [self.problems[i : i + BATCH_SIZE] for i in range(0, len(self.problems), BATCH_SIZE)]
        rollouts = [self._answer(batch, self._policy(name, batch)) for batch in batches]
        correct = sum(
            self._num_correct(batch, rollout) for batch, rollout in zip(batches, rollouts, strict=True)
        )
        same_trace = sum(
            self._num_same(batch, rollout) for batch, rollout in zip(batches, rollouts, strict=True)
        )
        n = len(self.problems)
        low, high = wilson_interval(correct, n)
        return Report(
            policy=name,
            n=n,
            correct=correct,
            same_trace=same_trace,
            low=low,
            high=high,
            mean_held=_mean(rollout.mean_held for rollout in rollouts),
            peak_held=max(int(rollout.peak_held.max()) for rollout in rollouts),
            thinking_len=_mean(rollout.thinking_len for rollout in rollouts),
            seconds=time.monotonic() - started,
        )

    def _answer(self, batch: list[Problem], policy: Policy) -> Rollout:
        completion_len = max(len(problem.completion.split()) for problem in batch)
        return generate(
            self.model,
            self._prompts(batch),
            policy,
            end_think=self.vocabulary.ids[ledger.END_THINK],
            eos=self.vocabulary.ids[ledger.EOS],
            max_new_tokens=completion_len + SPARE_TOKENS,
        )

    def _num_correct(self, batch: list[Problem], rollout: Rollout) -> int:
        texts = [self.vocabulary.decode(tokens) for tokens in rollout.tokens]
        return sum(ledger.is_correct(problem, text) for problem, text in zip(batch, texts, strict=True))

    def _num_same(self, batch: list[Problem], rollout: Rollout) -> int:
        expected = [self.vocabulary.encode(problem.completion)[:-1] for problem in batch]
        return sum(a == b for a, b in zip(rollout.tokens, expected, strict=True))

    def _policy(self, name: str, batch: list[Problem]) -> Policy:
        if name == "full":
            return FullPolicy()
        if name == "window":
            return RecentPolicy(self.config.budget)
        return DynTSPolicy(self.config, self._score_fn(name, batch))

    def _score_fn(self, name: str, batch: list[Problem]) -> Callable[[Tensor, int], Tensor]:
        if name == "random":
            generator = torch.Generator().manual_seed(batch[0].seed)
            return lambda hidden, position: torch.rand(len(hidden), generator=generator).to(hidden.device)
        if name == "oracle":
            targets = self._targets(batch)
            return lambda hidden, position: targets[:, min(position, targets.shape[1] - 1)]
        predictor = self.predictor
        if name != "dynts" or predictor is None:
            raise ValueError(f"policy {name!r} is unknown or has no predictor; known: {POLICIES}")
        return lambda hidden, position: predictor(hidden)

    def _targets(self, batch: list[Problem]) -> Tensor:
        """Return the true importance of every token of the reference traces: [b, s] float32."""
        rows = [trace_targets(self.model, self.vocabulary, problem) for problem in batch]
        return torch.stack(rows)

    def _prompts(self, batch: list[Problem]) -> Tensor:
        ids = [self.vocabulary.encode(problem.prompt) for problem in batch]
        return torch.tensor(ids, device=self.model.device)


def problems_of(split: str, num_problems: int, num_steps: int) -> list[Problem]:
    """Return the first problems of a split, wide ones where the demo's words do not suffice."""
    return [ledger.make_problem_of_length(seed, num_steps) for seed in seeds_of(split, num_problems)]


def main(arguments: list[str] | None = None) -> None:
    """Print a table of all policies, and keep a row for each if a file is named."""
    args = _parse(arguments)
    torch.set_num_threads(args.threads)
    source = find_predictor(args.model)
    config = windows_of(args, source.header.windows)
    model = load_model_folder(args.model, getattr(torch, args.dtype)).to(args.device)
    predictor = load_predictor(source).to(args.device)
    try:
        problems = problems_of(args.split, args.num_problems, args.num_steps)
        evaluation = Evaluation(model, problems, config, predictor)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{args.split} split, {args.num_steps} entries per ledger, {args.dtype}, {config}")
    print(*card([]), sep="\n", flush=True)
    for name in args.policies:
        report = evaluation.run(name)
        print(card([asdict(report)])[-1], flush=True)
        if args.out:
            keep(args.out, _row(args, model.shape.family, config, report), SETTINGS)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = parser_of("ledgers.evaluate", __doc__)
    parser.add_argument(
        "--model", type=Path, default=SHIPPED_MODEL, help=f"folder that holds {PREDICTOR_FILE}"
    )
    parser.add_argument("--split", choices=HELD_OUT, default="test")
    parser.add_argument("--num-problems", type=int, default=500)
    parser.add_argument("--num-steps", type=int, default=ledger.DEFAULT_STEPS)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    add_window_flags(parser, "what the predictor's file says")
    parser.add_argument("--device", type=usable_device, default="cpu", help="to compute on, such as cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1, help="the model was trained with; recorded")
    parser.add_argument("--training-steps", type=int, default=1100, help="of the model; recorded")
    parser.add_argument("--out", type=Path, help="JSON list to keep a row for each policy in")
    return parser.parse_args(arguments)


def _row(args: argparse.Namespace, family: str, config: DynTSConfig, report: Report) -> dict[str, object]:
    settings = {
        name: getattr(args, name) for name in ("seed", "training_steps", "dtype", "split", "num_steps")
    }
    row = {"family": family, **settings, **config.given(), **asdict(report), **provenance("no server")}
    device = {"device": torch.cuda.get_device_name()} if args.device.startswith("cuda") else {}
    return row | {"torch": torch.__version__, **device}


def _mean(batches: Iterable[Tensor]) -> float:
    return torch.cat(list(batches)).float().mean().item()


if __name__ == "__main__":
    main()
