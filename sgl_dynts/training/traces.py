r"""Generate reasoning traces with a running server, check them, and keep those to train on.

    python -m sgl_dynts.training.traces --url http://127.0.0.1:30000 --model FOLDER \
        --problems problems.jsonl --out traces.jsonl

A trace is kept if it thinks exactly once and its answer is right. Each is written when it is there; the
same command given again goes on where an earlier one was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path

from sgl_dynts.loading import say_loading
from sgl_dynts.tasks.graders import GRADERS, RUN_PROGRAMS_HELP
from sgl_dynts.tasks.json_lines import parse_object
from sgl_dynts.tasks.problems import read_problems
from sgl_dynts.training.endpoint import APIS, FULL_CACHE, EndpointError, Sampling
from sgl_dynts.training.generation import TracesReport, make_traces

UNUSABLE = (ValueError, EndpointError, OSError)
"""What ends a run with a message; anything else is a fault of this program and shows its traceback."""
SHARED = ("api", "name", "attempts", "per_question", "keep_wrong", "log_outputs", "run_programs")
SHARED += ("max_len", "think_start", "think_end", "concurrency")
"""Arguments that the function has under the same names."""


def main(arguments: list[str] | None = None) -> int:
    """Generate traces and return the exit status: 1 for what cannot be used, 130 if stopped."""
    args = parse(arguments)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        report = _generate(args)
    except UNUSABLE as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; {args.out} keeps all that was done, the same command goes on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    for message in report.too_long:
        print(message, file=sys.stderr)
    print(report)
    if report.advice:
        print(f"no right trace: {report.advice}", file=sys.stderr)
    return 0


def _generate(args: argparse.Namespace) -> TracesReport:
    say_loading("transformers")
    return make_traces(
        args.url,
        args.model,
        read_problems(args.problems, args.grader)[: args.num_problems],
        args.out,
        api_key=os.environ.get("OPENAI_API_KEY"),
        sampling=Sampling(**{field.name: getattr(args, field.name) for field in fields(Sampling)}),
        custom_params=parse_object(args.custom_params, "--custom-params"),
        **{name: getattr(args, name) for name in SHARED},
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sgl_dynts.training.traces",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--url", required=True, help="of a running server")
    add("--api", choices=APIS, default="sglang", help=API_HELP)
    add("--model", required=True, help="folder or name of the model served: tokenizer, longest sequence")
    add("--name", help="of the model, for the header and OpenAI's interface; default: --model")
    add("--problems", type=Path, required=True, help="JSON lines; sgl_dynts/tasks/README.md")
    add("--grader", choices=GRADERS, help="of problems that name none; default: exact")
    add("--run-programs", action="store_true", help=RUN_PROGRAMS_HELP)
    add("--num-problems", type=int, help="the first so many; default: all")
    add("--out", type=Path, required=True, help="JSON lines; attempts are logged beside it, in *.log")
    add("--attempts", type=int, default=1, help="most attempts at a question")
    add("--per-question", type=int, default=1, help="right traces to keep of a question")
    add("--keep-wrong", action="store_true", help="keep wrong traces too, marked")
    add("--log-outputs", action="store_true", help="keep in the log what gave no right trace")
    add("--temperature", type=float, default=Sampling.temperature)
    add("--top-p", type=float, default=Sampling.top_p)
    add("--top-k", type=int, default=Sampling.top_k, help="0: all")
    add("--max-new-tokens", type=int, default=Sampling.max_new_tokens)
    add("--max-len", type=int, help="prompt and output; default: the model's max_position_embeddings")
    add("--think-start", default="<think>")
    add("--think-end", default="</think>")
    add("--concurrency", type=int, default=64, help="requests in flight")
    default = json.dumps(FULL_CACHE)
    add("--custom-params", default=default, help=f"for SGLang; default: the full cache, {default}")
    return parser.parse_args(arguments)


API_HELP = (
    "sglang: /generate; openai: /v1/completions with token ids; openai-text: any other server, whose "
    "text is tokenized again"
)


if __name__ == "__main__":
    sys.exit(main())
