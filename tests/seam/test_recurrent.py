"""Recurrent states: a compaction leaves them alone, and none of other tokens is ever shared.

The books are SGLang's own: its pools of slots and of states, its radix tree.
"""

from inspect import unwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.configs.mamba_utils import Mamba2CacheParams, Mamba2StateDType, Mamba2StateShape
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.scheduler_components.batch_result_processor import SchedulerBatchResultProcessor
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, HybridReqToTokenPool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

from benchmark.harness.tiny_models import config_of
from sglang_dynts.entry.host_copies import HostCopies, bytes_per_token
from sglang_dynts.forward.head_moves import movable_tensors
from sglang_dynts.forward.kv_pools import full_side, is_compacted, refuse_unknown_pool
from sglang_dynts.scheduling import prefix_cache, start
from sglang_dynts.scheduling.slots.pools import OnePool
from tests.e2e.models import build_model
from tests.seam.engine import MAX_LEN, NUM_ROWS, NUM_SLOTS, POOL, PROMPT, Engine, thoughts

DYNTS = ("--attention-backend", "dynts")
FULL_LAYER, RECURRENT_LAYERS = 2, [0, 1]
NUM_STATES, GRID = 20, 4
"""States there are, and tokens after which a prefill's is kept; in SGLang these are 64."""
OPENED = [*PROMPT, 1]
"""A question of five tokens that opens thinking."""


class RecurrentEngine(Engine):
    components = (ComponentType.FULL, ComponentType.MAMBA)
    keeps_states = True

    def make_rows(self) -> HybridReqToTokenPool:
        shape = Mamba2StateShape.create(
            tp_world_size=1,
            intermediate_size=8,
            n_groups=1,
            num_heads=2,
            head_dim=4,
            state_size=4,
            conv_kernel=4,
        )
        kinds = Mamba2StateDType(conv=torch.float32, temporal=torch.float32)
        return HybridReqToTokenPool(
            size=NUM_ROWS,
            mamba_size=NUM_STATES,
            mamba_spec_state_size=0,
            max_context_len=MAX_LEN,
            device="cpu",
            enable_memory_saver=False,
            cache_params=Mamba2CacheParams(shape=shape, dtype=kinds, layers=RECURRENT_LAYERS),
            mamba_layer_ids=RECURRENT_LAYERS,
            enable_mamba_extra_buffer=True,
        )

    def make_pools(self) -> tuple[Any, Any]:
        some = {name: value for name, value in POOL.items() if name != "enable_memory_saver"}
        kv = HybridLinearKVPool(
            NUM_SLOTS, full_attention_layer_ids=[FULL_LAYER], mamba_pool=self.rows.mamba_pool, **some
        )
        return kv, TokenToKVPoolAllocator(NUM_SLOTS, torch.float32, "cpu", kv, need_sort=False)

    def note_state(self, req: Req, start: int, end: int) -> None:
        """As SGLang, which keeps the state of the last whole chunk of a prefill."""
        if end - start >= GRID:
            req.kv.mamba_last_track_seqlen = start + (end - start) // GRID * GRID
            req.kv.mamba_last_track_idx = req.kv.mamba_next_track_idx

    @property
    def states(self) -> list[torch.Tensor]:
        cache = self.rows.mamba_pool.mamba_cache
        return [*cache.conv, cache.temporal]

    def check_conservation(self, *running: Req) -> None:
        """Free, in the tree and held are all slots and all states there are."""
        super().check_conservation(*running)
        held = 3 * len(running)  # a request's own, and two that are kept in turn
        tree = self.cache.mamba_evictable_size() + self.cache.mamba_protected_size()
        assert self.rows.mamba_allocator.available_size() + tree + held == NUM_STATES


@pytest.fixture
def engine(serve) -> RecurrentEngine:
    serve(*DYNTS)
    return RecurrentEngine()


@pytest.fixture(scope="module", params=["qwen3_next", "qwen3_5"])
def folder(request, tmp_path_factory) -> Path:
    return build_model(request.param, tmp_path_factory.mktemp("recurrent") / request.param)


