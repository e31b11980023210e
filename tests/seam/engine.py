"""SGLang's books without a server: its real pools, requests and radix tree, driven a token at a time."""

from array import array
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.managers import schedule_batch
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.common import checkpoint_kv_cache, release_kv_cache
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.sampling.sampling_params import SamplingParams

from sgl_dynts.capacity import AnswerReserve
from sgl_dynts.config import DynTSConfig
from sgl_dynts.head_sets import HeadBuffers
from sgl_dynts.policies import ModelFacts, build_policies
from sgl_dynts.thinking import ThinkMarkers
from sgl_dynts.window import RequestWindow
from sglang_dynts.entry.governed_request import GovernedRequest
from sglang_dynts.entry.host_copies import HostCopies
from sglang_dynts.forward.device_state import DeviceState, on_runner
from sglang_dynts.forward.head_moves import PendingMoves, movable_tensors
from sglang_dynts.scheduling.capacity_state import ONE_TOKEN, CapacityState, DecodeStep
from sglang_dynts.scheduling.governor import Governor
from sglang_dynts.scheduling.prefix_cache import DynTSRadixCache
from sglang_dynts.scheduling.round import compact_requests
from sglang_dynts.scheduling.slots.pools import pools_of

CONFIG = DynTSConfig(budget=20, local_window=6, keep_ratio=0.5)  # k 7, T 13, period 7
MARKERS = ThinkMarkers((1,), (2,))
NUM_SLOTS, NUM_ROWS, MAX_LEN = 200, 4, 100
PROMPT = [50, 51, 52, 53]
OFF = {"dynts": {"enabled": False}}
POOL: dict[str, Any] = {
    "page_size": 1,
    "dtype": torch.float32,
    "head_num": 2,
    "head_dim": 2,
    "device": "cpu",
    "enable_memory_saver": False,
}


class Runner:
    """What the runtime's table of model runners is keyed by."""


