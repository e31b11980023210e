"""A local window that is shorter than the model's own is refused, at start and by request."""

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.layers.radix_attention import RadixAttention

from sgl_dynts.config import DynTSConfig
from sglang_dynts.boot.sliding_window import (
    check_server_window,
    least_local_window,
    refuse_short_window,
)

DYNTS = ("--attention-backend", "dynts")  # the model's predictor recommends a local window of 16


class Runner:
    """A model runner whose layers have these windows; ``told`` is what SGLang found when it loaded it."""

    is_draft_worker = False

    def __init__(self, *windows: int, told: int | None = None, two_pools: bool = False) -> None:
        layers = [RadixAttention(2, 8, 1.0, 2, i, sliding_window_size=w) for i, w in enumerate(windows)]
        self.model: Any = SimpleNamespace(modules=lambda: iter([object(), *layers]))
        self.sliding_window_size = told
        self.model_config = SimpleNamespace(is_hybrid_swa=two_pools)


@pytest.mark.parametrize(
    ("runner", "least"),
    [
        (Runner(-1, -1), 0),
        (Runner(-1, -1, told=4095), 0),  # EXAONE-4 32B has a pattern, its 1.2B has none
        (Runner(23, -1, told=23), 23),
        (Runner(23, -1, told=None), 23),
        (Runner(7, 23, -1, told=23), 23),
        (Runner(), 0),
        (Runner(23, -1, told=23, two_pools=True), 24),  # the token in computation sees one more
    ],
    ids=range(7),
)
def test_the_longest_window_of_a_layer_counts(runner, least):
    assert least_local_window(runner) == least


def test_a_server_is_refused_with_the_number_that_would_do(serve):
    serve(*DYNTS)
    check_server_window(None, Runner(16, -1))
    with pytest.raises(
        ValueError,
        match=r"^--dynts-local-window 16, .* see 17 tokens back, .* --dynts-local-window 17 or more, "
        "and a --dynts-budget above it$",
    ):
        check_server_window(None, Runner(17, -1))


def test_a_server_without_dynts_is_not_asked(serve):
    serve("--attention-backend", "torch_native")
    check_server_window(None, Runner(17, -1))


def test_a_request_is_refused_with_the_number_that_would_do():
    refuse_short_window(None, Runner(17, -1))
    refuse_short_window(DynTSConfig(96, 17, 0.4), Runner(17, -1))
    with pytest.raises(ValueError, match=r"^custom_params\.dynts\.local_window=16: .* give 17 or more$"):
        refuse_short_window(DynTSConfig(96, 16, 0.4), Runner(17, -1))
