"""What the documents say of messages, flags and files is what the code has."""

import ast
import re
from pathlib import Path

import msgspec
import pytest

from sglang_dynts.boot.server_args import DynTSServerArgs

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "python/**/*.md", "sgl_dynts/**/*.md", "benchmark/**/*.md")
    for path in ROOT.glob(pattern)
)
RUN_BY = {
    "python -m sgl_dynts.demo": ".ci/run",
    "python -m sgl_dynts.demo.english": "tests/e2e/test_english.py",
    "python -m sgl_dynts.demo.smollm2": "sgl_dynts/demo/english.py",
    "python -m tests": ".ci/run",
    "python -m tests.e2e.endurance": "tests/e2e/test_soak.py",
    "python -m sglang.launch_server": "sgl_dynts/harness/server.py",
    "sglang serve": "tests/e2e/server.py",
    "python -m sgl_dynts.page": "tests/unit/page/test_command.py",
    "python -m sgl_dynts.training.convert": "tests/unit/training/test_convert.py",
    "python -m sgl_dynts.training.fit_predictor": "tests/unit/training/test_fit_predictor.py",
    "python -m sgl_dynts.training.samples": "tests/unit/training/test_samples.py",
    "python -m sgl_dynts.training.traces": "tests/unit/training/test_traces.py",
    "python -m sgl_dynts.tasks.published": "tests/unit/tasks/test_published.py",
    "python -m sgl_dynts.tasks": "tests/unit/tasks/test_problems.py",
    "python -m sglang_dynts.check_seams": "tests/seam/test_check_seams.py",
    "python -m benchmark.accuracy": "tests/e2e/test_english.py",
    "python -m benchmark.likelihood": "tests/e2e/test_english.py",
    "python -m benchmark.predict": "tests/unit/test_gpu_benches.py",
    "python -m benchmark.pictures": "tests/unit/benchmark/test_pictures.py",
    "python -m benchmark.gpu": "tests/unit/test_gpu_benches.py",
    "python python/examples/frontend_program.py": "tests/e2e/test_front_ends.py",
    "python python/examples/openai_client.py": "tests/e2e/test_front_ends.py",
    "python python/examples/offline_engine.py": "tests/e2e/test_front_ends.py",
    "python python/examples/json_after_thinking.py": "tests/e2e/test_json_answer.py",
    "python -m sglang_router.launch_router": "tests/e2e/routers.py",
    "curl": "tests/e2e/test_operating.py",  # what it asks for is asked there
    "python -m sgl_dynts.environment": ".ci/run",
    "sgl-dynts-demo": "tests/unit/test_package.py",
    "sgl-dynts-check": "tests/unit/test_package.py",
    "sgl-dynts-calibrate": "tests/e2e/test_english.py",  # by its module
    "pip install": ".ci/run",  # by sgl_dynts.environment
}
"""Commands that a test, or CI, runs with arguments of its own, and where."""
MARKS = ("needs a GPU", "needs weights", "needs Docker", "takes minutes", "takes hours")
"""What a comment says of a command that no test runs."""
TROUBLESHOOTING = (ROOT / "python" / "docs" / "troubleshooting.md").read_text()


def texts_of(path: Path) -> list[str]:
    """Every string of a module, an f-string's varying parts left out."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [
        "\0".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        if isinstance(node, ast.JoinedStr)
        else str(node.value)
        for node in nodes
        if isinstance(node, ast.JoinedStr | ast.Constant)
    ]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    folders = (ROOT / "sgl_dynts", ROOT / "python" / "sglang_dynts")
    return [text for folder in folders for path in folder.rglob("*.py") for text in texts_of(path)]


@pytest.mark.parametrize("message", re.findall(r"^### `(.+)`$", TROUBLESHOOTING, re.MULTILINE))
def test_the_code_still_says_the_message(message, texts):
    assert any(message in text for text in texts)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text())
    for target in targets:
        if "://" not in target:
            assert (document.parent / target).exists(), target


def commands_of(document: Path) -> list[str]:
    """Every command of the fenced blocks that are for a shell, continued lines joined."""
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", document.read_text(), re.MULTILINE | re.DOTALL)
    shown = [text for language, text in blocks if language in ("", "sh", "bash")]
    lines = [line.strip() for text in shown for line in text.replace("\\\n", " ").splitlines()]
    programs = r"(python3?|sgl-dynts-\w+|pip|curl|sglang|docker|git|apt-get|export|huggingface-cli|hf) "
    return [re.sub(" +", " ", line) for line in lines if re.match(programs, line)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_run_by_a_test_or_marked(document):
    for command in commands_of(document):
        if any(mark in command.partition("#")[2] for mark in MARKS):
            continue
        plain = command.replace("python3 ", "python ")
        ran = [path for start, path in RUN_BY.items() if f"{plain} ".startswith(f"{start} ")]
        assert ran, f"{command!r} is run by no test: run it in one, or mark it with one of {MARKS}"


@pytest.mark.parametrize(("command", "path"), RUN_BY.items())
def test_the_test_that_runs_a_command_still_does(command, path):
    text = (ROOT / path).read_text()
    name = re.split(r"[./ ]", command.removesuffix(".py"))[-1]
    shown = {"tests": "-m tests", "install": "sgl_dynts.environment", "curl": "server.request("}
    shown["sgl-dynts-calibrate"] = "sglang_dynts.calibrate"
    shown |= dict.fromkeys(("sgl-dynts-demo", "sgl-dynts-check"), "SCRIPTS)")  # each of them
    assert shown.get(name, name) in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_that_is_named_to_be_run_is_there(document):
    for name in re.findall(
        r"python3? -m ((?:sgl_dynts|sglang_dynts|benchmark|tests)[\w.]*)", document.read_text()
    ):
        path = Path(*name.rstrip(".").split("."))
        places = [ROOT / path, ROOT / "python" / path]
        assert any(place.with_suffix(".py").is_file() or place.is_dir() for place in places), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_of_ours_exist(document):
    fields = {field.name for field in msgspec.structs.fields(DynTSServerArgs)}  # pyright: ignore
    named = set(re.findall(r"--((?:enable-)?dynts(?:-[a-z]+)*)", document.read_text()))
    assert {flag.replace("-", "_") for flag in named} <= fields
