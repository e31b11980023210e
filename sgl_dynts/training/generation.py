"""Ask a running server for reasoning traces, check them, and keep those to train on.

Answers are awaited in a thread of their own and judged in others: so this works where the caller's thread
runs an event loop already, as a notebook's does, and no question waits for a grader that takes its time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sgl_dynts.tasks.graders import Verdict, check_graders, grader_of
from sgl_dynts.tasks.problems import Problem, read_problems
from sgl_dynts.training.attempts import CUT, NOT_JUDGED, RIGHT, WRONG, Log, advice, log_of
from sgl_dynts.training.endpoint import (
    FULL_CACHE,
    SAMPLING,
    Completion,
    Endpoint,
    EndpointError,
    Sampling,
    asking,
)
from sgl_dynts.training.language import Language
from sgl_dynts.training.trace_file import Trace, TraceHeader, TraceWriter, read_traces
from sgl_dynts.training.trace_parts import NoTrace, Parts, critical_positions, find_parts

JUDGES = 4
"""Threads that wait for graders' processes."""


@dataclass(frozen=True)
class TracesReport:
    """What became of all attempts, those of earlier calls that wrote the same file too.

    ``outcomes`` counts attempts by what came of them, most common first; ``too_long`` says which
    problems were left out since their prompts are longer than the model takes.
    """

    path: Path
    outcomes: dict[str, int]
    too_long: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path}: " + ", ".join(f"{num} {outcome}" for outcome, num in self.outcomes.items())

    @property
    def advice(self) -> str:
        """What came of the attempts and what helps, where none gave a right trace; else empty."""
        return advice(self.outcomes)


def make_traces(
    url: str,
    model: Path | str,
    problems: Path | str | Sequence[Problem],
    out: Path | str,
    *,
    api: str = "sglang",
    name: str | None = None,
    api_key: str | None = None,
    sampling: Sampling = SAMPLING,
    attempts: int = 1,
    per_question: int = 1,
    keep_wrong: bool = False,
    log_outputs: bool = False,
    run_programs: bool = False,
    max_len: int | None = None,
    think_start: str = "<think>",
    think_end: str = "</think>",
    concurrency: int = 64,
    custom_params: Mapping[str, Any] = FULL_CACHE,
    progress: bool = True,
) -> TracesReport:
    """Have a running server answer problems and write the traces that can be trained on.

    A trace is kept if it thinks exactly once and its answer is right. Each is on disk when it is there,
    and every attempt in the log beside it (``.log``): an interrupted call given once more goes on.

    Args:
        url: of the server, without a path.
        model: folder or name of the model served, for its tokenizer and its longest sequence.
        problems: to ask, or a file of them (`tasks/README.md`).
        out: file of traces to write or to go on with (`trace_file.py`).
        api: what the server speaks, one of `endpoint.APIS`.
        name: of the model, for the header and OpenAI's interface; default: `model`.
        api_key: sent as a bearer token.
        sampling: how tokens are drawn; lengths in tokens.
        attempts: most attempts at a problem.
        per_question: right traces to keep of a problem.
        keep_wrong: keep wrong traces too, marked.
        log_outputs: keep in the log what was generated where no right trace came of it.
        run_programs: let programs that the model writes run on this machine, for problems that need it.
        max_len: prompt and output, in tokens; default: the model's max_position_embeddings.
        think_start: marker that begins thinking.
        think_end: marker that ends it.
        concurrency: requests in flight.
        custom_params: passed on to SGLang; default: the full cache.
        progress: draw a bar with tqdm, on stderr or in the notebook.

    Raises:
        EndpointError: the server cannot be used, or serves another model.
        ValueError: a problem, a file or the tokenizer cannot be used; says what to do.
        OSError: a file cannot be read or written.
    """
    out = Path(out)
    if isinstance(problems, Path | str):
        problems = read_problems(Path(problems))
    check_graders(problems, run_programs)
    language = Language(str(model), think_start, think_end, max_len)
    header = TraceHeader(name or str(model), language.fingerprint, asdict(sampling))
    with ExitStack() as stack:
        writer = stack.enter_context(TraceWriter(out, header))
        log = Log(log_of(out))
        stack.callback(log.close)
        _log_unlogged(out, log)
        endpoint = Endpoint(url, api, header.model, api_key, dict(custom_params))
        wanted = attempts, per_question, keep_wrong, log_outputs
        generation = Generation(language, endpoint, sampling, writer, log, *wanted)
        generation.run(problems, concurrency, progress)
    return TracesReport(out, dict(log.counts.most_common()), tuple(generation.too_long))


@dataclass(frozen=True)
class Question:
    """A problem as it is asked: token ids of the prompt, and `sampling` within what the model takes."""

    problem: Problem
    prompt: list[int]
    sampling: Sampling


