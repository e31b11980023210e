"""Where SGLang is touched: the names of its functions, what we hung there, what of that is missing.

SGLang logs and swallows an exception raised while a plug-in registers, and a hook whose target is
gone. So nothing is validated there: :func:`check`, called where an exception does stop the server,
verifies that each seam of the process is in place. Which hook hangs where is told by ``plugin.py``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sglang.srt.mem_cache.registry import registered_radix_cache_backends
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_dynts.names import BACKEND_NAME

SCHEDULER_MODULE = "sglang.srt.managers.scheduler"
ENGINE_MODULE = "sglang.srt.entrypoints.engine"
MANAGERS = "sglang.srt.managers"
COMPONENTS = f"{MANAGERS}.scheduler_components"
SCHEDULER = f"{SCHEDULER_MODULE}.Scheduler"
RUNNER = "sglang.srt.model_executor.model_runner.ModelRunner"
WEIGHT_UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater"
TOKENIZER_MANAGER = f"{MANAGERS}.tokenizer_manager.TokenizerManager"

SERVER_ARGS = "sglang.srt.server_args.ServerArgs"
VERIFY_SAMPLING_PARAMS = "sglang.srt.sampling.sampling_params.SamplingParams.verify"
UPDATE_META_INFO = f"{TOKENIZER_MANAGER}.update_request_meta_info"
TOKENIZER_READY = f"{TOKENIZER_MANAGER}.__init__"
UPDATE_FROM_DISK = f"{WEIGHT_UPDATER}.update_weights_from_disk"
UPDATE_FROM_IPC = f"{WEIGHT_UPDATER}.update_weights_from_ipc"
UPDATE_FROM_TENSOR = (
    f"{COMPONENTS}.weight_updater.SchedulerWeightUpdaterManager.update_weights_from_tensor"
)
END_OF_UPDATE = f"{WEIGHT_UPDATER}.end_weight_update"
LOAD_MODEL = f"{RUNNER}.load_model"
POOLS_READY = f"{RUNNER}._init_post_memory_pool_components"
FORWARD_BATCH = "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new"
INIT_OUTPUT_STREAMER = f"{SCHEDULER}.init_output_streamer"
OUTPUT_STREAMER_CLASS = f"{SCHEDULER}.get_output_streamer_class"
BEFORE_ADMISSION = f"{SCHEDULER}._should_defer_prefill"
NEXT_ON_DECODE_SIDE = f"{SCHEDULER}.get_next_disagg_decode_batch_to_run"
PREALLOC_QUEUE = f"{SCHEDULER_MODULE}.DecodePreallocQueue"
RESTORE_KV = "sglang.srt.mem_cache.common.restore_kv_cache"
PREBUILT = f"{MANAGERS}.schedule_batch.ScheduleBatch.prepare_for_prebuilt"
VERIFY_DRAFTS = "sglang.srt.speculative.eagle_utils.eagle_sample"
PROCESS_RESULT = f"{SCHEDULER}.process_batch_result"
PREFILL_ADDER_CLASS = f"{SCHEDULER}.get_prefill_adder_class"
NEW_GENERATION = f"{SCHEDULER}.handle_generate_request"
NEW_EMBEDDING = f"{SCHEDULER}.handle_embedding_request"
MAX_NEW_TOKENS = f"{SCHEDULER}.init_req_max_new_tokens"
RELEASE_REQ = f"{MANAGERS}.schedule_batch.release_req"
INTERNAL_STATE = f"{COMPONENTS}.internal_state.SchedulerInternalStateController.get_internal_state"
POOL_STATS = f"{COMPONENTS}.pool_stats_observer.SchedulerPoolStatsObserver.get_pool_stats"
KEEP_STATE = (
    f"{COMPONENTS}.batch_result_processor.SchedulerBatchResultProcessor._mamba_prefix_cache_update"
)

OPS = "sglang.kernels.ops"

SPECULATIVE = f"{OPS}.speculative"
DRAFT_BACKENDS = "sglang.srt.speculative.draft_utils.DraftBackendFactory"
NO_OVERLAP_ON_CPU = "sglang.srt.arg_groups.speculative_hook._disable_overlap_schedule_for_cpu"
TREE_FROM_MASK = f"{SPECULATIVE}.reconstruct_tree.reconstruct_indices_from_tree_mask_func"
BUILD_TREE = f"{SPECULATIVE}.spec_tree.build_tree_kernel_efficient_func"
VERIFY_TREE = f"{SPECULATIVE}.spec_tree.verify_tree_greedy_func"
DRAFT_SLOTS = f"{SPECULATIVE}.cache_locs.assign_draft_cache_locs_contiguous_func"
FRONT_SLOTS = f"{SPECULATIVE}.cache_locs.fill_front_out_cache_loc_func"
ACCEPTED_SLOTS = f"{SPECULATIVE}.eagle.fill_accept_out_cache_loc_func"
NEWEST_TOKENS = f"{SPECULATIVE}.eagle.fill_bonus_tokens_func"
GATHER_EXTRAS = f"{SPECULATIVE}.gather_spec_extras.gather_spec_extras"
WRITE_ROWS = "sglang.srt.mem_cache.allocation.assign_req_to_token_pool_func"
PREPARE_MOVES = "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool._init_kv_copy_and_warmup"
SHARE_HEAD = "sglang.srt.speculative.eagle_worker_v2.EagleDraftWorker.init_lm_head"
DRAFT_DECODE_BACKEND = f"{DRAFT_BACKENDS}.create_decode_backend"
DRAFT_EXTEND_BACKEND = f"{DRAFT_BACKENDS}.create_draft_extend_backend"
HOST_POOLS = "sglang.srt.mem_cache.pool_host"
LOAD_PREFIXES = f"{HOST_POOLS}.mha.MHATokenToKVPoolHost.load_to_device_per_layer"
BACK_UP_PREFIXES = f"{HOST_POOLS}.mha.MHATokenToKVPoolHost.backup_from_device_all_layer"
LOAD_LATENTS = f"{HOST_POOLS}.mla.MLATokenToKVPoolHost.load_to_device_per_layer"
BACK_UP_LATENTS = f"{HOST_POOLS}.mla.MLATokenToKVPoolHost.backup_from_device_all_layer"
CONVOLVE = f"{OPS}.mamba.causal_conv1d_triton.causal_conv1d_fn"
CONVOLVE_NEWEST = f"{OPS}.mamba.causal_conv1d_triton.causal_conv1d_update"
KEEP_STATES = f"{OPS}.mamba.mamba_state_scatter_triton.track_mamba_states_all_layers"
GO_ON_FROM_ACCEPTED = f"{OPS}.mamba.mamba_state_scatter_triton.scatter_mamba_states_after_mtp_verify"
DELTA_GATES = f"{OPS}.attention.linear.fused_gdn_gating.fused_gdn_gating"
DELTA_RULE = f"{OPS}.attention.fla.chunk.chunk_gated_delta_rule"
DELTA_RULE_NEWEST = f"{OPS}.attention.fla.fused_recurrent.fused_recurrent_gated_delta_rule_packed_decode"
DELTA_RULE_DRAFTS = (
    f"{OPS}.attention.linear.fused_sigmoid_gating_recurrent.fused_sigmoid_gating_delta_rule_update"
)
GATED_NORM = f"{OPS}.attention.fla.layernorm_gated.RMSNorm.forward"
FUSED_GATED_NORM = f"{OPS}.attention.fla.fused_norm_gate.FusedRMSNormGated.forward"
SPLIT_BY_GROUP = f"{OPS}.attention.triton_gdn_fused_proj.fused_qkvzba_split_reshape_cat"
SPLIT_IN_ORDER = f"{SPLIT_BY_GROUP}_contiguous"
SIGMOID_GATE = f"{OPS}.elementwise.elementwise.fused_sigmoid_mul"
SHARED_EXPERT = f"{OPS}.elementwise.elementwise._launch_fused_gate_sigmoid_mul"
MAKE_DELTA_LAYER = "sglang.srt.models.qwen3_next.Qwen3GatedDeltaNet.__init__"

HOST_CPU_TARGETS = (
    *(NO_OVERLAP_ON_CPU, TREE_FROM_MASK, BUILD_TREE, VERIFY_TREE, DRAFT_SLOTS, FRONT_SLOTS),
    *(ACCEPTED_SLOTS, NEWEST_TOKENS, GATHER_EXTRAS, WRITE_ROWS, PREPARE_MOVES),
    *(DRAFT_DECODE_BACKEND, DRAFT_EXTEND_BACKEND, SHARE_HEAD),
    *(LOAD_PREFIXES, BACK_UP_PREFIXES, LOAD_LATENTS, BACK_UP_LATENTS),
    *(CONVOLVE, CONVOLVE_NEWEST, KEEP_STATES, DELTA_GATES, DELTA_RULE, DELTA_RULE_NEWEST),
    *(DELTA_RULE_DRAFTS, GO_ON_FROM_ACCEPTED),
    *(GATED_NORM, FUSED_GATED_NORM, SPLIT_BY_GROUP, SPLIT_IN_ORDER, SIGMOID_GATE, SHARED_EXPERT),
    MAKE_DELTA_LAYER,
)
"""Functions of SGLang's that are hooked where the host CPU serves."""

