"""The real SGLang in this process, its plug-ins loaded as a server loads them; no server is started."""

import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import sglang.srt.managers.scheduler  # noqa: F401  only where it is imported are its seams registered
from sglang.srt import runtime_context, server_args
from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.plugins import load_plugins

from tests.e2e.models import build_model

load_plugins()


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A tiny Llama whose predictor recommends budget 96, local window 16, keep ratio 0.4."""
    return build_model("llama", tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="session")
def bare(model, tmp_path_factory) -> Path:
    """That model without its predictor."""
    folder = tmp_path_factory.mktemp("bare")
    shutil.copytree(model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("dynts"))
    return folder


@pytest.fixture(scope="session")
def resolve(model) -> Callable[..., server_args.ServerArgs]:
    """Parse and resolve a command line as ``sglang serve`` does."""

    def resolve_one(*flags: str, folder: Path = model) -> server_args.ServerArgs:
        argv = ["--model-path", str(folder), "--device", "cpu", *flags]
        args = server_args.prepare_server_args(argv)
        args.resolve_once()
        return args

    return resolve_one


@pytest.fixture(scope="session")
def view(resolve) -> Callable[..., Namespace]:
    """Return what a command line resolves to, to read or to change."""

    def view_one(*flags: str, **where: Path) -> Namespace:
        args = resolve(*flags, **where)
        resolved = resolving_view(args)
        return Namespace(**{name: getattr(resolved, name) for name in args.__struct_fields__})

    return view_one


@pytest.fixture
def serve(resolve):
    """Publish a command line as a server process does, until the test ends."""
    contexts = []

    def publish(*flags: str, **where: Path) -> None:
        context = runtime_context.create_context(resolve(*flags, **where), role="test")
        contexts.append(runtime_context.use_context(context))
        contexts[-1].__enter__()

    yield publish
    for context in reversed(contexts):
        context.__exit__(None, None, None)
