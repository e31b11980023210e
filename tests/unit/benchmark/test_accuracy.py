"""The accuracy benchmark against a client that answers from a table: tasks, windows, grading."""

import json
import os
import re
import shutil
import signal
import threading
from contextlib import contextmanager

import pytest

from benchmark import accuracy
from benchmark.accuracy import SETTINGS, Cell, Run, cells, parse
from benchmark.harness.accuracy_tasks import check_words, choose_tasks
from benchmark.harness.presets import PRESETS
from benchmark.harness.provenance import keep
from benchmark.ledgers.export import save_model_folder
from benchmark.ledgers.model import DemoModel, ModelShape
from sgl_dynts import demo_model_path
from sgl_dynts.config import DynTSConfig
from sgl_dynts.demo.ledger import MAX_STEPS, Vocabulary, make_problem, vocabulary
from sgl_dynts.harness.client import Client
from sgl_dynts.harness.server import ServerError
from sgl_dynts.policies import FULL, needing, policies
from sgl_dynts.tasks.problems import SPLITS
from sgl_dynts.training.language import Language

VOCABULARY = Vocabulary()
LANGUAGE = Language(str(demo_model_path()))
SEEDS = SPLITS["test"]


class FakeClient(Client):
    """Solves every ledger by its reference, but those whose seed is in `wrong`."""

    def __init__(self, steps, count, wrong=()):
        super().__init__("http://nowhere")
        self.asked = []
        problems = [make_problem(seed, steps) for seed in SEEDS[:count]]
        self.solutions = {
            tuple(VOCABULARY.encode(problem.prompt)): problem.completion for problem in problems
        }
        self.wrong = {tuple(VOCABULARY.encode(problems[i].prompt)) for i in wrong}

    def call(self, path, body=None, timeout=0.0):
        if path == "/server_info":
            return {"device": "fake"}
        assert body is not None
        self.asked.append(body)
        prompt = tuple(body["input_ids"])
        text = "done </think> a a=1 <eos>" if prompt in self.wrong else self.solutions[prompt]
        dynts = {
            "policy": body["sampling_params"]["custom_params"]["dynts"]["policy"],
            "compacted_at": [],
            "dropped_then": [],
            "peak_window_len": 77,
        }
        meta = {"dynts": dynts, "prompt_tokens": len(prompt), "finish_reason": {"type": "stop"}}
        return {"output_ids": VOCABULARY.encode(text), "meta_info": meta}


@pytest.fixture
def args(tmp_path):
    def make(*words):
        return parse(["--out", str(tmp_path / "accuracy.json"), "--concurrency", "2", *words])

    return make


def test_ledgers_are_asked_in_the_chat_template_and_judged_by_their_words(args):
    client = FakeClient(10, 4, wrong=[2])
    options = args("--steps", "10", "--num-problems", "4")
    (task,) = choose_tasks(options)
    result = Run(options, client, LANGUAGE).measure(Cell(task, FULL, 1.0))
    assert (result["task"], result["n"], result["correct"]) == ("ledger-10", 4, 3)
    assert result["peak_kv_tokens"] == 77
    lengths = [len(make_problem(seed, 10).completion.split()) for seed in SEEDS[:4]]
    cuts = sorted(body["sampling_params"]["max_new_tokens"] for body in client.asked)
    assert cuts == sorted(round(1.25 * length) for length in lengths)


def test_a_ledgers_budget_is_a_share_of_its_reference_traces(args):
    options = args("--steps", "10", "--num-problems", "3", "--policies", "predictor", "window")
    tasks = choose_tasks(options)
    mean = round(sum(len(make_problem(seed, 10).trace.split()) for seed in SEEDS[:3]) / 3)
    windows = tasks[0].windows_of(0.5, DynTSConfig(308, 96, 0.9), None)
    assert windows == DynTSConfig(round(0.5 * mean), round(96 * round(0.5 * mean) / 308), 0.9)
    assert [cell.policy for cell in cells(options, tasks)][:3] == ["full", "predictor", "window"]


def test_proportions_of_ones_own_are_another_cell_and_leave_the_full_cache_alone(args):
    words = ("--steps", "10", "--num-problems", "2", "--policies", "predictor")
    client, results = FakeClient(10, 2), []
    for more in ((), ("--keep-ratio", "0.95"), ("--local-share", "0.2")):
        run = Run(args(*words, *more), client, LANGUAGE)
        for cell in cells(run.args, choose_tasks(run.args)):
            if run.find(cell) is None:
                results.append(run.measure(cell))
                keep(run.args.out, results[-1], SETTINGS)
    found = [(each["policy"], each["local_share"], each["keep_ratio"]) for each in results]
    assert found == [
        ("full", 0.312, 0.9),
        *[("predictor", 0.312, 0.9)] * 4,
        *[("predictor", 0.312, 0.95)] * 4,
        *[("predictor", 0.201, 0.9)] * 4,  # 62 of the 308 tokens recommended
    ]
    assert [each["local_window"] / each["budget"] < 0.22 for each in results] == [False] * 9 + [True] * 4
    served = [body["sampling_params"]["custom_params"]["dynts"]["keep_ratio"] for body in client.asked]
    assert served == [0.9] * 10 + [0.95] * 8 + [0.9] * 8
    assert json.loads(run.args.out.read_text()) == results


