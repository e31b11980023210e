import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmark.harness.tiny_models import FIRST_WORD
from tests.e2e.hf_reference import Expected, Reference, Windows
from tests.e2e.models import CONFIGS, VOCAB_SIZE, build_model
from tests.e2e.server import Server


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/e2e" in str(item.path):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: build_model(kind, root / kind) for kind in CONFIGS}


@pytest.fixture(scope="session")
def reference_of(models) -> Callable[[str], Reference]:
    references: dict[str, Reference] = {}

    def get(kind: str) -> Reference:
        if kind not in references:
            references[kind] = Reference(models[kind])
        return references[kind]

    return get


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[Callable[..., Server]]:
    """Start servers that live as long as the module's tests."""
    folder = tmp_path_factory.mktemp("logs")
    servers: list[Server] = []

    def start_one(model: Path, *flags: str, **options) -> Server:
        log = folder / f"server{len(servers)}.log"
        servers.append(Server(model, log, *flags, **options))
        return servers[-1].wait_ready()

    yield start_one
    for server in servers:
        server.stop()


def assert_equal(
    reply: dict,
    reference: Reference,
    case: dict,
    windows: Windows | None,
    late: int = 0,
    policy: str = "predictor",
) -> Expected:
    """The reply holds the tokens that Hugging Face gives when it compacts where the server did."""
    at = reply["meta_info"]["dynts"]["compacted_at"]
    expected = reference.generate(case["prompt"], case["length"], windows, None, at, late, policy)
    assert reply["output_ids"] == expected.tokens
    return expected


def prompt(length: int, seed: int) -> list[int]:
    """A random question of this many tokens without think markers."""
    draw = random.Random(seed)
    return [1] + [draw.randrange(FIRST_WORD, VOCAB_SIZE) for _ in range(length - 1)]
