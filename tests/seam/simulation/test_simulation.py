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
STATES = replace(JOB, server=replace(SERVER, shape="qwen3-next-80b", num_states=90))
"""Qwen3-Next: five states let a request run, so that 18 run at once."""
ALONE = replace(STATES.server, num_states=30, flags=("--disable-radix-cache",))
VARIANTS = {
    "latents": replace(JOB, server=replace(SERVER, shape="deepseek-r1")),
    "states": STATES,
    "states, ends by token": replace(STATES, workload=replace(LOAD, clients=None, max_new_tokens=700)),
    "states, no prefix cache": replace(STATES, server=ALONE),
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
    lost = ("lost_slots", "lost_sliding_slots", "lost_states")
    assert [measures[name] for name in lost] == [0, 0, 0]
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


def test_latents_make_room_like_keys_and_values(run):
    both = run(VARIANTS["latents"])
    for side in SIDES:
        assert both[side]["running"] == pytest.approx(run(JOB)[side]["running"], rel=0.02)
        assert both[side]["compactions"] == pytest.approx(run(JOB)[side]["compactions"], rel=0.02)


@pytest.mark.parametrize(("variant", "most"), [("states", 90 // 5), ("states, no prefix cache", 30)])
def test_no_compaction_makes_room_for_a_state(run, variant, most):
    both = run(VARIANTS[variant])
    assert [both[side]["peak_running"] for side in SIDES] == [most, most]
    held = {side: both[side]["held_tokens"] / both[side]["running"] for side in SIDES}
    assert held[DYNTS] < 0.8 * held[STOCK]


def test_a_forward_takes_as_long_as_with_all_that_its_requests_stand_for(run):
    one, eight = (Job(replace(SERVER, stands_for=each), Workload(1, 30)) for each in (1, 8))
    together = run(Job(SERVER, Workload(8, 30)))
    for side in SIDES:
        alone, each = run(one)[side], run(eight)[side]
        assert each["makespan_s"] == pytest.approx(together[side]["makespan_s"], abs=2e-6)
        assert each["makespan_s"] > alone["makespan_s"]
        assert each["output_tokens"] == alone["output_tokens"] == 30


def test_a_job_that_ends_with_its_window_tells_the_same_rates(run):
    short = run(replace(JOB, ends_with_window=True))
    for side in SIDES:
        whole = run(JOB)[side]
        assert short[side]["finished"] < LOAD.num_requests
        for rate in ("tokens_per_s", "running", "held_tokens", "window_s"):
            assert short[side][rate] == whole[rate]


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
