from pathlib import Path

import pytest

from tests.e2e.conftest import start  # noqa: F401  the same servers as everywhere
from tests.e2e.hf_reference import Reference
from tests.e2e.models import build_wide_model


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/gpu" in str(item.path):
            item.add_marker(pytest.mark.gpu)
            if "start" in item.fixturenames:
                item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory) -> Path:
    return build_wide_model(tmp_path_factory.mktemp("models") / "wide")


@pytest.fixture(scope="session")
def reference(wide_model) -> Reference:
    return Reference(wide_model)
