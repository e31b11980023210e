"""What is reserved for whom, by SGLang's own prefill adder with our arithmetic in it."""

from types import SimpleNamespace

import pytest
from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder

from sglang_dynts.scheduling.admission import DynTSPrefillAdder, choose_adder
from tests.seam.engine import CONFIG, NUM_SLOTS, OFF, PROMPT, Engine, batch_of, request, thoughts

RETAINED, MEAN = 13, 2  # T of CONFIG with a short question, and a quarter of its period of 7


@pytest.fixture
def engine(serve) -> Engine:
    serve("--attention-backend", "dynts")
    engine = Engine()
    engine.capacity.answers.tokens = 0
    return engine


def adder(engine: Engine, *running, chunk: int | None = None) -> DynTSPrefillAdder:
    if running:
        engine.compact(*running)  # as the scheduler does before it admits
    batch = batch_of(*running) if running else None
    return DynTSPrefillAdder(1, engine.cache, engine.slots, batch, 0.5, 10_000, chunk)


def add(its: DynTSPrefillAdder, req) -> AddReqResult:
    req.init_next_round_input(its.tree_cache)
    return its.add_one_req(req, has_chunked_req=False, truncation_align_size=None)


def test_only_our_cache_gets_our_adder(engine):
    assert choose_adder(PrefillAdder, engine.scheduler) is DynTSPrefillAdder
    assert choose_adder(PrefillAdder, SimpleNamespace(tree_cache=object())) is PrefillAdder


def test_a_new_request_reserves_its_window_and_a_quarter_of_a_period(engine):
    its = adder(engine)
    assert add(its, request(thoughts(300, 4), length=5000)) is AddReqResult.CONTINUE
    assert NUM_SLOTS - its.rem_total_tokens == RETAINED + MEAN + 1
    assert NUM_SLOTS - its.cur_rem_tokens == 4 + 1


def test_as_many_as_the_pool_holds_are_admitted_at_once(engine):
    its = adder(engine)
    admitted = 0
    while add(its, request(thoughts(300 + 10 * admitted, 4), length=5000)) is AddReqResult.CONTINUE:
        admitted += 1
    assert admitted == NUM_SLOTS // (RETAINED + MEAN + 1)


def test_a_short_request_reserves_no_more_than_it_can_use(engine):
    its = adder(engine)
    add(its, request(thoughts(300, 4), length=3))
    assert NUM_SLOTS - its.rem_total_tokens == 4 + 3 + 1


def test_a_switched_off_request_is_counted_as_sglang_counts_it(engine):
    its = adder(engine)
    add(its, request(thoughts(300, 4), OFF, length=100))
    assert NUM_SLOTS - its.rem_total_tokens == 4 + 100 + 1
    running = engine.prefill(PROMPT, OFF)
    running.sampling_params.max_new_tokens = 100
    engine.decode(running, thoughts(100, 20))
    its = adder(engine, running)
    held = 24
    assert its.rem_total_tokens == NUM_SLOTS - held - (100 - 20) * 0.5
    running.sampling_params.ignore_eos = True
    assert adder(engine, running).rem_total_tokens == NUM_SLOTS - held - (100 - 20)


def test_a_running_request_reserves_what_its_window_lacks_of_its_mean(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 3))
    its = adder(engine, req)
    assert its.rem_total_tokens == NUM_SLOTS - RETAINED - MEAN
    assert its.cur_rem_tokens == NUM_SLOTS - 7


def test_a_window_above_its_mean_offers_the_difference_but_only_what_is_free_is_taken(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 15))
    assert req.kv.kv_allocated_len == 19
    its = adder(engine, req)
    assert its.rem_total_tokens == NUM_SLOTS - RETAINED - MEAN
    others = engine.alloc(NUM_SLOTS - 19 - 20)
    its = adder(engine, req)
    assert (its.rem_total_tokens, its.cur_rem_tokens) == (24, 20)
    engine.governor.table.period[req.kv.req_pool_idx] = 1
    assert add(adder(engine), request(thoughts(300, 21), length=2)) is AddReqResult.NO_TOKEN
    assert engine.capacity.wanted == 0
    assert len(others) == 161


def test_own_budgets_are_respected(engine):
    its = adder(engine)
    custom = {"dynts": {"budget": 60, "local_window": 10, "keep_ratio": 0.4}}  # T 30, period 30
    add(its, request(thoughts(300, 4), custom, length=5000))
    assert NUM_SLOTS - its.rem_total_tokens == 30 + 8 + 1


def test_without_elastic_budgets_the_whole_budget_is_reserved(engine):
    engine.capacity.elastic = False
    its = adder(engine)
    add(its, request(thoughts(300, 4), length=5000))
    assert NUM_SLOTS - its.rem_total_tokens == CONFIG.budget + 1


def test_expected_answers_are_reserved_too(engine):
    engine.capacity.answers.tokens = 9
    its = adder(engine)
    add(its, request(thoughts(300, 4), length=5000))
    assert NUM_SLOTS - its.rem_total_tokens == RETAINED + 9 + 1 + 1  # 1 for thinking, 1 for the page


def test_a_cached_prompt_is_not_reserved_twice(engine):
    engine.finish(engine.prefill(thoughts(300, 40)))
    engine.capacity.answers.tokens = 0
    its = adder(engine)
    before = its.rem_total_tokens
    add(its, request([*thoughts(300, 40), 9], length=5000))
    window = 41 + 1 + 6  # question, a quarter of k, local window
    assert before - its.rem_total_tokens == window + MEAN + 1  # 40 of them are now locked in the tree
    assert before - its.cur_rem_tokens == 40 + 1 + 1


def test_a_fixed_length_without_prefix_cache_is_admitted_alike(serve):
    serve("--attention-backend", "dynts", "--disable-radix-cache")
    engine = Engine(disable=True)
    engine.capacity.answers.tokens = 0
    its = adder(engine)
    req = request(thoughts(300, 4), length=5000)
    req.sampling_params.ignore_eos = True
    assert add(its, req) is AddReqResult.CONTINUE
    assert its.can_run_list == [req]
    assert NUM_SLOTS - its.rem_total_tokens == RETAINED + MEAN + 1


def test_a_resumed_window_is_charged_before_it_is_loaded(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 31))
    engine.retract(req)
    copied = engine.copied(req)
    its = adder(engine)
    assert add(its, req) is AddReqResult.CONTINUE
    assert NUM_SLOTS - its.cur_rem_tokens == copied + 1 + 1


def test_what_lacks_room_says_how_much_and_gets_it_from_a_compaction(engine):
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 15))
    engine.alloc(NUM_SLOTS - 19 - 7)  # 7 are free; what runs offers 4 more
    question = thoughts(300, 6)
    its = adder(engine, req)
    assert (its.rem_total_tokens, its.cur_rem_tokens) == (11, 7)
    assert add(its, request(question, length=1)) is AddReqResult.NO_TOKEN
    assert engine.capacity.wanted == 7  # the question, one to spare; who runs needs another
    batch = engine.compact(req)
    assert req.kv.kv_allocated_len == RETAINED
    assert (engine.capacity.wanted, batch.batch_is_full) == (0, False)
    assert add(adder(engine, req), request(question, length=1)) is AddReqResult.CONTINUE