@dataclass(frozen=True)
class Judged:
    """What came of one attempt: its tokens, its trace where that may be kept, what the grader read."""

    outcome: str
    ids: list[int]
    trace: Trace | None = None
    said: str = ""

    @classmethod
    def by(cls, verdict: Verdict, trace: Trace) -> Judged:
        """Return a trace with its verdict."""
        if not verdict.is_judged:
            return cls(NOT_JUDGED, trace.output_ids)
        outcome = RIGHT if verdict.is_right else WRONG
        return cls(outcome, trace.output_ids, replace(trace, correct=verdict.is_right), verdict.said)


@dataclass
class Generation:
    """One run: what to ask, whom, and where to keep it."""

    language: Language
    endpoint: Endpoint
    sampling: Sampling
    writer: TraceWriter
    log: Log
    attempts: int
    per_question: int
    keep_wrong: bool
    log_outputs: bool
    too_long: list[str] = field(default_factory=list)

    def run(self, problems: Sequence[Problem], concurrency: int, progress: bool) -> None:
        """Work all problems off, `concurrency` of them at a time.

        Raises:
            EndpointError: the server cannot be used.
            OSError: a file cannot be written.
            ValueError: a problem cannot be asked.
        """
        open_ones = [problem for problem in problems if self._is_open(problem)]
        num_done = len(problems) - len(open_ones)
        bar = tqdm(total=len(problems), initial=num_done, unit="question", disable=not progress)
        with bar, asking(self.endpoint) as ask, _judging() as judge:
            questions = self._questions(open_ones)
            first = islice(questions, concurrency)
            running: dict[Future[Any], Question] = {ask(question): question for question in first}
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    following = question = running.pop(future)
                    result = future.result()
                    attempt = result if isinstance(result, Judged) else self.read(question, result)
                    if isinstance(attempt, Trace):
                        running[judge(question.problem, attempt)] = question
                        continue
                    self._keep(question, attempt)
                    if not self._is_open(question.problem):
                        bar.update()
                        bar.set_postfix(self.log.counts, refresh=False)
                        following = next(questions, None)
                    if following is not None:
                        running[ask(following)] = following

    def _is_open(self, problem: Problem) -> bool:
        """Whether a problem is to be asked once more."""
        outcomes = self.log.outcomes(problem.id)
        return len(outcomes) < self.attempts and outcomes.count(RIGHT) < self.per_question

    def _questions(self, problems: Sequence[Problem]) -> Iterator[Question]:
        for problem in problems:
            prompt = self.language.prompt(problem)
            room = min(self.sampling.max_new_tokens, self.language.max_len - len(prompt))
            if room > 0:
                yield Question(problem, prompt, replace(self.sampling, max_new_tokens=room))
            else:
                self.too_long.append(
                    f"problem {problem.id!r}: its prompt has {len(prompt)} tokens, the model takes "
                    f"{self.language.max_len}; left out"
                )

    def _keep(self, question: Question, attempt: Judged) -> None:
        trace = attempt.trace
        if trace is not None and (trace.correct or self.keep_wrong):
            self.writer.add(trace)
        self.log.add(question.problem.id, attempt.outcome, **self._more(attempt))

    def _more(self, attempt: Judged) -> dict[str, str]:
        """Return what the log keeps of an attempt on request: its text with markers, the answer read."""
        if not self.log_outputs or attempt.outcome == RIGHT:
            return {}
        text = self.language.tokenizer.decode(attempt.ids)
        return {"output": text} | ({"said": attempt.said} if attempt.said else {})

    def read(self, question: Question, completion: Completion) -> Judged | Trace:
        """Return the trace that an attempt is, not yet judged, or what came of it instead.

        Raises:
            EndpointError: the server's tokens are not those of this tokenizer.
        """
        ids = self._ids(completion)
        if completion.is_cut:
            return Judged(CUT, ids)
        try:
            parts = find_parts(question.prompt, ids, self.language.markers)
        except NoTrace as reason:
            return Judged(str(reason), ids)
        answer = self.language.decode(ids[slice(*parts.answer)]).strip()
        if not answer:
            return Judged("no answer", ids)
        trace = self._trace(question.problem, question.prompt, ids, parts)
        return Trace(**trace, answer=answer, correct=False, retokenized=completion.ids is None)

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
                f"--model {self.language.tokenizer.name_or_path} reads "
                f"{self.language.decode(completion.ids)[:60]!r}: it is another model's; name the folder "
                "of the model that is served"
            )
        return completion.ids


@contextmanager
def _judging() -> Iterator[Callable[[Problem, Trace], Future[Judged]]]:
    """Give a function that judges a trace in a thread beside."""
    threads = ThreadPoolExecutor(JUDGES)

    def judge(problem: Problem, trace: Trace) -> Judged:
        return Judged.by(grader_of(problem).judge(problem, trace.answer), trace)

    try:
        yield lambda problem, trace: threads.submit(judge, problem, trace)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _log_unlogged(path: Path, log: Log) -> None:
    """Log the traces whose run was stopped between writing them and logging them."""
    written: Counter[tuple[str, str]] = Counter()
    for trace in read_traces(path, wrong_too=True):
        attempt = trace.problem, RIGHT if trace.correct else WRONG
        written[attempt] += 1
        if written[attempt] > log.outcomes(trace.problem).count(attempt[1]):
            log.add(*attempt)
