"""The demo: a real SGLang server thinks a ledger through while it holds a part of its KV cache.

    python3 -m sgl_dynts.demo

Sets up the environment, starts the server with the shipped model, asks, prints what was held and
ends the server. Ends with 0 if every answer is right and every request was compacted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator

from sgl_dynts import demo_model_path
from sgl_dynts.demo import ledger
from sgl_dynts.demo.screen import answer_of, follow, print_comparison, print_question
from sgl_dynts.demo.serving import DemoError, Reply, flags_of, generate, serving
from sgl_dynts.environment import SetupError, enter
from sgl_dynts.harness.server import Server, ServerError, one_thread

SPARE_TOKENS = 16
LOG_LINES_SHOWN = ("DynTS predictor:", "DynTS is on:")


def main() -> int:
    """Run the demo and return its exit status."""
    args = _parse_args()
    try:
        enter("sgl_dynts.demo", say=lambda line: print(line, flush=True))
        return _run(args)
    except (SetupError, DemoError, ServerError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m sgl_dynts.demo", description=__doc__)
    parser.add_argument("--problems", type=int, default=1, help="how many ledgers to ask (1)")
    parser.add_argument("--seed", type=int, default=0, help="number of the first test ledger (0)")
    parser.add_argument("--port", type=int, help="of the server; default: a free one")
    parser.add_argument("--keep", action="store_true", help="leave the server running at the end")
    args = parser.parse_args()
    if args.problems < 1 or not 0 <= args.seed <= len(ledger.TEST_SEEDS) - args.problems:
        parser.error("--problems must be at least 1 and --seed at least 0")
    return args


def _run(args: argparse.Namespace) -> int:
    if not (demo_model_path() / "config.json").is_file():
        raise DemoError(f"no model in {demo_model_path()}; get a complete copy of this project")
    # Nothing is fetched, and one CPU thread is the fastest for so small a model.
    environment = {**one_thread(), "HF_HUB_OFFLINE": "1", **os.environ}
    flags = flags_of(demo_model_path())
    with serving(flags, environment, LOG_LINES_SHOWN, port=args.port, keep=args.keep) as server:
        seeds = ledger.TEST_SEEDS[args.seed : args.seed + args.problems]
        problems = [ledger.make_problem(seed) for seed in seeds]
        results = [
            _ask(server, problem, f"Question {number} of {args.problems}")
            for number, problem in enumerate(problems, 1)
        ]
        print(f"\n{sum(results)} of {args.problems} answered right with a compacted cache.")
        if args.keep:
            _print_examples(server, problems[0])
    return 0 if all(results) else 1


def _ask(server: Server, problem: ledger.Problem, title: str) -> bool:
    """Ask twice, with DynTS and with the full cache; return whether the former did well."""
    print(f"\n{title}: a ledger of {problem.num_steps} entries, all mod 10")
    print_question(problem.question)
    max_new_tokens = len(problem.completion.split()) + SPARE_TOKENS
    print(f"\n{'Thinking (remarks shortened)':<72}{'KV tokens held':>16}")
    reply = follow(_generate(server, problem.prompt, max_new_tokens, {"enabled": True}))
    *_, full = _generate(server, problem.prompt, max_new_tokens, {"enabled": False})
    print(f"\n  answer    {answer_of(reply)}\n  expected  {problem.answer}\n")
    print_comparison(problem, reply, full)
    return ledger.is_correct(problem, reply.text) and reply.window["compactions"] >= 1


def _generate(server: Server, text: str, max_new_tokens: int, dynts: dict) -> Iterator[Reply]:
    """Yield the growing reply, markers of thinking included."""
    return generate(server, text, max_new_tokens, dynts, skip_special_tokens=False)


def _print_examples(server: Server, problem: ledger.Problem) -> None:
    url = server.client.url
    body = {
        "text": problem.prompt,
        "sampling_params": {"temperature": 0, "max_new_tokens": 700},
    }
    print(f"""
The server runs on at {url}. Ask it with curl:

curl -s {url}/generate -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}

or with the OpenAI client:

from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="none")
reply = client.chat.completions.create(
    model="default",
    messages=[{{"role": "user", "content": "{problem.question}"}}],
    temperature=0,
    max_tokens=700,
    extra_body={{"custom_params": {{"dynts": {{"budget": 400}}}}, "return_meta_info": True}},
)
print(reply.choices[0].message.content)
print(reply.choices[0].meta_info["dynts"])

End it with: kill {server.process.pid}""")


if __name__ == "__main__":
    sys.exit(main())