@pytest.mark.parametrize("flags", [(), ("--disable-radix-cache",)])
def test_the_users_own_command_serves_such_a_model(view, folder, flags):
    cfg = view(*DYNTS, *flags, folder=folder)
    assert (cfg.enable_dynts, cfg.radix_cache_backend, cfg.page_size) == (True, "dynts", 1)
    assert (cfg.attention_backend, cfg.linear_attn_backend) == ("torch_native", "triton")
    assert (cfg.disable_overlap_schedule, cfg.dynts_host_memory_gb) == (False, 0)
    assert cfg.mamba_radix_cache_strategy == ("auto" if flags else "extra_buffer")


def test_what_sglang_would_choose_without_overlap_is_refused_with_two_ways_out(resolve, folder):
    with pytest.raises(ValueError, match="no_buffer, given or chosen by SGLang: it keeps no "):
        resolve(*DYNTS, "--disable-overlap-schedule", folder=folder)
    for way in (("--mamba-radix-cache-strategy", "extra_buffer"), ("--disable-radix-cache",)):
        resolve(*DYNTS, "--disable-overlap-schedule", *way, folder=folder)


def test_copies_on_the_host_are_refused_and_sglang_without_dynts_is_left_alone(resolve, folder):
    with pytest.raises(ValueError, match="--dynts-host-memory-gb 4 with a model with recurrent states: "):
        resolve(*DYNTS, "--dynts-host-memory-gb", "4", folder=folder)
    resolve("--attention-backend", "torch_native", "--disable-overlap-schedule", folder=folder)


def test_states_of_another_kind_are_refused_by_name(resolve, tmp_path):
    config_of("falcon_h1", architectures=["FalconH1ForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of another kind than the gated delta rule: they have not been"):
        resolve(*DYNTS, "--disable-radix-cache", folder=tmp_path)


def test_a_compaction_frees_slots_and_changes_no_state(engine):
    req = engine.prefill(PROMPT)
    for number, states in enumerate(engine.states):
        states.copy_(torch.arange(states.numel()).view_as(states) + number)
    before, own = [states.clone() for states in engine.states], int(req.kv.mamba_pool_idx)
    engine.decode(req, thoughts(100, 16))
    assert req.kv.kv_allocated_len == 13
    assert engine.slots.available_size() == NUM_SLOTS - 13
    assert int(req.kv.mamba_pool_idx) == own
    assert all(torch.equal(*pair) for pair in zip(engine.states, before, strict=True))
    engine.check_conservation(req)


def test_a_question_is_shared_up_to_its_kept_state_before_and_after_compactions(engine):
    question = thoughts(50, 10)
    req = engine.prefill(question)
    assert engine.num_shared(question) == 8
    engine.decode(req, thoughts(100, 40))
    assert engine.window(req).dropped > 0
    engine.check_conservation(req)
    engine.finish(req)
    assert engine.num_shared([*question, *thoughts(100, 40)]) == 8
    engine.check_conservation()


@pytest.mark.parametrize(("question", "shared"), [(OPENED, 0), ([*thoughts(50, 8), 1], 8)])
def test_of_continued_thinking_only_a_state_of_the_question_is_shared(engine, question, shared):
    """The state of eight tokens saw three of the thoughts where the question has five."""
    prompt = [*question, *thoughts(100, 11 - len(question))]
    req = engine.prefill(prompt)
    assert engine.num_shared(prompt) == shared
    engine.check_conservation(req)
    engine.decode(req, thoughts(200, 20))
    engine.finish(req)
    assert engine.num_shared([*question, *thoughts(150, 20)]) == shared
    engine.check_conservation()


def test_without_the_guard_a_follow_up_would_go_on_from_a_state_of_other_thoughts(engine, monkeypatch):
    monkeypatch.setattr(prefix_cache, "_limit_of_state", lambda _req, limit, _dropped: limit)
    prompt = [*OPENED, *thoughts(100, 6)]
    req = engine.prefill(prompt)
    kept = req.kv.mamba_last_track_seqlen
    assert engine.num_shared([*OPENED, *thoughts(150, 6)]) == 5  # of a state that saw eight tokens
    assert kept is None  # it was given to the tree


def test_a_finished_request_that_dropped_nothing_shares_the_longest_state_of_what_it_said(engine):
    """The forward in flight keeps a state of one token more; SGLang takes the one before it."""
    said = [*thoughts(50, 10), *thoughts(100, 4)]
    req = engine.prefill(said[:10])
    engine.decode(req, said[10:])
    req.kv.mamba_prev_track_seqlen, req.kv.mamba_last_track_seqlen = 12, 15
    req.kv.mamba_last_track_idx = 0
    engine.finish(req)
    assert engine.num_shared(said) == 12
    engine.check_conservation()


def at_a_boundary(engine: RecurrentEngine, req: Req, update) -> None:
    """What SGLang does where a forward kept a state, as it counted before a compaction."""
    processor = SimpleNamespace(
        tree_cache=engine.cache, _mamba_assert_committed_len_lookahead=lambda _req: None
    )
    batch = SimpleNamespace(req_to_token_pool=engine.rows)
    update(processor, req, batch, None, 0, known_boundary=True)


def test_states_of_compacted_requests_are_not_kept_for_others(engine):
    update = SchedulerBatchResultProcessor._mamba_prefix_cache_update
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 16))
    turn = req.kv.mamba_next_track_idx
    at_a_boundary(engine, req, update)
    assert req.kv.mamba_next_track_idx == turn
    whole = engine.prefill(thoughts(50, 10))
    whole.kv.kv_committed_len, turn = 256, whole.kv.mamba_next_track_idx
    at_a_boundary(engine, whole, update)
    assert whole.kv.mamba_next_track_idx == 1 - turn