def test_a_run_that_is_ended_ends_its_server(monkeypatch, tmp_path):
    ended = []

    @contextmanager
    def served(*_arguments):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            yield FakeClient(10, 1)
        finally:
            ended.append("server")

    monkeypatch.setattr(accuracy, "served", served)
    monkeypatch.setattr("sys.argv", ["accuracy", "--out", str(tmp_path / "accuracy.json")])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match="143"):
            accuracy.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == ["server"]


def test_a_run_that_is_ended_asks_nothing_more_before_its_server_is_ended(args, monkeypatch):
    options = args("--steps", "10", "--num-problems", "40")
    client, ended = FakeClient(10, 40), threading.Event()
    answer, first = client.call, VOCABULARY.encode(make_problem(SEEDS[0], 10).prompt)

    def call(path, body=None, timeout=0.0):
        reply = answer(path, body)
        if body is not None and body["input_ids"] == first:  # the answer that is waited for
            raise SystemExit(143)  # as the signal's handler does, if in another thread
        if body is not None:
            assert ended.wait(60)
        return reply

    monkeypatch.setattr(client, "call", call)
    (task,) = choose_tasks(options)
    with pytest.raises(SystemExit):
        Run(options, client, LANGUAGE).measure(Cell(task, FULL, 1.0))
    asked = len(client.asked)
    ended.set()
    assert asked <= 3


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--local-share", "0.001"), "ledger-10, --budget-fraction 0.3: local_window=0"),
        (("--keep-ratio", "0.95", "--local-share", "0.003"), "local_window=0"),
    ],
)
def test_windows_that_cannot_be_are_refused_before_a_server_is_started(
    monkeypatch, tmp_path, words, named
):
    line = ["accuracy", "--steps", "10", "--budget-fraction", "0.3", "--num-problems", "2", *words]
    monkeypatch.setattr("sys.argv", [*line, "--out", str(tmp_path / "accuracy.json")])
    monkeypatch.setattr(accuracy, "served", lambda *_: pytest.fail("a server was started"))
    with pytest.raises(SystemExit, match=re.escape(named)):
        accuracy.main()


def test_a_server_that_fails_ends_the_command_with_what_it_said(monkeypatch, tmp_path):
    def served(*_):
        raise ServerError("the server ended with 7; log: out of luck")

    out = tmp_path / "accuracy.json"
    monkeypatch.setattr("sys.argv", ["accuracy", "--num-problems", "2", "--out", str(out)])
    monkeypatch.setattr(accuracy, "served", served)
    monkeypatch.setattr(accuracy, "unwind_on_sigterm", lambda: None)
    with pytest.raises(SystemExit, match="error: the server ended with 7; log: out of luck"):
        accuracy.main()


@pytest.mark.parametrize("name", ["--keep-ratio", "--local-share"])
def test_proportions_that_cannot_be_are_refused(args, capsys, name):
    with pytest.raises(SystemExit):
        args(name, "1")
    assert f"{name} 1 must lie between 0 and 1" in capsys.readouterr().err


def write(path, problems):
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return path


SUM = {"question": "1+1?", "answer": "2"}


@pytest.mark.parametrize(
    ("name", "family", "windows"),
    [
        ("aime24", "qwen-7b", (5000, 2000, 0.4)),
        ("aime25", "llama-8b", (5000, 2000, 0.3)),
        ("amc23", "qwen-7b", (5000, 2000, 0.4)),
        ("gpqa-d", "qwen-7b", (5000, 2000, 0.4)),
        ("gpqa-d", "llama-8b", (5000, 2500, 0.3)),
        ("gk23en", "qwen-7b", (3000, 1500, 0.4)),
        ("math500", "llama-8b", (3000, 1000, 0.3)),
    ],
)
def test_presets_are_the_papers(args, tmp_path, name, family, windows):
    path = write(tmp_path / "problems.jsonl", [SUM])
    (task,) = choose_tasks(args("--preset", f"{name}={path}", "--family", family))
    assert task.windows == DynTSConfig(*windows)
    assert task.windows_of(0.3, DynTSConfig(308, 96, 0.9), 500.0) == task.windows
    sampling = task.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.95, 20)
    assert (sampling.max_new_tokens, task.samples, task.split) == (16384, 5, "problems.jsonl")
    assert {problem.grader for problem in task.problems} == {PRESETS[name].grader}
    assert task.fractions([0.3, 0.5]) == [round(windows[0] / 16384, 4)]