TARGETS = (
    *(SERVER_ARGS, VERIFY_SAMPLING_PARAMS, UPDATE_META_INFO, TOKENIZER_READY),
    *(LOAD_MODEL, POOLS_READY, FORWARD_BATCH),
    *(UPDATE_FROM_DISK, UPDATE_FROM_IPC, UPDATE_FROM_TENSOR, END_OF_UPDATE),
    *(INIT_OUTPUT_STREAMER, OUTPUT_STREAMER_CLASS, BEFORE_ADMISSION, PREFILL_ADDER_CLASS),
    *(VERIFY_DRAFTS, PROCESS_RESULT),
    *(NEW_GENERATION, NEW_EMBEDDING),
    *(NEXT_ON_DECODE_SIDE, PREALLOC_QUEUE, RESTORE_KV, PREBUILT),
    *(MAX_NEW_TOKENS, RELEASE_REQ, INTERNAL_STATE, POOL_STATS, KEEP_STATE),
)
"""Every function of SGLang's that has a hook of ours."""

Hook = Callable[..., Any]


class Process(Enum):
    """Kinds of process, by what is hooked in them; one process may be of several kinds."""

    ANY = "any"
    LAUNCHER = "launcher"
    """Takes requests: a server's front, or a user's own with an Engine."""
    SCHEDULER = "scheduler"
    HOST_CPU = "host CPU"
    """A scheduler on the host CPU."""


