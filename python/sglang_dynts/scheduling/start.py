"""The start of a scheduler: its governor is made, once tokenizer, pools and cache exist."""

import logging

from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.mem_cache.allocation_sizing import get_alloc_reserve_per_decode
from sglang.srt.runtime_context import get_parallel, get_schedule, get_serving, get_spec
from sglang.srt.utils.hf_transformers_utils import get_tokenizer

from sgl_dynts.capacity import AnswerReserve
from sgl_dynts.config import DynTSConfig
from sgl_dynts.policies import ModelFacts, build_policies, policies
from sgl_dynts.thinking import ThinkMarkers
from sglang_dynts.boot.configuration import arguments, gets_prompts, governs, is_enabled, server_config
from sglang_dynts.boot.markers import resolve_markers, separator_ids
from sglang_dynts.entry.host_copies import HostCopies, copy_bytes
from sglang_dynts.forward.device_state import DeviceState, state_of
from sglang_dynts.forward.kv_pools import keeps_by_head
from sglang_dynts.forward.queries.known import know_queries
from sglang_dynts.scheduling.capacity_state import CapacityState, DecodeStep
from sglang_dynts.scheduling.governor import Governor
from sglang_dynts.scheduling.prefix_cache import DynTSRadixCache
from sglang_dynts.scheduling.slots.pools import OnePool, TwoPools, pools_of

logger = logging.getLogger(__name__)

LARGE_SHARE = 0.3
"""Of the sliding pool's slots to the full one's, from which on the start says so."""
SPARE_ROOM = 1.5
"""Of what KV tokens have room for to what recurrent states let run, from which on the start says so."""


def start(scheduler) -> None:
    """BEFORE Scheduler.init_output_streamer: tokenizer, pools and cache exist; govern from here on.

    Raises:
        ValueError: the think markers cannot be recognised.
        RuntimeError: another cache than ours was built.
    """
    if not governs():
        if is_enabled():
            logger.info(
                "DynTS has nothing to compact here: this server computes prompts for decode servers"
            )
        return
    cache = scheduler.tree_cache
    if not isinstance(cache, DynTSRadixCache):
        raise RuntimeError(f"DynTS needs its own radix cache, SGLang built {type(cache).__name__}")
    tokenizer = scheduler.tokenizer or get_tokenizer(get_serving().tokenizer_path)
    cache.governor = _new_governor(scheduler, tokenizer)
    _choose_policies(scheduler, cache.governor, tokenizer)
    logger.info(describe(cache.governor.config, cache.governor.markers))


def _choose_policies(scheduler, governor: Governor, tokenizer) -> None:
    """Make the policies, once the model can be asked what its queries are like."""
    if arguments().dynts_calibrates:
        governor.queries = know_queries(scheduler, tokenizer)
    governor.policies.update(build_policies(_facts(scheduler, governor, tokenizer)))
    name, why = arguments().dynts_policy, arguments().dynts_policy_why
    logger.info("DynTS policy: %s, which keeps %s (%s)", name, policies()[name].keeps, why)


