"""Speculative decoding with DynTS and with the full cache: how many tokens a verification accepts.

The demo's model answers ledgers while its tokens are drafted: by a draft model, which is the model
itself, and by n-grams of what was written so far. Each side is asked on a server of its own, since
n-grams of the first side's answers would draft those of the second.

    python -m benchmark.drafts --num-problems 32
"""

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmark.harness.provenance import RESULTS, parser_of, provenance, publish
from benchmark.harness.tables import DRAFTS, filled
from benchmark.ledgers.evaluate import problems_of
from sgl_dynts import demo_model_path
from sgl_dynts.demo import ledger
from sgl_dynts.harness.client import Client
from sgl_dynts.harness.server import one_thread, running, unwind_on_sigterm

DRAFT_MODEL = (
    *("--speculative-num-steps", "3", "--speculative-eagle-topk", "1"),
    *("--speculative-num-draft-tokens", "4"),
)
WAYS = {
    "STANDALONE": DRAFT_MODEL,
    "NGRAM": ("--speculative-num-draft-tokens", "8"),
}
"""Of each way to draft its flags."""
SIDES = {"full": False, "dynts": True}
"""Whether DynTS is on, by side."""
SPLIT = "test"
MAX_NEW_TOKENS = 900
SETTINGS = ("algorithm", "flags", "n", "ledger_steps", "split", "model")

Reply = tuple[bool, dict[str, Any]]
"""Whether an answer is right, and the reply's ``meta_info``."""


def main(arguments: list[str] | None = None) -> None:
    """Ask on both sides of each way to draft, and report a row for each way."""
    unwind_on_sigterm()
    args = parse(arguments)
    print(*filled(DRAFTS, []), sep="\n", flush=True)
    for algorithm in args.algorithms:
        row = measure(algorithm, args)
        print(filled(DRAFTS, [row])[-1], flush=True)
        publish(args.out, row, SETTINGS)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("drafts", __doc__)
    parser.add_argument("--algorithms", nargs="*", choices=tuple(WAYS), default=tuple(WAYS))
    parser.add_argument("--num-problems", type=int, default=32, help="of the test split")
    parser.add_argument("--steps", type=int, default=ledger.DEFAULT_STEPS, help="entries of a ledger")
    parser.add_argument("--concurrency", type=int, default=2, help="requests at once")
    parser.add_argument("--out", type=Path, default=RESULTS / "drafts.json", help="JSON list of rows")
    return parser.parse_args(arguments)


def measure(algorithm: str, args: argparse.Namespace) -> dict[str, Any]:
    """Ask on both sides while drafts come in one way, and return the row."""
    sides = {side: measure_side(algorithm, args, dynts) for side, dynts in SIDES.items()}
    return {
        "algorithm": algorithm,
        "flags": list(WAYS[algorithm]),
        "n": args.num_problems,
        "ledger_steps": args.steps,
        "split": SPLIT,
        "model": demo_model_path().name,
        **sides,
        **provenance("a server on a CPU"),
    }


def measure_side(algorithm: str, args: argparse.Namespace, dynts: bool) -> dict[str, Any]:
    """Start a server that drafts in one way, ask it on one side, and return what came of it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running(words_for(algorithm), Path(folder) / "server.log", one_thread()) as client,
    ):
        return summarize(ask_all(client, args, dynts))


def words_for(algorithm: str) -> list[str]:
    """Return the arguments of a server that drafts in one way."""
    model = str(demo_model_path())
    words = ["--model-path", model, "--attention-backend", "dynts", "--dtype", "float32"]
    words += ["--mem-fraction-static", "0.5", "--max-total-tokens", "8000", "--skip-server-warmup"]
    words += ["--speculative-algorithm", algorithm, *WAYS[algorithm]]
    return words + ["--speculative-draft-model-path", model] * (algorithm == "STANDALONE")


def ask_all(client: Client, args: argparse.Namespace, dynts: bool) -> list[Reply]:
    """Ask every problem on one side."""
    vocabulary = ledger.Vocabulary()
    custom = {"dynts": {"enabled": dynts}}
    params = {"max_new_tokens": MAX_NEW_TOKENS, "temperature": 0, "custom_params": custom}

    def ask(problem: ledger.Problem) -> Reply:
        body = {"input_ids": vocabulary.encode(problem.prompt), "sampling_params": params}
        reply = client.call("/generate", body)
        return ledger.is_correct(problem, vocabulary.decode(reply["output_ids"])), reply["meta_info"]

    problems = problems_of(SPLIT, args.num_problems, args.steps)
    with ThreadPoolExecutor(args.concurrency) as pool:
        return list(pool.map(ask, problems))


def summarize(replies: list[Reply]) -> dict[str, Any]:
    """Return what one side's replies say together; ``accept_length`` is tokens per verification."""
    numbers = [meta for _, meta in replies]
    tokens = sum(meta["completion_tokens"] for meta in numbers)
    verifications = sum(meta["spec_verify_ct"] for meta in numbers)
    return {
        "accept_length": round(tokens / verifications, 3),
        "tokens": tokens,
        "verifications": verifications,
        "right": sum(right for right, _ in replies),
        "compactions": sum(meta["dynts"].get("compactions", 0) for meta in numbers),
        "peak_window_len": max(meta["dynts"]["peak_window_len"] for meta in numbers),
    }


if __name__ == "__main__":
    main()
