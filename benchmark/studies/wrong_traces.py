"""What becomes of an error in a trace: how its tokens are scored, and whether keeping them cements it.

    python -m benchmark.studies.wrong_traces

On the demo model, without a server. One entry of each ledger, whose value the question asks for, is
written for the model: as it is (``right``), with a wrong value (``wrong``), or with a wrong value and
once more with the right one (``corrected``). The model goes on by itself under each policy, and what it
answers for this value is counted. ``forget`` is the predictor's policy, but for the wrong record, which
is dropped as soon as it may be. Scores are percentiles within the thinking, of records that the model
wrote under a tight budget, where it errs by itself, read with the full cache.
"""

import argparse
import random
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from benchmark.harness.grading import interval_of
from benchmark.harness.provenance import RESULTS, keep, parser_of, provenance
from benchmark.ledgers.evaluate import SHIPPED_MODEL, SPARE_TOKENS, problems_of
from benchmark.ledgers.export import load_model_folder
from benchmark.ledgers.forced import causal, read
from benchmark.ledgers.model import DemoModel
from benchmark.ledgers.rollout import FREE, DynTSPolicy, FullPolicy, Policy, RecentPolicy, generate
from sgl_dynts.checkpoint import find_predictor, load_predictor
from sgl_dynts.config import DynTSConfig
from sgl_dynts.demo import ledger
from sgl_dynts.demo.ledger import END_THINK, EOS, Problem, Vocabulary, record
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.window_flags import window_number

CASES = {
    "right": ("full", "predictor", "window"),
    "wrong": ("full", "predictor", "forget", "window"),
    "corrected": ("full", "predictor", "forget", "window"),
}
BATCH = 100
LOWEST = -1.0
"""Below every score of a predictor."""
SETTINGS = ("study", "of", "policy", "budget", "n")


@dataclass(frozen=True)
class Spoilt:
    """A problem, words of its trace to write first, and the entry that they end with.

    ``variable`` and its two values; ``wrong_at``: where the wrong record stands in the words, None in
    case there is none.
    """

    problem: Problem
    words: list[str]
    variable: str
    right: int
    wrong: int
    wrong_at: int | None


@dataclass(frozen=True)
class Bench:
    """The demo model, its predictor and windows."""

    model: DemoModel
    predictor: ImportancePredictor
    windows: DynTSConfig
    vocabulary: Vocabulary

    def answers(self, spoilt: list[Spoilt], policy: str) -> list[str]:
        """Return what is answered for each one's variable: ``right``, ``wrong`` or ``other``."""
        found = []
        for start in range(0, len(spoilt), BATCH):
            batch = spoilt[start : start + BATCH]
            texts = self.continued(batch, self.policy(policy, batch))
            found += [verdict(each, text) for each, text in zip(batch, texts, strict=True)]
        return found

    def continued(self, batch: list[Spoilt], policy: Policy) -> list[str]:
        """Return the texts that begin with the given words and go on by the model."""
        given = [torch.tensor(self.vocabulary.encode(" ".join(each.words))).long() for each in batch]
        lengths = [len(each.problem.completion.split()) for each in batch]
        rollout = generate(
            self.model,
            torch.tensor([self.vocabulary.encode(each.problem.prompt) for each in batch]),
            policy,
            end_think=self.vocabulary.ids[END_THINK],
            eos=self.vocabulary.ids[EOS],
            max_new_tokens=max(lengths) + entry_len(batch[0].problem) + SPARE_TOKENS,
            forced=pad_sequence(given, batch_first=True, padding_value=FREE),
        )
        return [self.vocabulary.decode(tokens) for tokens in rollout.tokens]

    def policy(self, name: str, batch: list[Spoilt]) -> Policy:
        """Return a policy for a batch."""
        if name == "full":
            return FullPolicy()
        if name == "window":
            return RecentPolicy(self.windows.budget)
        if name == "predictor":
            return DynTSPolicy(self.windows, lambda hidden, position: self.predictor(hidden))
        question_len = len(batch[0].problem.prompt.split())
        dropped = torch.tensor([question_len + (each.wrong_at or 0) for each in batch])
        return DynTSPolicy(
            self.windows,
            lambda hidden, position: self.predictor(hidden).masked_fill(dropped == position, LOWEST),
        )


