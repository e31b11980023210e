"""The real server on the GPU, for every attention that serves DynTS: graphs, overlap, radix cache.

FlashInfer and FlashAttention 3 have no float32, and a random model's tokens hang on the last bit. So
tokens are compared with the CPU reference where attention can be exact, which is Triton's with IEEE
products; the 16-bit kernels are compared with themselves, bit by bit in SGLang's deterministic mode, and
by the answers of the demo's trained model.
"""

from dataclasses import dataclass, field

import pytest
import torch

from benchmark.ledgers import evaluate
from sgl_dynts import demo_model_path
from sgl_dynts.demo import ledger
from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.hf_reference import Reference, Windows
from tests.e2e.server import RETRACTING, Server
from tests.e2e.soak import draw_lives, soak


@dataclass(frozen=True)
class Kernels:
    """How a server is asked for one kind of attention."""

    flags: tuple[str, ...]
    stock_flags: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    needs_hopper: bool = False


def under(name: str, **facts) -> Kernels:
    named = ("--attention-backend", name)
    return Kernels(("--enable-dynts", *named), named, **facts)


ALL = {
    "dynts": Kernels(("--attention-backend", "dynts"), ("--attention-backend", "flashinfer")),
    "fa3": under("fa3", needs_hopper=True),
    "triton": under("triton"),
}
EXACT = {"triton": under("triton", environment={"TRITON_F32_DEFAULT": "ieee"})}
HALF = ("--dtype", "bfloat16")
POOL = ("--max-total-tokens", "20000", "--mem-fraction-static", "0.6")
CROWD = ("--max-total-tokens", "800000", "--max-running-requests", "512", "--mem-fraction-static", "0.3")
MIXED = ("--enable-mixed-chunk", "--chunked-prefill-size", "64")
WINDOWS = Windows(96, 16, 0.4)
LENGTHS = (5, 12, 20, 31, 40, 47, 60, 75, 90, 110, 130, 150)
NO_GRAPHS = ("--cuda-graph-backend-decode", "disabled", "--cuda-graph-backend-prefill", "disabled")
SWITCHES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "eager": (NO_GRAPHS, {}),
    "no_overlap": (("--disable-overlap-schedule",), {}),
    "coarse_barrier": ((), {"SGLANG_FORCE_COARSE_WAR_BARRIER": "1"}),
}


def skip_unless_here(kernels: Kernels) -> None:
    if kernels.needs_hopper and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("FlashAttention 3 needs a Hopper GPU")


@pytest.fixture(scope="module", params=ALL)
def kernels(request) -> Kernels:
    skip_unless_here(ALL[request.param])
    return ALL[request.param]


def jobs(length: int = 240) -> list[dict]:
    return [{"prompt": prompt(n, seed=n), "length": length} for n in LENGTHS]


@pytest.mark.parametrize("switch", ["default", *SWITCHES])
@pytest.mark.parametrize("name", EXACT)
def test_tokens_equal_the_cpu_reference_in_float32(start, wide_model, reference, name, switch):
    flags, environment = SWITCHES.get(switch, ((), {}))
    exact = EXACT[name]
    with start(
        wide_model, *exact.flags, *POOL, *MIXED, *flags, **exact.environment, **environment
    ) as server:
        tokens_equal(server, reference)


def tokens_equal(server: Server, reference: Reference) -> None:
    """Two rounds, so that the second finds its prompts in the radix cache."""
    for _ in range(2):
        replies = server.generate_all(jobs())
        for job, reply in zip(jobs(), replies, strict=True):
            assert assert_equal(reply, reference, job, WINDOWS).num_compactions >= 3
    again = server.generate(**jobs(length=1)[-1])
    assert again["meta_info"]["cached_tokens"] == LENGTHS[-1] - 1
    server.assert_nothing_leaked()


def test_decode_stays_in_graphs_across_compactions(start, wide_model, kernels):
    with start(wide_model, *kernels.flags, *HALF, *POOL, "--decode-log-interval", "1") as server:
        server.generate_all(jobs())
        lines = [line for line in server.log.read_text().splitlines() if "Decode batch" in line]
    assert [line for line in lines if "cuda graph: True" not in line] == []
    assert len([line for line in lines if "#compactions" in line and "#compactions: 0" not in line]) >= 5