def test_the_command_line_overrules_a_preset(args, tmp_path):
    path = write(tmp_path / "problems.jsonl", [SUM])
    words = ("--samples", "1", "--temperature", "0", "--max-new-tokens", "100")
    (task,) = choose_tasks(args("--preset", f"aime24={path}", *words))
    assert (task.samples, task.sampling.temperature, task.most_tokens(task.problems[0])) == (1, 0, 100)


def test_budgets_of_a_file_are_shares_of_what_the_full_cache_wrote(args, tmp_path):
    path = write(tmp_path / "sums.jsonl", [SUM])
    (task,) = choose_tasks(args("--problems", str(path), "--grader", "math"))
    assert (task.name, task.split, task.samples) == ("sums", "sums.jsonl", 1)
    assert task.windows_of(0.5, DynTSConfig(300, 100, 0.5), 400.0) == DynTSConfig(200, 67, 0.5)


@pytest.mark.parametrize("text", ["aime24", "aime24=", "aime99=x.jsonl"])
def test_a_preset_that_cannot_be_is_refused(args, text):
    with pytest.raises(ValueError, match=f"--preset {text}: give NAME=FILE"):
        choose_tasks(args("--preset", text))


def test_ledgers_with_words_that_the_model_lacks_are_refused(args):
    tasks = choose_tasks(args("--steps", str(MAX_STEPS), str(MAX_STEPS + 1), "--num-problems", "1"))
    check_words(tasks[:1], LANGUAGE)
    with pytest.raises(ValueError, match=f"ledger-{MAX_STEPS + 1}: .*at most {MAX_STEPS} entries"):
        check_words(tasks, LANGUAGE)


def test_ledgers_for_a_tokenizer_that_does_not_read_words_are_refused(args, tmp_path):
    """transformers takes a tokenizer of its own for every Qwen2, not the one in the folder."""
    save_model_folder(tmp_path, DemoModel(ModelShape(len(vocabulary()), "qwen2")), training_minutes=1.0)
    tasks = choose_tasks(args("--steps", "10", "--num-problems", "1"))
    with pytest.raises(
        ValueError, match=r"ledger-10: Qwen2Tokenizer, .* makes \d+ tokens of a question of"
    ):
        check_words(tasks, Language(str(tmp_path)))


def test_programs_run_only_if_that_is_allowed(args, tmp_path):
    path = write(tmp_path / "code.jsonl", [SUM])
    words = ("--preset", f"humaneval={path}")
    with pytest.raises(ValueError, match="--run-programs"):
        choose_tasks(args(*words))
    assert choose_tasks(args(*words, "--run-programs"))[0].name == "humaneval"


@pytest.fixture
def bare(tmp_path):
    """The demo's model without its predictor."""
    folder = tmp_path / "bare"
    shutil.copytree(demo_model_path(), folder, ignore=shutil.ignore_patterns("dynts"))
    return folder


def test_policies_that_need_no_predictor_run_without_one(args, bare):
    options = args("--model", str(bare), "--steps", "10", "--num-problems", "2", "--local-share", "0.25")
    tasks = choose_tasks(options)
    accuracy.check_windows(options, tasks)
    asked = {cell.policy for cell in cells(options, tasks)}
    assert asked == set(policies()) - set(needing("predictor"))
    result = Run(options, FakeClient(10, 2), LANGUAGE).measure(Cell(tasks[0], "window", 0.5))
    assert (result["model"], result["target"], result["policy"]) == ("bare", None, "window")
    assert result["local_window"] == round(0.25 * result["budget"])


def test_a_policy_that_needs_a_predictor_is_refused_without_one(args, bare):
    options = args("--model", str(bare), "--policies", "window", "predictor")
    with pytest.raises(ValueError, match=r"--policies predictor: .* has no predictor; name one with"):
        accuracy.check_windows(options, choose_tasks(options))


def test_a_predictor_of_another_folder_may_be_named(args, bare):
    options = args("--model", str(bare), "--predictor", str(demo_model_path()))
    assert accuracy.Subject.of(options) == accuracy.Subject.of(args())
    assert accuracy.server_words(options).endswith(f"--dynts-predictor {demo_model_path()}")


def test_markers_go_to_the_server(args):
    options = args("--think-start", "<r>", "--think-end", "</r>", "--server-args", "--tp-size 2")
    words = accuracy.server_words(options)
    assert words == "--dynts-think-start '<r>' --dynts-think-end '</r>' --tp-size 2"
