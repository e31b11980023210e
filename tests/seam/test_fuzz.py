"""Hostile options, flags and files: each is accepted or refused by message, and nothing else happens.

``--fuzz-examples N`` tries more of each, ``--fuzz-report FILE`` writes what was tried.
"""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from sglang.srt.sampling.sampling_params import SamplingParams

from sgl_dynts.checkpoint import AUTHOR_LAYER_NAMES, PREDICTOR_FILE, find_predictor, load_predictor
from sgl_dynts.config import DynTSConfig
from sglang_dynts.boot.server_args import resolve_windows
from tests import fuzz
from tests.fuzz import Tally
from tests.seam.engine import Engine, request

HEAD = """# What hostile input was tried

Written by `python -m tests tests/seam/test_fuzz.py --fuzz-examples {examples} --fuzz-report FILE`.
Each example must be accepted, and then mean something consistent, or be refused with a message; any other
exception fails the test. Over HTTP, `tests/e2e/test_operating.py` sends such options to a real server and
demands HTTP 200 or 4xx, a healthy server and no leaked slot afterwards.

| surface | tried | accepted | refused |
|---|---|---|---|
"""


@pytest.fixture(scope="module")
def fuzzed(request) -> Any:
    """Run one surface; what all of them tried goes to the report at the end."""
    num_examples = request.config.getoption("--fuzz-examples")
    tallies: list[Tally] = []

    def run(surface: str, drawn: st.SearchStrategy, act: Callable[[Any], bool]) -> Tally:
        tallies.append(fuzz.fuzz(surface, drawn, act, num_examples))
        return tallies[-1]

    yield run
    report: Path | None = request.config.getoption("--fuzz-report")
    if report is not None:
        rows = "".join(tally.row() + "\n" for tally in tallies)
        report.write_text(HEAD.format(examples=num_examples) + rows)


def accepts(call: Callable[[], Any]) -> bool:
    """Whether a call returns; a refusal says something, and a bug is not caught."""
    try:
        call()
    except ValueError as error:
        assert str(error)  # noqa: PT017
        return False
    return True


def both(tally: Tally) -> bool:
    return tally.accepted > 0 and tally.refused > 0


def test_options_of_a_request(serve, fuzzed):
    serve("--attention-backend", "dynts", "--dynts-min-selection", "5")
    governor = Engine().governor
    governor.config = DynTSConfig(96, 16, 0.4, 5)

    def act(options: Any) -> bool:
        custom = {"dynts": options}
        accepted = accepts(lambda: SamplingParams(custom_params=custom).verify(256))
        if accepted and (window := governor.window_of(request([8, 9], custom))) is not None:
            assert 2 < window.retained_len < window.budget
            assert window.config.period >= 1
        return accepted

    assert both(fuzzed("`custom_params.dynts` of a request", fuzz.options, act))


def test_any_custom_params(serve, fuzzed):
    serve("--attention-backend", "dynts")

    def act(custom: Any) -> bool:
        return accepts(lambda: SamplingParams(custom_params=custom).verify(256))

    drawn = fuzz.json_values | st.fixed_dictionaries({"dynts": fuzz.json_values})
    assert both(fuzzed("`custom_params` as a whole", drawn, act))


def test_windows_of_the_server(model, fuzzed):
    header = find_predictor(model).header

    def act(flags: dict[str, Any]) -> bool:
        def resolve() -> None:
            config = resolve_windows(Namespace(**flags), header, 4096)
            assert config.period >= 1
            assert config.retained_len(0) + config.period == config.budget_for(0)

        return accepts(resolve)

    count = st.none() | st.integers(-3, 300) | st.integers(-(2**70), 2**70)
    ratio = st.none() | st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1)
    flags = {"dynts_budget": count, "dynts_local_window": count, "dynts_min_selection": count}
    drawn = st.fixed_dictionaries(flags | {"dynts_keep_ratio": ratio})
    assert both(fuzzed("the server's window flags", drawn, act))


def test_predictor_files(model, tmp_path, fuzzed):
    path = tmp_path / "predictor.safetensors"
    good = (model / PREDICTOR_FILE).read_bytes()

    def load() -> None:
        predictor = load_predictor(find_predictor(tmp_path, path))
        assert all(bool(weight.isfinite().all()) for weight in predictor.parameters())

    def act(content: bytes) -> bool:
        path.write_bytes(content)
        with torch.inference_mode():
            return accepts(load)

    assert both(fuzzed("a damaged predictor file", fuzz.damaged(good), act))


def test_indices_of_a_checkpoint(tmp_path, fuzzed):
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.parent.mkdir()
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"nobody named this file")

    def act(content: Any) -> bool:
        index.write_text(content if isinstance(content, str) else json.dumps(content))
        try:
            find_predictor(index.parent)
        except ValueError as error:
            assert "outside.safetensors: not a readable" not in str(error)  # noqa: PT017
            return False
        return True

    paths = st.sampled_from(["../outside.safetensors", str(outside), "a.safetensors", "..", ".", ""])
    weight_map = st.dictionaries(st.sampled_from(AUTHOR_LAYER_NAMES), paths | fuzz.json_values)
    drawn = st.fixed_dictionaries({"weight_map": weight_map}) | fuzz.json_values | fuzz.texts
    assert fuzzed("a checkpoint's index of files", drawn, act).accepted == 0
