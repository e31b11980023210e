"""SGLang's real scheduler, stock and with DynTS, to the end of small loads in virtual time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest

from benchmark.simulation.job import DYNTS, SIDES, STOCK, Job, ServerSpec, Workload
from benchmark.simulation.launch import SideProcess, SimulationError
from sgl_dynts.config import DynTSConfig
from sgl_dynts.roofline import H200, QWEN_7B

pytestmark = pytest.mark.slow

SERVER = ServerSpec(
    pool_tokens=20_000, max_running=64, context_len=4096, windows=DynTSConfig(300, 100, 0.4)
)
LOAD = Workload(120, 600, question_len=50, clients=40)
JOB = Job(SERVER, LOAD)


@pytest.fixture(scope="module")
def sides() -> Iterator[dict[str, SideProcess]]:
    with ExitStack() as stack:
        yield {side: stack.enter_context(SideProcess(side)) for side in SIDES}


@pytest.fixture(scope="module")
def run(sides):
    """Run a job on both sides, each job once."""
    results: dict[Job, dict[str, dict]] = {}

    def run_both(job: Job) -> dict[str, dict]:
        if job not in results:
            with ThreadPoolExecutor(len(SIDES)) as pool:
                measured = pool.map(lambda side: sides[side].run(job), SIDES)
                results[job] = dict(zip(SIDES, measured, strict=True))
        return results[job]

    return run_both


TWO_POOLS = replace(
    JOB,
    server=replace(SERVER, shape="gpt-oss-20b", sliding_share=0.6, windows=DynTSConfig(300, 140, 0.4)),
)
"""gpt-oss: a request of 650 tokens holds up to 256 of them in sliding layers, whose pool has 12,000."""
VARIANTS = {
    "two pools": TWO_POOLS,
    "two pools, answers": replace(TWO_POOLS, workload=replace(LOAD, answer_len=400)),
    "two pools, ends by token": replace(
        TWO_POOLS, workload=replace(LOAD, clients=None, max_new_tokens=700)
    ),
    "overlap": JOB,
    "all at once": replace(JOB, workload=replace(LOAD, clients=None)),
    "no overlap": replace(JOB, server=replace(SERVER, overlap=False)),
    "answers": replace(JOB, workload=replace(LOAD, answer_len=400)),
    "ends by token": replace(JOB, workload=replace(LOAD, clients=None, max_new_tokens=700)),
    "arrivals": replace(JOB, workload=replace(LOAD, rate=20.0, clients=None)),
    "shared prefix": replace(JOB, workload=replace(LOAD, shared_prefix_len=40)),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", SIDES)
def test_every_request_gets_its_tokens_and_every_slot_comes_back(run, side, variant):
    measures = run(VARIANTS[variant])[side]
    assert measures["finished"] == LOAD.num_requests
    assert measures["wrong_lengths"] == 0
    assert (measures["lost_slots"], measures["lost_sliding_slots"]) == (0, 0)
    assert measures["output_tokens"] <= measures["generated_tokens"]


def test_only_dynts_compacts_and_it_holds_less(run):
    both = run(JOB)
    assert both[STOCK]["compactions"] == 0
    assert both[DYNTS]["compactions"] > LOAD.num_requests
    held = {side: both[side]["held_tokens"] / both[side]["running"] for side in SIDES}
    assert held[DYNTS] < 0.9 * held[STOCK]


def test_dynts_serves_more_at_once_and_is_done_earlier(run):
    both = run(JOB)
    assert both[DYNTS]["running"] > both[STOCK]["running"]
    assert both[DYNTS]["makespan_s"] < both[STOCK]["makespan_s"]


def test_compactions_make_room_in_the_pool_of_the_full_layers(run):
    both = run(TWO_POOLS)
    assert (both[STOCK]["compactions"], both[DYNTS]["compactions"] > LOAD.num_requests) == (0, True)
    held = {side: both[side]["held_tokens"] / both[side]["running"] for side in SIDES}
    assert held[DYNTS] < 0.9 * held[STOCK]
    assert both[DYNTS]["running"] > both[STOCK]["running"]


def test_answers_are_not_compacted_away(run):
    """Nobody waits for the pool, and the thinking of those that answer stays below the budget."""
    calm = replace(LOAD, clients=20)
    thinking = run(replace(JOB, workload=calm))[DYNTS]
    answering = run(replace(JOB, workload=replace(calm, answer_len=400)))[DYNTS]
    assert thinking["compactions"] > LOAD.num_requests
    assert answering["compactions"] < thinking["compactions"] / 10  # those moved forward, out of a crowd


def test_stock_retracts_requests_that_it_expected_to_end_early(run):
    fixed, open_ended = run(JOB)[STOCK], run(VARIANTS["ends by token"])[STOCK]
    assert fixed["retractions"] == 0
    assert open_ended["retractions"] > 0
    assert open_ended["prefilled_tokens"] > fixed["prefilled_tokens"]


def test_a_shared_prefix_is_computed_once(run):
    for side in SIDES:
        own, shared = run(JOB)[side], run(VARIANTS["shared prefix"])[side]
        assert own["prefix_hit_rate"] < 0.05
        assert shared["prefix_hit_rate"] > 0.3
        assert shared["prefilled_tokens"] < own["prefilled_tokens"]


def test_arrivals_take_their_virtual_time(run):
    for side in SIDES:
        assert 4 < run(VARIANTS["arrivals"])[side]["makespan_s"] < 20


@pytest.mark.parametrize("overlap", [True, False])
def test_virtual_time_is_the_rooflines(run, overlap):
    two = Workload(2, 3, question_len=10, rate=1e-3)  # so far apart that each runs alone
    both = run(Job(replace(SERVER, overlap=overlap), two))
    weights, kv = QWEN_7B.read_bytes, QWEN_7B.kv_token_bytes
    bandwidth = 0.82 * 4.8e12
    prefill = (weights + 10 * kv) / bandwidth
    decodes = (weights + 11 * kv) / bandwidth + (weights + 12 * kv) / bandwidth
    decodes += 2 * (H200.step_seconds + H200.request_seconds)
    assert H200.bandwidth_efficiency == 0.82
    assert both[STOCK]["ttft"]["mean"] == pytest.approx(prefill, abs=1e-6)
    assert both[STOCK]["ttft"]["p99"] == pytest.approx(prefill, abs=1e-6)
    alone = run(Job(SERVER, replace(two, num_requests=1)))
    assert alone[STOCK]["makespan_s"] == pytest.approx(prefill + decodes, abs=2e-6)
    predictor = 3 * QWEN_7B.predictor_bytes / bandwidth
    assert alone[DYNTS]["makespan_s"] == pytest.approx(prefill + decodes + predictor, abs=2e-6)


def test_a_job_that_takes_too_long_says_how_far_it_came(sides):
    with pytest.raises(SimulationError, match="0 of 120 requests finished"):
        sides[STOCK].run(replace(JOB, max_wall_seconds=0.0))


def test_sides_that_take_turns_and_what_hooks_take(run, tmp_path):
    job = replace(JOB, skip_iterations=300, max_iterations=340, turns=str(tmp_path), turn_len=10)
    measures = run(job)
    for side in SIDES:
        assert len(measures[side]["turns_ms"]) == 4
        assert min(measures[side]["turns_ms"]) > 0
    assert measures[STOCK]["hooks_ratio"] == 1
    assert 1 < measures[DYNTS]["hooks_ratio"] < 2
