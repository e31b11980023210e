"""Speculative decoding on the GPU: the draft's graphs, its attention, and the accepted tokens."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from benchmark.ledgers import evaluate
from sgl_dynts import demo_model_path
from sgl_dynts.demo import ledger
from sglang_dynts.forward.device_state import DeviceState
from sglang_dynts.forward.drafts import add_positions_at_the_door
from tests.e2e.conftest import assert_equal
from tests.e2e.server import Server
from tests.e2e.servers import EXACT as WITHOUT_EARLY
from tests.e2e.servers import NGRAM, STANDALONE
from tests.gpu.test_serving import ALL, EXACT, HALF, POOL, SWITCHES, WINDOWS, jobs, skip_unless_here


def test_a_captured_draft_step_adds_what_is_dropped_when_it_is_replayed():
    state = DeviceState(10, torch.zeros(4, 1, device="cuda"))
    seen = torch.zeros(4, dtype=torch.int64, device="cuda")
    model = SimpleNamespace(forward=lambda _ids, positions, _batch: seen.copy_(positions))
    add_positions_at_the_door(model, state)
    rows, counted = torch.tensor([3, 1], device="cuda"), torch.tensor([12, 13, 5, 6], device="cuda")
    batch = SimpleNamespace(forward_mode=ForwardMode.DECODE, req_pool_indices=rows)
    model.forward(None, counted, batch)  # what is compiled is compiled before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model.forward(None, counted, batch)
    state.dropped.copy_(torch.tensor([0, 7, 0, 100]))
    graph.replay()
    assert seen.tolist() == [112, 113, 12, 13]
    rows.copy_(torch.tensor([2, 3]))
    counted += 1
    graph.replay()
    assert seen.tolist() == [13, 14, 106, 107]


def drafting(way: str, model) -> tuple[str, ...]:
    return NGRAM if way == "ngram" else (*STANDALONE, "--speculative-draft-model-path", str(model))


@pytest.mark.parametrize("switch", ["default", *SWITCHES])
@pytest.mark.parametrize("way", ["ngram", "standalone"])
@pytest.mark.parametrize("name", EXACT)
def test_tokens_equal_the_cpu_reference_in_float32(start, wide_model, reference, name, way, switch):
    """Where the draft read beyond its row, tokens would stay right and its drafts would be wrong."""
    flags, environment = SWITCHES.get(switch, ((), {}))
    exact = EXACT[name]
    flags = (*exact.flags, *POOL, *flags, *drafting(way, wide_model), WITHOUT_EARLY)
    with start(wide_model, *flags, **exact.environment, **environment) as server:
        for job, reply in zip(jobs(), server.generate_all(jobs()), strict=True):
            assert assert_equal(reply, reference, job, WINDOWS).num_compactions >= 3
        server.assert_nothing_leaked()


@pytest.mark.parametrize("name", ALL)
def test_a_draft_that_is_the_model_itself_is_accepted_after_compactions_too(start, name):
    """Positions that reach over the row would make it read other requests' slots."""
    skip_unless_here(ALL[name])
    model = demo_model_path()
    flags = (*ALL[name].flags, *HALF, *POOL, *drafting("standalone", model))
    with start(model, *flags) as server:
        whole, compacted = accepted(server, enabled=False), accepted(server, enabled=True)
        server.assert_nothing_leaked()
    assert whole > 3.5
    assert compacted >= 0.85 * whole  # the demo compacts every 21 tokens, and each stops a verification


def accepted(server: Server, enabled: bool) -> float:
    """Tokens per verification."""
    vocabulary = ledger.Vocabulary()
    problems = evaluate.problems_of("test", 32, ledger.DEFAULT_STEPS)
    load = [
        {
            "prompt": vocabulary.encode(problem.prompt),
            "length": 800,
            "dynts": {"enabled": enabled},
            "sampling_params": {"ignore_eos": False},
        }
        for problem in problems
    ]
    numbers = [reply["meta_info"] for reply in server.generate_all(load)]
    assert all(bool(one["dynts"].get("compactions")) is enabled for one in numbers)
    return sum(n["completion_tokens"] for n in numbers) / sum(n["spec_verify_ct"] for n in numbers)