def main() -> None:
    """Count answers and percentiles, and keep a row for each."""
    args = parse()
    torch.set_num_threads(1)
    source = find_predictor(SHIPPED_MODEL)
    usual = source.header.windows
    tight = replace(usual, budget=args.tight_budget, local_window=args.tight_local_window)
    model, predictor = load_model_folder(SHIPPED_MODEL), load_predictor(source)
    bench = Bench(model, predictor, usual, Vocabulary())
    problems = problems_of("test", args.num_problems, ledger.DEFAULT_STEPS)
    for case, policies in CASES.items():
        spoilt = [spoil(problem, case) for problem in problems]
        for policy in policies:
            found = bench.answers(spoilt, policy)
            counts = {name: found.count(name) for name in ("right", "wrong", "other")}
            store(args, ("answers", case, policy, bench.windows.budget), counts)
    for kind, percentiles in ranks_of(replace(bench, windows=tight), problems).items():
        summary = {"records": len(percentiles), "mean_percentile": round(fmean(percentiles), 1)}
        store(args, ("scores", kind, "predictor", tight.budget), summary)


def spoil(problem: Problem, case: str) -> Spoilt:
    """Return a problem with the words up to the entry that writes its earliest asked value down."""
    words, length = problem.trace.split(), entry_len(problem)
    results = words[1::length]
    variable = min(problem.answer.split()[::2], key=results.index)
    number = results.index(variable)
    entry = words[number * length : (number + 1) * length]
    right = int(entry[entry.index("is") + 1])
    wrong = (right + random.Random(problem.seed).randrange(1, 10)) % 10
    before = words[: number * length]
    if case == "right":
        return Spoilt(problem, [*before, *entry], variable, right, wrong, None)
    false = list(entry)
    false[false.index("is") + 1] = str(wrong)
    false[false.index("so") + 1] = record(variable, wrong)
    given = [*before, *false, *(entry if case == "corrected" else [])]
    return Spoilt(problem, given, variable, right, wrong, len(before) + false.index("so") + 1)


def entry_len(problem: Problem) -> int:
    """Return the words of an entry, remarks included; all have as many."""
    return len(problem.trace.split()) // problem.num_steps


def verdict(spoilt: Spoilt, text: str) -> str:
    """Say which value a text answers for the spoilt variable; ``other`` also if it never answers."""
    _, marker, answer = text.rpartition(END_THINK)
    answered = answer.split() if marker else []
    for name, value in (("right", spoilt.right), ("wrong", spoilt.wrong)):
        if record(spoilt.variable, value) in answered:
            return name
    return "other"


def ranks_of(bench: Bench, problems: list[Problem]) -> dict[str, list[float]]:
    """Return the percentiles of records' scores by kind, of traces that the model wrote by itself."""
    found: dict[str, list[float]] = defaultdict(list)
    free = [Spoilt(problem, [], "", 0, 0, None) for problem in problems]
    for start in range(0, len(free), BATCH):
        batch = free[start : start + BATCH]
        for each, text in zip(
            batch, bench.continued(batch, bench.policy("predictor", batch)), strict=True
        ):
            whole = "right traces" if ledger.is_correct(each.problem, text) else "wrong traces"
            for kind, percentile in record_ranks(bench, each.problem, text):
                found[f"{kind}, {whole}"].append(percentile)
    return dict(found)


@torch.no_grad()
def record_ranks(bench: Bench, problem: Problem, text: str) -> list[tuple[str, float]]:
    """Return (kind, percentile of its score in the thinking) of each record that a trace writes down."""
    ids = torch.tensor([bench.vocabulary.encode(f"{problem.prompt} {text}")])
    scores = bench.predictor(read(bench.model, ids, causal(ids)).states[-1])[0]
    question_len, words = len(problem.prompt.split()), text.split()
    thinking = words.index(END_THINK) if END_THINK in words else len(words)
    scores = scores[question_len : question_len + thinking]
    true = set(problem.trace.split())
    return [
        (record_kind(words[at], true), 100 * (scores < scores[at]).float().mean().item())
        for at in range(1, thinking)
        if words[at - 1] == "so" and "=" in words[at]
    ]


def record_kind(word: str, true: set[str]) -> str:
    """Say whether a record is one of the reference trace's."""
    return "right records" if word in true else "wrong records"


def store(args: argparse.Namespace, settings: tuple[str, str, str, int], found: dict[str, Any]) -> None:
    """Print and keep one row; of counts of answers with the interval of the right ones."""
    if "right" in found:
        found = found | interval_of(found["right"], args.num_problems)
    result = dict(zip(SETTINGS, (*settings, args.num_problems), strict=True)) | found
    print(result, flush=True)
    about = provenance("the demo model in plain torch, one CPU thread")
    keep(args.out, {**result, **about}, SETTINGS)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("studies.wrong_traces", __doc__)
    add, tokens = parser.add_argument, window_number("budget")
    add("--num-problems", type=int, default=500)
    add("--tight-budget", type=tokens, default=185, help="tokens, under which the model errs by itself")
    add("--tight-local-window", type=window_number("local_window"), default=57)
    add("--out", type=Path, default=RESULTS / "wrong_traces.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
