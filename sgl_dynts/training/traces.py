r"""Generate reasoning traces with a running server, check them, and keep those to train on.

    python -m sgl_dynts.training.traces --url http://127.0.0.1:30000 --model FOLDER \
        --problems problems.jsonl --out traces.jsonl

A trace is kept if it thinks exactly once and its answer is right. Each is written when it is there; the
same command given again goes on where an earlier one was stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sgl_dynts.tasks.graders import GRADERS, RUN_PROGRAMS_HELP, check_graders, grader_of
from sgl_dynts.tasks.json_lines import drop_unfinished_line, parse_object
from sgl_dynts.tasks.problems import Problem, read_problems
from sgl_dynts.training.endpoint import APIS, Completion, Endpoint, EndpointError, Sampling
from sgl_dynts.training.language import Language
from sgl_dynts.training.trace_file import Trace, TraceHeader, TraceWriter, read_traces
from sgl_dynts.training.trace_parts import NoTrace, Parts, critical_positions, find_parts

RIGHT, WRONG, CUT = "right", "wrong", "cut by its length"
UNUSABLE = (ValueError, EndpointError, OSError)
"""What ends a run with a message; anything else is a fault of this program and shows its traceback."""
FULL_CACHE = '{"dynts": {"enabled": false}}'


@dataclass(frozen=True)
class Attempt:
    """The outcome of one attempt at one problem, as the log beside the traces keeps it."""

    problem: str
    outcome: str


class Log:
    """Every attempt, one JSON object a line, so that none is made twice."""

    def __init__(self, path: Path) -> None:
        drop_unfinished_line(path)
        self.counts: Counter[str] = Counter()
        self._of_problem: defaultdict[str, list[str]] = defaultdict(list)
        if path.exists():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                self._note(Attempt(**parse_object(line, f"{path}:{number}")))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def add(self, attempt: Attempt) -> None:
        """Note one attempt."""
        self._file.write(json.dumps(asdict(attempt), ensure_ascii=False) + "\n")
        self._file.flush()
        self._note(attempt)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def outcomes(self, problem: str) -> list[str]:
        """Return what came of the attempts at the problem with this id."""
        return list(self._of_problem[problem])

    def _note(self, attempt: Attempt) -> None:
        self.counts[attempt.outcome] += 1
        self._of_problem[attempt.problem].append(attempt.outcome)


class Generation:
    """One run: what to ask, whom, and where to keep it."""

    def __init__(
        self, args: argparse.Namespace, language: Language, endpoint: Endpoint, sampling: Sampling
    ) -> None:
        self.args = args
        self.language = language
        self.endpoint = endpoint
        self.sampling = sampling
        self.too_long: list[str] = []

    async def run(self, problems: list[Problem], writer: TraceWriter, log: Log) -> None:
        """Work all problems off, some at a time.

        Raises:
            EndpointError: the server cannot be used.
            OSError: a file cannot be written.
            ValueError: a problem cannot be asked.
        """
        failures: list[BaseException] = []
        open_ones = [problem for problem in problems if self._is_open(log.outcomes(problem.id))]
        with tqdm(total=len(problems), initial=len(problems) - len(open_ones), unit="question") as bar:
            waiting = iter(open_ones)
            try:
                async with asyncio.TaskGroup() as workers:
                    for _ in range(self.args.concurrency):
                        workers.create_task(self._work(waiting, writer, log, bar))
            except* UNUSABLE as group:
                failures += group.exceptions
        if failures:
            raise failures[0]

    async def _work(self, waiting: Iterator[Problem], writer: TraceWriter, log: Log, bar: tqdm) -> None:
        for problem in waiting:
            await self._attempt_all(problem, writer, log)
            bar.update()
            bar.set_postfix(log.counts, refresh=False)

    async def _attempt_all(self, problem: Problem, writer: TraceWriter, log: Log) -> None:
        prompt = self.language.prompt(problem)
        room = min(self.sampling.max_new_tokens, self.language.max_len - len(prompt))
        if room <= 0:
            self.too_long.append(
                f"problem {problem.id!r}: its prompt has {len(prompt)} tokens, the model takes "
                f"{self.language.max_len}; left out"
            )
            return
        outcomes = log.outcomes(problem.id)
        sampling = replace(self.sampling, max_new_tokens=room)
        while self._is_open(outcomes):
            completion = await self.endpoint.complete(prompt, sampling)
            outcome, trace = self.judge(problem, prompt, completion)
            if trace is not None and (trace.correct or self.args.keep_wrong):
                writer.add(trace)
            log.add(Attempt(problem.id, outcome))
            outcomes.append(outcome)

    def _is_open(self, outcomes: list[str]) -> bool:
        """Whether a problem with these outcomes is to be asked once more."""
        has_enough = outcomes.count(RIGHT) >= self.args.per_question
        return len(outcomes) < self.args.attempts and not has_enough

    def judge(
        self, problem: Problem, prompt: list[int], completion: Completion
    ) -> tuple[str, Trace | None]:
        """Return what came of an attempt, and the trace if it is one.

        Raises:
            EndpointError: the server's tokens are not those of this tokenizer.
        """
        ids = self._ids(completion)
        if completion.is_cut:
            return CUT, None
        try:
            parts = find_parts(prompt, ids, self.language.markers)
        except NoTrace as reason:
            return str(reason), None
        answer = self.language.decode(ids[slice(*parts.answer)]).strip()
        if not answer:
            return "no answer", None
        is_right = grader_of(problem).judge(problem, answer).is_right
        trace = self._trace(problem, prompt, ids, parts)
        retokenized = completion.ids is None
        fields = {"answer": answer, "correct": is_right, "retokenized": retokenized}
        return RIGHT if is_right else WRONG, Trace(**trace, **fields)

    def _trace(self, problem: Problem, prompt: list[int], ids: list[int], parts: Parts) -> dict[str, Any]:
        critical = None
        if problem.critical is not None:
            critical = critical_positions(self.language.tokenizer, ids, parts.thinking, problem.critical)
        return {
            "problem": problem.id,
            "task": problem.task,
            "question": problem.question,
            "prompt_ids": prompt,
            "output_ids": ids,
            "thinking": parts.thinking,
            "critical": critical,
        }

    def _ids(self, completion: Completion) -> list[int]:
        if completion.ids is None:
            return list(self.language.encode(completion.text))
        if not self.language.agrees(completion.ids, completion.text):
            raise EndpointError(
                f"{self.endpoint.url} says its tokens mean {completion.text[:60]!r}, the tokenizer of "
                f"--model {self.args.model} reads {self.language.decode(completion.ids)[:60]!r}: it is "
                "another model's; name the folder of the model that is served"
            )
        return completion.ids


def main(arguments: list[str] | None = None) -> int:
    """Generate traces and return the exit status: 1 for what cannot be used, 130 if stopped."""
    args = parse(arguments)
    try:
        asyncio.run(_generate(args))
    except UNUSABLE as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(f"\nstopped; {args.out} keeps all that was done, the same command goes on", file=sys.stderr)
        return 130
    return 0


async def _generate(args: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    problems = read_problems(args.problems, args.grader)[: args.num_problems]
    check_graders(problems, args.run_programs)
    language = Language(args.model, args.think_start, args.think_end, args.max_len)
    sampling = Sampling(args.temperature, args.top_p, args.top_k, args.max_new_tokens)
    header = TraceHeader(args.name or args.model, language.fingerprint, asdict(sampling))
    key = os.environ.get("OPENAI_API_KEY")
    endpoint = Endpoint(args.url, args.api, header.model, key, json.loads(args.custom_params))
    generation = Generation(args, language, endpoint, sampling)
    with ExitStack() as stack:
        writer = stack.enter_context(TraceWriter(args.out, header))
        log = Log(args.out.with_suffix(".log"))
        stack.callback(log.close)
        _forget_unlogged(args.out, log)
        try:
            await generation.run(problems, writer, log)
        finally:
            await endpoint.close()
    _report(args, log, generation.too_long)


def _forget_unlogged(path: Path, log: Log) -> None:
    """Log the traces whose run was stopped between writing them and logging them."""
    written: Counter[Attempt] = Counter()
    for trace in read_traces(path, wrong_too=True):
        attempt = Attempt(trace.problem, RIGHT if trace.correct else WRONG)
        written[attempt] += 1
        if written[attempt] > log.outcomes(attempt.problem).count(attempt.outcome):
            log.add(attempt)


def _report(args: argparse.Namespace, log: Log, too_long: list[str]) -> None:
    for message in too_long:
        print(message, file=sys.stderr)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in log.counts.most_common())
    print(f"{args.out}: {counts}")


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
    add("--temperature", type=float, default=0.6)
    add("--top-p", type=float, default=0.95)
    add("--top-k", type=int, default=20, help="0: all")
    add("--max-new-tokens", type=int, default=16384)
    add("--max-len", type=int, help="prompt and output; default: the model's max_position_embeddings")
    add("--think-start", default="<think>")
    add("--think-end", default="</think>")
    add("--concurrency", type=int, default=64, help="requests in flight")
    add("--custom-params", default=FULL_CACHE, help=f"for SGLang; default: the full cache, {FULL_CACHE}")
    return parser.parse_args(arguments)


API_HELP = (
    "sglang: /generate; openai: /v1/completions with token ids; openai-text: any other server, whose "
    "text is tokenized again"
)


if __name__ == "__main__":
    sys.exit(main())
