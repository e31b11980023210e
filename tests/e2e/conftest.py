import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from benchmark.harness.tiny_models import FIRST_WORD
from sgl_dynts import demo_model_path
from tests.e2e.hf_reference import Expected, Reference, Windows
from tests.e2e.models import CONFIGS, MODEL_WINDOW, VOCAB_SIZE, build_model, slides
from tests.e2e.server import Server, WarmServer
from tests.e2e.servers import DEMO, DEMO_POOL, SERVERS, SharedServers


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/e2e" in str(item.path):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def model_of(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a kind of model, written when it is first asked for."""
    root = tmp_path_factory.mktemp("models")

    @cache
    def get(kind: str) -> Path:
        return demo_model_path() if kind == DEMO else build_model(kind, root / kind)

    return get


@pytest.fixture(scope="session")
def reference_of(model_of) -> Callable[[str], Reference]:
    return cache(lambda kind: Reference(model_of(kind)))


@pytest.fixture(scope="session")
def shared_servers(request, model_of, tmp_path_factory, warm) -> Iterator[SharedServers]:
    params = [getattr(item, "callspec", None) for item in request.session.items]
    names = [spec.params["server"] for spec in params if spec and "server" in spec.params]
    logs = tmp_path_factory.mktemp("shared")
    shared = SharedServers(list(dict.fromkeys(names)), model_of, logs, warm)
    yield shared
    shared.stop()


@pytest.fixture(scope="session")
def server(request, shared_servers) -> Iterator[Server]:
    """A shared server, named by ``served_by``. Nothing is left in it at the end, if it still runs."""
    server = shared_servers.take(request.param)
    yield server
    if server.process.poll() is None:
        server.assert_nothing_leaked()
    server.stop()


@pytest.fixture
def kind(request) -> str:
    """The kind of model that the test's shared server has."""
    return SERVERS[request.node.callspec.params["server"]].model


@pytest.fixture
def windows(kind) -> Windows:
    """What the predictor of this kind of model recommends."""
    return Windows(96, MODEL_WINDOW if slides(CONFIGS[kind].get_text_config()) else 16, 0.4)


@pytest.fixture(scope="session")
def stock(tmp_path_factory, warm) -> Iterator[Server]:
    """Stock SGLang on the model and the pool of the shared server ``demo``."""
    log = tmp_path_factory.mktemp("stock") / "stock.log"
    flags = ("--attention-backend", "torch_native", *DEMO_POOL)
    with WarmServer(warm, demo_model_path(), log, *flags) as server:
        yield server.wait_ready()


@pytest.fixture(scope="module")
def start(tmp_path_factory, warm) -> Iterator[Callable[..., Server]]:
    """Start servers that live as long as the module's tests."""
    folder = tmp_path_factory.mktemp("logs")
    servers: list[Server] = []

    def start_one(model: Path, *flags: str, **options) -> Server:
        log = folder / f"server{len(servers)}.log"
        servers.append(WarmServer(warm, model, log, *flags, **options))
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
    at, served = reply["meta_info"]["dynts"]["compacted_at"], reply["output_ids"]
    assert len(served) == case["length"]
    expected = reference.generate(case["prompt"], case["length"], windows, None, at, late, policy, served)
    assert served == expected.tokens
    return expected


def prompt(length: int, seed: int) -> list[int]:
    """A random question of this many tokens without think markers."""
    draw = random.Random(seed)
    return [1] + [draw.randrange(FIRST_WORD, VOCAB_SIZE) for _ in range(length - 1)]