class Engine:
    """A scheduler's books for one request at a time: prefill, decode, compact, release."""

    components: tuple[ComponentType, ...] = (ComponentType.FULL,)
    sees: int | None = None
    """Tokens before its own that a sliding layer sees, where these have a pool of their own."""
    keeps_states = False
    """Whether recurrent states are kept for the tree."""

    def __init__(
        self, cache_class=DynTSRadixCache, disable: bool = False, step: DecodeStep = ONE_TOKEN
    ) -> None:
        self.rows = self.make_rows()
        self.kv, self.slots = self.make_pools()
        self.cache = cache_class(
            CacheInitParams(
                disable=disable,
                req_to_token_pool=self.rows,
                token_to_kv_pool_allocator=self.slots,
                page_size=1,
                tree_components=self.components,
                sliding_window_size=self.sees,
                enable_mamba_extra_buffer=self.keeps_states,
            )
        )
        runner = Runner()
        self.device = DeviceState(NUM_SLOTS + 1, self.rows.req_to_token)
        movable = movable_tensors(self.kv)
        assert movable is not None
        self.device.moves = PendingMoves(HeadBuffers.of(movable))
        self.rows.register_on_alloc_rows(self.device.reset_rows)
        on_runner(runner).state = self.device
        self.capacity = CapacityState(NUM_SLOTS, AnswerReserve(CONFIG.period // 2), step=step)
        policies = build_policies(ModelFacts(frozenset({5}), num_layers=2, num_kv_heads=2))
        copies = HostCopies(1 << 20)
        pools = pools_of(self.slots, self.sees)
        self.governor = Governor(CONFIG, MARKERS, policies, self.device, pools, self.capacity, copies)
        self.cache.governor = self.governor
        self.scheduler = SimpleNamespace(
            tree_cache=self.cache,
            tp_worker=SimpleNamespace(model_runner=runner),
            req_to_token_pool=self.rows,
            token_to_kv_pool_allocator=self.slots,
            chunked_req=None,
            waiting_queue=[],
            max_running_requests=NUM_ROWS,
            enable_overlap=False,
        )

    def make_rows(self) -> Any:
        """The rows of slots."""
        return ReqToTokenPool(NUM_ROWS, MAX_LEN, "cpu", enable_memory_saver=False)

    def make_pools(self) -> tuple[Any, Any]:
        """K and V, and the allocator of their slots."""
        kv = MHATokenToKVPool(NUM_SLOTS, layer_num=2, **POOL)
        return kv, TokenToKVPoolAllocator(NUM_SLOTS, torch.float32, "cpu", kv, need_sort=False)

    def prefill(self, tokens: list[int], custom: dict | None = None, chunk: int = MAX_LEN) -> Req:
        return self.admit(request(tokens, custom), chunk)

    def admit(self, req: Req, chunk: int = MAX_LEN) -> Req:
        req.init_next_round_input(self.cache)
        req.lock = self.cache.lock(req.last_node)
        total = len(req.full_untruncated_fill_ids)
        matched = self.cache.prefix_device_indices(req)
        self.rows.alloc([req])
        row = self.rows.req_to_token[req.kv.req_pool_idx]
        row[: req.prefix_len] = matched
        self.device.resume_rows([req])
        for start in range(req.prefix_len, total, chunk):
            end = min(start + chunk, total)
            row[start:end] = self.alloc(end - start)
            req.kv.kv_allocated_len = req.kv.kv_committed_len = req.extend_end = end
            self.note_state(req, start, end)
            checkpoint_kv_cache(req, self.cache)
        return req

    def note_state(self, req: Req, start: int, end: int) -> None:
        """Take note of what a prefill of these places leaves beside K and V."""

    def alloc(self, count: int) -> torch.Tensor:
        slots = self.slots.alloc(count)
        assert slots is not None
        return slots

    def decode(self, req: Req, tokens: list[int]) -> None:
        for token in tokens:
            end = req.kv.kv_allocated_len
            self.rows.req_to_token[req.kv.req_pool_idx, end] = self.alloc(1)
            req.kv.kv_allocated_len = req.kv.kv_committed_len = end + 1
            req.output_ids.append(token)
            req.decode_batch_idx += 1
            self.compact(req)

    def speculate(self, req: Req, tokens: list[int]) -> None:
        """Hold slots ready for drafts, and accept these tokens of them."""
        self.hold_ready(req)
        accept(req, tokens)
        self.compact(req)

    def hold_ready(self, req: Req) -> None:
        end, wanted = req.kv.kv_allocated_len, req.kv.kv_committed_len + self.capacity.step.spare_slots
        if wanted > end:
            self.rows.req_to_token[req.kv.req_pool_idx, end:wanted] = self.alloc(wanted - end)
            req.kv.kv_allocated_len = wanted
        req.decode_batch_idx += 1

    def compact(self, *reqs: Req) -> SimpleNamespace:
        """One round over these running requests; the batch as it left it."""
        batch = batch_of(*reqs)
        compact_requests(self.scheduler, batch)
        lens = [req.kv.kv_committed_len for req in reqs]
        assert batch.seq_lens.tolist() == batch.seq_lens_cpu.tolist() == lens
        return batch

    def finish(self, req: Req, num_behind: int = 0) -> None:
        """End a request; so many drafts were accepted behind its last token."""
        req.finished_len = len(req.output_ids) - num_behind
        req.finished_reason = FINISH_LENGTH(length=req.finished_len)
        release_kv_cache(req, self.cache, checkpoint=True)

    def retract(self, req: Req, offload_kv: bool = True) -> bool:
        """Take a request's KV as SGLang does, our hook included; whether it can go on later."""
        return schedule_batch.release_req(
            req=req,
            remaing_req_count=0,
            req_to_token_pool=self.rows,
            token_to_kv_pool_allocator=self.slots,
            tree_cache=self.cache,
            hisparse_coordinator=None,
            offload_kv=offload_kv,
        )

    def governed(self, req: Req) -> GovernedRequest:
        return self.governor.governed(req)

    def window(self, req: Req) -> RequestWindow:
        return self.governed(req).own_window

    def copied(self, req: Req) -> int | None:
        """Tokens in a request's copy, None where it has none."""
        copy = self.governed(req).copy
        return None if copy is None else copy.num_tokens

    def num_shared(self, tokens: list[int]) -> int:
        """How many tokens of a follow-up prompt come from the tree."""
        follow_up = self.prefill([*tokens, 99])
        shared = follow_up.num_matched_prefix_tokens
        follow_up.finished_reason = FINISH_LENGTH(length=0)
        follow_up.finished_len = 0
        release_kv_cache(follow_up, self.cache, checkpoint=False)
        return shared

    def check_conservation(self, *running: Req) -> None:
        held = sum(r.kv.kv_allocated_len - r.kv.cache_protected_len for r in running)
        in_tree = self.cache.evictable_size() + self.cache.protected_size()
        assert self.slots.available_size() + in_tree + held == NUM_SLOTS
        free = self.slots.free_pages.tolist() + self.slots.release_pages.tolist()
        assert len(set(free)) == len(free)


def request(tokens: list[int], custom: dict | None = None, length: int = 128) -> Req:
    """A request that nothing was computed of yet."""
    params = SamplingParams(custom_params=custom, max_new_tokens=length)
    return Req(f"r{id(tokens)}", "", array("q", tokens), params)


def batch_of(*reqs: Req) -> SimpleNamespace:
    """What a round reads of a running batch."""
    seq_lens = torch.tensor([req.kv.kv_committed_len for req in reqs])
    return SimpleNamespace(
        reqs=list(reqs),
        req_pool_indices_cpu=torch.tensor([req.kv.req_pool_idx for req in reqs]),
        seq_lens_cpu=seq_lens,
        seq_lens=seq_lens.clone(),
        seq_lens_sum=int(seq_lens.sum()),
        batch_is_full=True,
        new_tokens_required_next_decode=lambda: 0,
    )


def accept(req: Req, tokens: list[int]) -> None:
    """Commit what a verification accepted."""
    req.kv.kv_committed_len += len(tokens)
    req.output_ids.extend(tokens)


def thoughts(first: int, count: int) -> list[int]:
    """Thinking tokens."""
    return list(range(first, first + count))
