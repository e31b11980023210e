"""The traces command against a server that answers from a list; the tokenizer is the shipped model's."""

import asyncio
import json
import os
import re
import shutil
import signal
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import sgl_dynts.training
from sgl_dynts import demo_model_path
from sgl_dynts.checkpoint import find_predictor
from sgl_dynts.demo.ledger import make_problem, make_task_problem
from sgl_dynts.tasks.graders import Verdict, grader_of
from sgl_dynts.tasks.problems import write_problems
from sgl_dynts.thinking import ThinkMarkers
from sgl_dynts.training import generation, make_traces
from sgl_dynts.training.trace_file import read_header, read_traces
from sgl_dynts.training.trace_parts import NoTrace, critical_positions, find_parts
from sgl_dynts.training.traces import main
from tests.unit.training.json_server import JsonServer

PROBLEMS = [make_task_problem(seed, 4) for seed in range(6)]
REFERENCE = {make_problem(seed, 4).question: make_problem(seed, 4) for seed in range(6)}
README = (Path(sgl_dynts.training.__file__).parent / "README.md").read_text()
MARKERS = ThinkMarkers((1,), (2, 3))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_model_path())


class FakeServer(JsonServer):
    """Answers a question with what `completions` gives, a reference solution without."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.asked = Counter()
        self.completions = {}
        self.paths = Counter()
        self.gives_text_alone = False
        super().__init__()

    def answer(self, path, body):
        self.paths[path] += 1
        prompt = body["input_ids"] if path == "/generate" else body["prompt"]
        question = self.tokenizer.decode(prompt).removeprefix("<bos> ").removesuffix(" <think>")
        self.asked[question] += 1
        text = self.completions.get(question, REFERENCE[question].completion)
        if isinstance(text, list):
            text = text[min(self.asked[question], len(text)) - 1]
        if text == "refuse":
            return 400, {"error": "no such thing"}
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        finish = "stop" if text.endswith("<eos>") else "length"
        if path == "/generate":
            plain = self.tokenizer.decode(ids, skip_special_tokens=True)
            return 200, {
                "text": plain,
                "output_ids": ids,
                "meta_info": {"finish_reason": {"type": finish}},
            }
        choice = {"text": text, "finish_reason": finish}
        return 200, {"choices": [choice if self.gives_text_alone else choice | {"token_ids": ids}]}


@pytest.fixture
def server(tokenizer):
    fake = FakeServer(tokenizer)
    yield fake
    fake.end()


@pytest.fixture
def run(server, tmp_path):
    problems, out = tmp_path / "problems.jsonl", tmp_path / "traces.jsonl"
    with problems.open("w") as file:
        write_problems(file, PROBLEMS)

    def call(*more, expected=0):
        words = ["--url", server.url, "--model", str(demo_model_path())]
        words += ["--problems", str(problems), "--out", str(out), "--concurrency", "3", *more]
        assert main(words) == expected
        return list(read_traces(out, wrong_too=True)) if out.exists() else []

    return call


def test_right_traces_are_kept_with_their_ids_and_what_matters(run, tokenizer):
    traces = run()
    assert {trace.problem for trace in traces} == {problem.id for problem in PROBLEMS}
    for trace in traces:
        start, end = trace.thinking
        reference = REFERENCE[trace.question]
        assert tokenizer.decode(trace.output_ids[start:end]) == reference.trace
        assert trace.answer == reference.answer
        assert trace.correct
        words = reference.trace.split()
        read_again = [w for i, w in enumerate(words) if i and words[i - 1] == "so"]
        again = [w for w in read_again if f"{reference.trace} {reference.answer}".split().count(w) > 1]
        assert tokenizer.decode([trace.output_ids[at] for at in trace.critical or ()]).split() == again


def test_what_is_no_trace_or_wrong_is_left_out_and_counted(run, server, capsys):
    questions = [problem.question for problem in PROBLEMS]
    server.completions = {
        questions[0]: "done <eos>",
        questions[1]: "done </think> a a=1 <eos>",
        questions[2]: "done </think> a <think> b </think> c <eos>",
        questions[3]: REFERENCE[questions[3]].trace,
        questions[4]: "</think> a a=1 <eos>",
    }
    assert [trace.problem for trace in run()] == [PROBLEMS[5].id]
    told = capsys.readouterr().out
    for outcome in (
        "never ends thinking",
        "wrong",
        "more than once",
        "cut by its length",
        "empty thinking",
    ):
        assert f"1 {outcome}" in told.replace("thinks more", "more")


def test_outputs_that_gave_no_right_trace_are_in_the_log_on_request(run, server, tmp_path):
    wrong, silent = PROBLEMS[2].question, PROBLEMS[3].question
    server.completions = {wrong: "done </think> a a=1 <eos>", silent: "done <eos>"}
    run("--log-outputs")
    lines = [json.loads(line) for line in (tmp_path / "traces.log").read_text().splitlines()]
    kept = {line["outcome"]: line for line in lines if "output" in line}
    assert set(kept) == {"wrong", "never ends thinking"}
    assert kept["wrong"]["output"] == server.completions[wrong]
    assert kept["wrong"]["said"] == "a a=1"
    assert len(run("--log-outputs")) == 4


def test_a_run_without_a_right_trace_says_what_helps(run, server, capsys):
    server.completions = {problem.question: "done <eos>" for problem in PROBLEMS}
    assert run() == []
    told = capsys.readouterr().err
    assert "no right trace: of 6 attempts 6 never ends thinking; name the model's own markers" in told


@pytest.mark.parametrize("flag", ["--think-start", "--think-end"])
def test_a_model_without_think_markers_is_told_by_the_flag(run, server, capsys, flag):
    assert run(flag, "[THINKING]", expected=1) == []
    assert f"{flag}: '[THINKING]' is not in the vocabulary" in capsys.readouterr().err
    assert not server.asked


def test_one_text_for_both_markers_is_refused_by_these_flags(run, capsys):
    run("--think-start", "</think>", expected=1)
    assert "--think-start and --think-end are both '</think>'" in capsys.readouterr().err


def test_wrong_traces_are_kept_on_request_and_marked(run, server):
    question = PROBLEMS[2].question
    server.completions = {question: "done </think> a a=1 <eos>"}
    wrong = [trace for trace in run("--keep-wrong") if not trace.correct]
    assert [(trace.question, trace.answer) for trace in wrong] == [(question, "a a=1")]


def test_what_a_grader_cannot_judge_is_counted_and_told_and_never_kept(run, server, capsys, monkeypatch):
    slow = PROBLEMS[2]
    grader = grader_of(slow)
    judge = type(grader).judge

    def judged(self, problem, text):
        return Verdict(False, "", is_judged=False) if problem == slow else judge(self, problem, text)

    monkeypatch.setattr(type(grader), "judge", judged)
    traces = run("--keep-wrong")
    assert {trace.problem for trace in traces} == {one.id for one in PROBLEMS} - {slow.id}
    told = capsys.readouterr()
    assert "5 right, 1 not judged" in told.out
    assert len(run("--keep-wrong")) == 5
    assert server.asked[slow.question] == 1


def test_no_question_waits_for_a_slow_grader(run, server, monkeypatch):
    slow = PROBLEMS[0]
    others_asked = threading.Event()
    answer, judge = server.answer, type(grader_of(slow)).judge

    def answered(path, body):
        reply = answer(path, body)
        if len(server.asked) == len(PROBLEMS):
            others_asked.set()
        return reply

    def judged(self, problem, text):
        assert problem != slow or others_asked.wait(60)
        return judge(self, problem, text)

    monkeypatch.setattr(server, "answer", answered)
    monkeypatch.setattr(type(grader_of(slow)), "judge", judged)
    assert len(run("--concurrency", "2")) == 6


def test_a_question_is_asked_again_until_it_is_right(run, server):
    question = PROBLEMS[1].question
    right = REFERENCE[question].completion
    server.completions = {question: ["done <eos>", "a </think> b <eos>", right, right]}
    assert len(run("--attempts", "4")) == 6
    assert server.asked[question] == 3
    assert sum(server.asked.values()) == 8


def test_a_stopped_run_goes_on_where_it_was(run, server, tmp_path):
    server.completions = {PROBLEMS[4].question: "refuse"}
    before = run("--concurrency", "1", expected=1)
    out, log = tmp_path / "traces.jsonl", tmp_path / "traces.log"
    assert len(before) == 4
    with out.open("a") as file:
        file.write('{"problem": "cut off')
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    server.completions = {}
    server.asked.clear()
    after = run()
    assert after[: len(before)] == before
    assert sorted(trace.problem for trace in after) == sorted(problem.id for problem in PROBLEMS)
    assert sum(server.asked.values()) == 6 - len(before)
    assert run() == after
    assert sum(server.asked.values()) == 6 - len(before)


def test_an_id_with_marks_that_look_like_line_ends_is_found_again(run, server, tmp_path):
    ids = [f"a{mark}b" for mark in "\u2028\x85\x0c\x1e\r\t"]
    problems = [replace(one, id=name) for one, name in zip(PROBLEMS, ids, strict=True)]
    (tmp_path / "problems.jsonl").write_text("".join(f"{one.to_line()}\n" for one in problems))
    before = run()
    assert sorted(trace.problem for trace in before) == sorted(ids)
    assert run() == before
    assert sum(server.asked.values()) == 6


def test_a_log_line_of_another_form_is_refused_by_file_and_line(run, tmp_path, capsys):
    (tmp_path / "traces.log").write_text('{"problem": "a", "came": "right"}\n')
    run(expected=1)
    assert "traces.log:1: field 'came' is unknown" in capsys.readouterr().err


def test_custom_params_that_are_no_object_are_refused_by_their_flag(run, capsys):
    for given in ("{", "[]", "NaN"):
        assert run("--custom-params", given, expected=1) == []
        assert "--custom-params: " in capsys.readouterr().err


def test_a_refusal_is_told_with_the_servers_words(run, server, capsys):
    server.completions = {problem.question: "refuse" for problem in PROBLEMS}
    assert run(expected=1) == []
    assert "no such thing" in capsys.readouterr().err


def test_openais_interface_gives_the_same_traces(run, server, tmp_path):
    by_id = sorted(run(), key=lambda trace: trace.problem)
    out = tmp_path / "other.jsonl"
    run("--api", "openai", "--out", str(out))
    assert server.paths == {"/generate": 6, "/v1/completions": 6}
    assert sorted(read_traces(out), key=lambda trace: trace.problem) == by_id


def test_text_alone_is_tokenized_again_and_marked(run, server):
    server.gives_text_alone = True
    traces = run("--api", "openai-text")
    assert len(traces) == 6
    assert all(trace.retokenized for trace in traces)


def test_a_prompt_that_is_too_long_is_told_and_left_out(run, capsys):
    assert run("--max-len", "10") == []
    assert "the model takes 10; left out" in capsys.readouterr().err


def test_the_tokenizer_of_another_model_is_found(run, server, capsys, monkeypatch):
    monkeypatch.setattr(server.tokenizer, "decode", lambda ids, **_: "other words")
    monkeypatch.setattr(server, "answer", lambda _path, _body: OTHER)
    assert run(expected=1) == []
    assert "it is another model's" in capsys.readouterr().err


OTHER = 200, {"text": "hello", "output_ids": [5, 6], "meta_info": {"finish_reason": {"type": "stop"}}}


def test_a_bad_line_ends_the_run_before_anything_is_asked(run, server, tmp_path, capsys):
    (tmp_path / "problems.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question"\n')
    run(expected=1)
    assert "problems.jsonl:2: not JSON" in capsys.readouterr().err
    assert not server.asked


def test_the_header_names_model_tokenizer_and_sampling(run, tmp_path):
    run("--temperature", "0.3", "--name", "org/model")
    header = read_header(tmp_path / "traces.jsonl")
    assert (header.model, header.sampling["temperature"]) == ("org/model", 0.3)


def test_a_call_in_a_notebook_s_running_loop_does_what_the_command_does(run, server, tmp_path, capsys):
    async def cell():
        return make_traces(server.url, demo_model_path(), PROBLEMS, out, progress=False)

    out = tmp_path / "called" / "traces.jsonl"
    report = asyncio.run(cell())
    assert capsys.readouterr() == ("", "")
    assert (report.path, report.outcomes, report.too_long) == (out, {"right": 6}, ())
    by_command = sorted(run(), key=lambda trace: trace.problem)
    assert sorted(read_traces(out), key=lambda trace: trace.problem) == by_command
    assert (tmp_path / "traces.jsonl").read_text().splitlines()[0] == out.read_text().splitlines()[0]


def test_a_bar_is_drawn_beside_what_is_printed(run, server, tmp_path, capsys):
    make_traces(server.url, demo_model_path(), tmp_path / "problems.jsonl", tmp_path / "traces.jsonl")
    told = capsys.readouterr()
    assert told.out == ""
    assert "6/6" in told.err


def test_the_readme_s_example_runs(server, tmp_path, monkeypatch):
    example = re.findall(r"^```python\n(.*?make_traces.*?)^```", README, re.MULTILINE | re.DOTALL)[0]
    for written, here in (("http://127.0.0.1:30000", server.url), ("5000", "60"), ("2000", "16")):
        assert written in example
        example = example.replace(written, here)
    shutil.copytree(demo_model_path(), tmp_path / "MODEL")
    (tmp_path / "problems.jsonl").write_text("".join(f"{one.to_line()}\n" for one in PROBLEMS))
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert find_predictor(tmp_path / "MODEL").header.windows.budget == 60


def interrupt_third(monkeypatch, how):
    read, seen = generation.Generation.read, []

    def interrupted(self, *arguments):
        seen.append(arguments)
        if len(seen) == 3:
            how()
        return read(self, *arguments)

    monkeypatch.setattr(generation.Generation, "read", interrupted)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_call_given_once_more_goes_on(server, tmp_path, monkeypatch):
    def ask():
        asked = (server.url, demo_model_path(), PROBLEMS, tmp_path / "traces.jsonl")
        return make_traces(*asked, concurrency=1, progress=False)

    interrupt_third(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ask()
    assert len(list(read_traces(tmp_path / "traces.jsonl"))) == 2
    assert ask().outcomes == {"right": 6}
    assert sum(server.asked.values()) == 7


def test_a_terminated_command_says_how_to_go_on(run, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    interrupt_third(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert len(run("--concurrency", "1", expected=130)) == 2
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("prompt", "output", "thinking", "answer"),
    [
        ([9, 1], [5, 6, 2, 3, 7], (0, 2), (4, 5)),
        ([9], [1, 5, 2, 3, 7, 8], (1, 2), (4, 6)),
        ([9, 1], [2, 5, 2, 3, 7], (0, 2), (4, 5)),
    ],
)
def test_parts_of_a_trace(prompt, output, thinking, answer):
    parts = find_parts(prompt, output, MARKERS)
    assert (parts.thinking, parts.answer) == (thinking, answer)


@pytest.mark.parametrize(
    ("prompt", "output", "reason"),
    [
        ([1, 2, 3], [5, 6], "does not think"),
        ([1], [5, 6], "never ends thinking"),
        ([1], [5, 2, 3, 7, 1, 8, 2, 3, 7], "thinks more than once"),
        ([1], [5, 2, 3, 7, 1, 8], "thinks more than once"),
        ([1], [5, 1, 6, 2, 3, 7], "thinks more than once"),
        ([1], [2, 3, 7], "empty thinking"),
        ([9], [1, 2, 3, 7], "empty thinking"),
    ],
)
def test_what_is_no_trace(prompt, output, reason):
    with pytest.raises(NoTrace, match=reason):
        find_parts(prompt, output, MARKERS)


def test_critical_texts_are_whole_words_and_the_first_of_them(tokenizer):
    output = tokenizer("so a=1 ; so b=2 ; recall a a=1", add_special_tokens=False)["input_ids"]
    assert critical_positions(tokenizer, output, (0, 7), ["a=1", "so b=2", "c=3"]) == [1, 3, 4]
    assert critical_positions(tokenizer, output, (2, 9), ["a=1"]) == [8]
