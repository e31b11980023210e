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
import sys
from pathlib import Path

from sgl_dynts.loading import say_loading
from sgl_dynts.tasks.graders import GRADERS, RUN_PROGRAMS_HELP
from sgl_dynts.tasks.json_lines import parse_object
from sgl_dynts.tasks.problems import read_problems
from sgl_dynts.training.endpoint import FULL_CACHE, EndpointError
from sgl_dynts.training.endpoint_flags import add_sampling_flags, add_server_flags, sampling_given
from sgl_dynts.training.generation import TracesReport, make_traces
from sgl_dynts.training.interruption import INTERRUPTED, interruptible

UNUSABLE = (ValueError, EndpointError, OSError)
"""What ends a run with a message; anything else is a fault of this program and shows its traceback."""
SHARED = ("api", "name", "attempts", "per_question", "keep_wrong", "log_outputs", "run_programs")
SHARED += ("max_len", "think_start", "think_end", "concurrency")
"""Arguments that the function has under the same names."""


def main(arguments: list[str] | None = None) -> int:
    """Generate traces and return the exit status: 1 for what cannot be used, 130 if stopped."""
    args = parse(arguments)
    try:
        with interruptible():
            report = _generate(args)
    except UNUSABLE as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; {args.out} keeps all that was done, the same command goes on", file=sys.stderr)
        return INTERRUPTED
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
        sampling=sampling_given(args),
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
    add_server_flags(add)
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
    add_sampling_flags(add)
    add("--max-len", type=int, help="prompt and output; default: the model's max_position_embeddings")
    add("--think-start", default="<think>")
    add("--think-end", default="</think>")
    default = json.dumps(FULL_CACHE)
    add("--custom-params", default=default, help=f"for SGLang; default: the full cache, {default}")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