def _new_governor(scheduler, tokenizer) -> Governor:
    config, cache = server_config(), scheduler.tree_cache
    pools = pools_of(scheduler.token_to_kv_pool_allocator, cache.swa_retain_window)
    device = state_of(scheduler.tp_worker.model_runner)
    assert device is not None, "a server with DynTS has its device state"
    if scheduler.enable_overlap and device.moves is not None and device.table.is_cuda:
        device.moves.forward_stream = scheduler.forward_stream
    answers = AnswerReserve(first_guess=config.period // 2)
    governor = Governor(
        config,
        resolve_markers(tokenizer),
        {},
        device,
        pools,
        CapacityState(pools.num_slots, answers, not arguments().dynts_disable_elastic, _decode_step()),
        _new_copies(pools, config, device),
    )
    governor.gets_prompts = gets_prompts()
    governor.running_reqs = lambda: scheduler.running_batch.reqs
    if isinstance(pools, TwoPools):
        recommend_ratio(pools)
    if cache.supports_mamba():
        num_budgets = pools.num_slots // config.budget
        recommend_state_ratio(scheduler.server_args, num_budgets, scheduler.max_running_requests)
    return governor


def recommend_ratio(pools: TwoPools) -> None:
    """Say that a smaller sliding pool would do: what requests hold there does not grow."""
    sliding, full = pools.allocator.size_swa, pools.num_slots
    if sliding > LARGE_SHARE * full:
        logger.info(
            "DynTS: the KV pool of sliding layers has %d slots, that of full layers %d. Compactions make "
            "room in the second alone; --swa-full-tokens-ratio 0.1 makes it larger",
            sliding,
            full,
        )


def recommend_state_ratio(cfg, num_budgets: int, max_running: int) -> None:
    """Say that states need a larger share of the memory, where they let few of the budgets run.

    Args:
        cfg: server arguments as they were given; what SGLang derives from them is not in it.
        num_budgets: requests for whose budgets there are KV tokens.
        max_running: requests that SGLang lets run, by the states that there is room for.
    """
    is_named = cfg.max_running_requests is not None or cfg.max_mamba_cache_size is not None
    if not is_named and num_budgets > SPARE_ROOM * max_running:
        logger.info(
            "DynTS: recurrent states let %d requests run, and KV tokens have room for %d budgets. "
            "--mamba-full-memory-ratio %.1f lets both run out together",
            max_running,
            num_budgets,
            get_schedule().mamba_full_memory_ratio * num_budgets / max_running,
        )


def _decode_step() -> DecodeStep:
    """Say what a decode step does to a request on this server."""
    if get_spec().speculative_algorithm is None:
        return DecodeStep()
    return DecodeStep(get_spec().speculative_num_draft_tokens, get_alloc_reserve_per_decode())


def _facts(scheduler, governor: Governor, tokenizer) -> ModelFacts:
    """Say what policies may know of the served model."""
    moves, known = governor.device.moves, governor.queries
    layers, heads = moves.shape if moves is not None else (1, 1)
    return ModelFacts(
        separators=separator_ids(tokenizer),
        num_layers=layers,
        num_kv_heads=heads,
        first_kv_head=_first_head(scheduler),
        queries=known.layers if known is not None else (),
        period=governor.config.period,
    )


def _first_head(scheduler) -> int:
    """Number of this rank's first KV head; a latent is the one head that every rank has."""
    if scheduler.model_config.attention_arch == AttentionArch.MLA:
        return 0
    total, parallel = scheduler.model_config.get_total_num_kv_heads(), get_parallel()
    return parallel.attn_tp_rank * total // parallel.attn_tp_size


def _new_copies(pools: OnePool, config: DynTSConfig, device: DeviceState) -> HostCopies:
    """Refuse a bound that holds no window, and a KV pool whose tokens cannot be copied.

    Raises:
        ValueError: naming the flag.
    """
    copies = HostCopies(int(arguments().dynts_host_memory_gb * (1 << 30)))
    if not copies.max_bytes:
        return copies
    needed = copy_bytes(pools, config.budget, device.head_scores, device.draft_pool)
    if copies.max_bytes < needed:
        raise ValueError(
            f"--dynts-host-memory-gb {copies.max_bytes / (1 << 30):g} does not hold one window of "
            f"{config.budget} tokens: give {needed / (1 << 30):.3g} or more, or 0 to keep no copies"
        )
    if keeps_by_head(pools.kv):
        raise ValueError(
            "SGLANG_USE_HND_KVCACHE keeps K and V by head, which cannot be copied by token: unset it, "
            "or give --dynts-host-memory-gb 0 to keep no copies of retracted requests"
        )
    return copies


def describe(config: DynTSConfig, markers: ThinkMarkers) -> str:
    """Say in one line what the resolved windows mean."""
    ends = (
        f"Thinking ends at token {list(markers.closing)}, opens at {list(markers.opening)}."
        if markers.there_are
        else "The model marks no thinking: all that it generates is thinking."
    )
    return (
        f"DynTS is on: budget {config.budget}, local window {config.local_window}, keep ratio "
        f"{config.keep_ratio}. A request holds at most {config.budget} tokens of question and "
        f"thinking, {config.retained_len(0)} after a compaction, and compacts every {config.period} "
        f"tokens; a question longer than {config.keep_len - config.selection_floor} raises its own "
        f"budget. {ends}"
    )