def test_switches_change_no_token_under_load(start, wide_model, kernels):
    fixed = ("--enable-deterministic-inference", "--dynts-disable-elastic")
    found = {}
    for name, (flags, environment) in {"default": ((), {}), **SWITCHES}.items():
        with start(wide_model, *kernels.flags, *HALF, *POOL, *fixed, *flags, **environment) as server:
            found[name] = tokens_under_load(server)
    for name, tokens in found.items():
        assert tokens == found["default"], f"{name} gives other tokens"


def tokens_under_load(server: Server) -> list[list[int]]:
    load = [{"prompt": prompt(5 + 3 * i, seed=i), "length": 150 + 20 * (i % 5)} for i in range(48)]
    replies = server.generate_all(load)
    assert all(reply["meta_info"]["dynts"]["compactions"] >= 1 for reply in replies)
    server.assert_nothing_leaked()
    return [reply["output_ids"] for reply in replies]


def test_the_demos_model_answers_right(start, kernels):
    with start(demo_model_path(), *kernels.flags, *HALF, *POOL, *MIXED) as server:
        answers_right(server, num_problems=32)


def answers_right(server: Server, num_problems: int) -> None:
    """Its records are recalled from the selection; at other slots or positions they would be others."""
    vocabulary = ledger.Vocabulary()
    problems = evaluate.problems_of("test", num_problems, ledger.DEFAULT_STEPS)
    load = [
        {
            "prompt": vocabulary.encode(problem.prompt),
            "length": 800,
            "sampling_params": {"ignore_eos": False},
        }
        for problem in problems
    ]
    replies = server.generate_all(load)
    right = [
        ledger.is_correct(*pair) for pair in zip(problems, (r["text"] for r in replies), strict=True)
    ]
    assert all(reply["meta_info"]["dynts"]["compactions"] >= 10 for reply in replies)
    assert sum(right) >= 0.9 * num_problems, right
    server.assert_nothing_leaked()


def test_a_crowd_whose_windows_compact_every_eight_tokens_is_served(start, kernels):
    """After the same questions with the full cache, as two servers on an H200 lost such a crowd once."""
    problems = evaluate.problems_of("test", 500, ledger.DEFAULT_STEPS)
    prompts = [ledger.Vocabulary().encode(problem.prompt) for problem in problems]
    narrow = {"budget": 185, "local_window": 41, "keep_ratio": 0.95}
    with start(demo_model_path(), *kernels.flags, *HALF, *CROWD) as server:
        for dynts in ({"enabled": False}, narrow, narrow):
            load = [{"prompt": prompt, "length": 690, "dynts": dynts} for prompt in prompts]
            replies = server.generate_all(load)
            assert {len(reply["output_ids"]) for reply in replies} == {690}
        assert all(reply["meta_info"]["dynts"]["compactions"] >= 50 for reply in replies)
        server.assert_nothing_leaked()


def test_untriggered_it_gives_the_bits_of_stock(start, wide_model, kernels):
    with start(wide_model, *kernels.flags, "--dynts-budget", "4000", *HALF, *POOL) as ours:
        mine = tokens_and_logprobs(ours)
    with start(wide_model, *kernels.stock_flags, *HALF, *POOL) as stock:
        assert mine == tokens_and_logprobs(stock)


def tokens_and_logprobs(server: Server) -> list:
    """One after the other: the size of a batch may change the last bit."""
    replies = [server.generate(**job, return_logprob=True) for job in jobs(length=60)]
    return [(reply["output_ids"], reply["meta_info"]["output_token_logprobs"]) for reply in replies]


def test_a_soak_loses_no_slot(start, wide_model, kernels):
    flags = (*kernels.flags, *HALF, *MIXED, "--max-total-tokens", "3000")
    with start(wide_model, *flags, **RETRACTING) as server:
        soak(server, draw_lives(600, longest=600, seed=2), at_once=48, reference=None)


@pytest.mark.parametrize("name", EXACT)
def test_a_soak_changes_no_token_in_float32(start, wide_model, reference, name):
    exact = EXACT[name]
    flags = (*exact.flags, *MIXED, "--max-total-tokens", "1500")
    with start(wide_model, *flags, **exact.environment, **RETRACTING) as server:
        soak(server, draw_lives(120, longest=300, seed=3), at_once=16, reference=reference)
