"""Sliding windows (in one KV pool or two), latents, positions in three parts and states, by kernel."""

import pytest

from tests.e2e.conftest import assert_equal
from tests.e2e.hf_reference import Reference, Windows
from tests.e2e.models import MODEL_WINDOW, WIDE_CONFIGS, build_wide_family
from tests.e2e.server import RETRACTING
from tests.e2e.servers import EXACT as WITHOUT_EARLY
from tests.e2e.servers import NGRAM
from tests.e2e.soak import draw_lives, soak
from tests.gpu.test_serving import (
    ALL,
    EXACT,
    HALF,
    MIXED,
    POOL,
    jobs,
    skip_unless_here,
    tokens_under_load,
)

TRITON = EXACT["triton"]
RECURRENT = "recurrent"
STATES = {RECURRENT: ("--mamba-radix-cache-strategy", "extra_buffer")}
"""Of families with recurrent states: what SGLang would choose another of without overlap."""
EXACT_STATES = {"SGLANG_MAMBA_CONV_DTYPE": "float32"}
SLIDING = ("sliding", "two_pools")
FIXED = ("--enable-deterministic-inference", "--dynts-disable-elastic")


@pytest.fixture(scope="module", params=WIDE_CONFIGS)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return build_wide_family(family, tmp_path_factory.mktemp("families") / family)


@pytest.fixture(scope="module")
def windows(family) -> Windows:
    return Windows(96, MODEL_WINDOW if family in SLIDING else 16, 0.4)


def test_tokens_equal_the_cpu_reference_in_float32(start, folder, windows):
    """The second round begins with a prefix, and long prompts come in chunks."""
    reference = Reference(folder)
    exact = TRITON.environment | EXACT_STATES
    with start(folder, *TRITON.flags, *POOL, *MIXED, **exact) as server:
        for _ in range(2):
            for job, reply in zip(jobs(), server.generate_all(jobs()), strict=True):
                assert assert_equal(reply, reference, job, windows).num_compactions >= 2
        server.assert_nothing_leaked()


def test_drafts_give_the_tokens_too(start, family, folder, windows):
    """A verification reads several tokens in each kind of layer, and takes some of them back."""
    reference, states = Reference(folder), STATES.get(family, ())
    flags = (*TRITON.flags, *POOL, *NGRAM, WITHOUT_EARLY, *states)
    with start(folder, *flags, **TRITON.environment, **EXACT_STATES) as server:
        for job, reply in zip(jobs(), server.generate_all(jobs()), strict=True):
            assert assert_equal(reply, reference, job, windows).num_compactions >= 2
        server.assert_nothing_leaked()


def test_requests_that_come_back_from_a_copy_go_on_with_the_same_tokens(start, family, folder, windows):
    if family == RECURRENT:
        pytest.skip("requests with recurrent states leave no copies")
    reference = Reference(folder)
    small = ("--max-total-tokens", "700")
    with start(folder, *TRITON.flags, *small, **TRITON.environment, **RETRACTING) as server:
        replies = server.generate_all(jobs(200))
        server.assert_nothing_leaked()
    for job, reply in zip(jobs(200), replies, strict=True):
        assert_equal(reply, reference, job, windows, late=1)
    assert sum(reply["meta_info"]["dynts"]["resumptions"] for reply in replies) >= 3


@pytest.mark.parametrize("kernels", ALL)
def test_switches_change_no_token_under_load(start, family, folder, kernels):
    skip_unless_here(ALL[kernels])
    found, states = [], STATES.get(family, ())
    for switch in ((), ("--disable-overlap-schedule",)):
        with start(folder, *ALL[kernels].flags, *HALF, *POOL, *FIXED, *states, *switch) as server:
            found.append(tokens_under_load(server))
    assert found[0] == found[1]


@pytest.mark.parametrize("kernels", ALL)
def test_a_soak_loses_no_slot(start, folder, kernels):
    skip_unless_here(ALL[kernels])
    flags = (*ALL[kernels].flags, *HALF, *MIXED, "--max-total-tokens", "3000")
    with start(folder, *flags, **RETRACTING) as server:
        soak(server, draw_lives(300, longest=600, seed=2), at_once=48, reference=None)
