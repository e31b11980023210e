from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.e2e.server import STRICT
from tests.warm import Warm


def pytest_addoption(parser):
    group = parser.getgroup("fuzz")
    group.addoption("--fuzz-examples", type=int, default=500, help="examples per fuzzed surface")
    group.addoption("--fuzz-report", type=Path, help="file to write what was tried to")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, this machine has none"))


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    process = Warm(STRICT)
    yield process
    process.stop()