@dataclass(frozen=True)
class Seam:
    """One hook on an upstream function."""

    target: str
    hook: Hook
    kind: HookType


_declared: dict[Process, Sequence[Seam]] = {}
"""What this process is to have, declared before anything of it is put in place."""


def put_in_place(process: Process, seams: Sequence[Seam]) -> None:
    """Hang hooks on SGLang's functions; SGLang applies them when all plug-ins are loaded."""
    _declared[process] = seams
    for seam in seams:
        HookRegistry.register(seam.target, seam.hook, seam.kind)


def declared(process: Process) -> Sequence[Seam]:
    """Return what :func:`put_in_place` was given for a kind of process."""
    return _declared.get(process, ())


def targets(process: Process) -> list[str]:
    """Return what is hooked in a kind of process, each once."""
    return list(dict.fromkeys(seam.target for seam in declared(process)))


def missing(process: Process) -> list[str]:
    """Return what should be in place in this process, being of that kind, and is not."""
    lost = [seam.target for seam in declared(process) if not _is_applied(seam)]
    if not declared(process):
        lost = [f"the plug-in's table for the {process.value} process"]
    if process is Process.SCHEDULER:
        lost += _missing_backends()
    return list(dict.fromkeys(lost))  # a place may have two hooks


def check(process: Process) -> None:
    """Refuse to go on unless everything is in place.

    Raises:
        RuntimeError: naming what is missing.
    """
    lost = missing(process)
    if lost:
        raise RuntimeError(
            f"DynTS cannot run: {', '.join(lost)} could not be hooked in this SGLang. Install the "
            "SGLang release that this version of sgl-dynts names, and look above for the cause"
        )


def _missing_backends() -> list[str]:
    # Only in a scheduler, which has it anyway: it imports every kernel that is installed.
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    places = {
        "attention backend": ATTENTION_BACKENDS,
        "radix cache backend": registered_radix_cache_backends(),
    }
    return [f"{place} {BACKEND_NAME!r}" for place, names in places.items() if BACKEND_NAME not in names]


def _is_applied(seam: Seam) -> bool:
    hooks = {hook for _kind, hook, _source in HookRegistry._hooks.get(seam.target, ())}
    return seam.target in HookRegistry._patched and seam.hook in hooks