def test_without_the_guard_a_compaction_at_a_boundary_would_end_the_server(engine):
    update = unwrap(SchedulerBatchResultProcessor._mamba_prefix_cache_update)
    assert update is not SchedulerBatchResultProcessor._mamba_prefix_cache_update
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 16))
    with pytest.raises(AssertionError):
        at_a_boundary(engine, req, update)


def test_a_retracted_request_leaves_no_copy_and_is_computed_again_from_its_question(engine):
    engine.governor.copies = HostCopies(0)
    req = engine.prefill(PROMPT)
    engine.decode(req, thoughts(100, 20))
    engine.retract(req)
    engine.check_conservation()
    assert engine.copied(req) is None
    req.reset_for_retract()
    engine.admit(req)
    assert engine.window(req).dropped == 0
    assert req.kv.cache_protected_len == 4  # the question, from the state that was kept of it
    assert req.kv.mamba_cow_src_index is not None
    engine.check_conservation(req)


def test_full_layers_are_told_from_recurrent_ones(engine):
    assert type(engine.governor.pools) is OnePool
    refuse_unknown_pool(engine.kv)
    assert full_side(engine.kv) is engine.kv.full_kv_pool
    assert bytes_per_token(engine.kv) == 2 * 2 * 2 * 4
    layer = RadixAttention(2, 2, 1.0, 2, layer_id=FULL_LAYER)
    assert is_compacted(layer, engine.kv)
    movable = movable_tensors(engine.kv)
    assert movable is not None
    assert [len(tensors) for tensors in movable] == [2]


def test_a_pool_that_is_not_known_is_refused_behind_recurrent_layers(engine):
    engine.kv.full_kv_pool = SimpleNamespace()
    with pytest.raises(ValueError, match="DynTS does not know SimpleNamespace, SGLang's KV pool"):
        refuse_unknown_pool(engine.kv)


@pytest.mark.parametrize(
    ("num_budgets", "flags", "recommended"),
    [
        (400, {}, "let 116 requests run, and KV tokens have room for 400 budgets"),
        (150, {}, ""),
        (400, {"max_running_requests": 116}, ""),
        (400, {"max_mamba_cache_size": 580}, ""),
    ],
)
def test_the_start_recommends_a_share_for_states_that_lets_budgets_run(
    caplog, monkeypatch, num_budgets, flags, recommended
):
    told = {"max_running_requests": None, "max_mamba_cache_size": None, "mamba_full_memory_ratio": None}
    monkeypatch.setattr(start, "get_schedule", lambda: SimpleNamespace(mamba_full_memory_ratio=0.9))
    with caplog.at_level("INFO", logger=start.logger.name):
        start.recommend_state_ratio(SimpleNamespace(**told | flags), num_budgets, 116)
    assert recommended in caplog.text
    assert ("--mamba-full-memory-ratio 3.1 lets both" in caplog.text) is bool(recommended)
