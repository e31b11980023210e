"""What the Dockerfile promises, as far as it can be read without building it; CI lints it besides."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = dict(re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))


def test_there_is_a_target_for_gpus_and_one_for_cpus():
    assert set(STAGES) == {"cuda", "cpu"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_target_serves_as_a_user_of_its_own_and_is_watched(stage):
    lines = STAGES[stage].splitlines()
    assert "USER 10001" in lines
    after_root = lines[lines.index("USER 10001") :]
    assert not [line for line in after_root if line.startswith(("RUN", "COPY", "ADD"))]
    assert any(line.startswith("HEALTHCHECK") for line in after_root)


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_fetched_at_the_start(stage):
    assert "HF_HUB_OFFLINE=1" in STAGES[stage]
    start = STAGES[stage].partition("ENTRYPOINT")[2]
    assert "/opt/sgl_dynts/sgl_dynts/demo/model" in start
    assert "://" not in start


def test_the_cpu_target_is_set_up_by_the_step_that_ci_takes():
    step = "python3 -m sgl_dynts.environment"
    assert step in STAGES["cpu"]
    assert step in (ROOT / ".ci" / "run").read_text()


def test_the_base_is_the_release_that_the_project_pins():
    pinned = re.search(r'"sglang==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert pinned is not None
    assert f"SGLANG_IMAGE=lmsysorg/sglang:v{pinned[1]}\n" in DOCKERFILE
