"""Every place where SGLang is touched, once, and the check that all of them hold.

SGLang logs and swallows an exception raised while a plug-in registers, and a hook whose target is
gone. So registration validates nothing, and :func:`check_scheduler_seams`, called where an exception
does stop the server, verifies that each seam is in place.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process

from sglang.srt.arg_groups.choices import (
    ATTENTION_BACKEND_CHOICES,
    add_attention_backend_choices,
)
from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook
from sglang.srt.mem_cache.registry import (
    register_radix_cache_backend,
    registered_radix_cache_backends,
)
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_dynts.names import BACKEND_NAME

SCHEDULER_MODULE = "sglang.srt.managers.scheduler"
MANAGERS = "sglang.srt.managers"
RUNNER = "sglang.srt.model_executor.model_runner.ModelRunner"

SERVER_ARGS = "sglang.srt.server_args.ServerArgs"
VERIFY_SAMPLING_PARAMS = "sglang.srt.sampling.sampling_params.SamplingParams.verify"
TOKENIZER_MANAGER = f"{MANAGERS}.tokenizer_manager.TokenizerManager"
UPDATE_META_INFO = f"{TOKENIZER_MANAGER}.update_request_meta_info"
TOKENIZER_READY = f"{TOKENIZER_MANAGER}.__init__"
LOAD_MODEL = f"{RUNNER}.load_model"
POOLS_READY = f"{RUNNER}._init_post_memory_pool_components"
FORWARD_BATCH = "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new"
INIT_OUTPUT_STREAMER = f"{SCHEDULER_MODULE}.Scheduler.init_output_streamer"
OUTPUT_STREAMER_CLASS = f"{SCHEDULER_MODULE}.Scheduler.get_output_streamer_class"
BEFORE_ADMISSION = f"{SCHEDULER_MODULE}.Scheduler._should_defer_prefill"
PREFILL_ADDER_CLASS = f"{SCHEDULER_MODULE}.Scheduler.get_prefill_adder_class"
MAX_NEW_TOKENS = f"{SCHEDULER_MODULE}.Scheduler.init_req_max_new_tokens"
RELEASE_REQ = f"{MANAGERS}.schedule_batch.release_req"
INTERNAL_STATE = (
    f"{MANAGERS}.scheduler_components.internal_state.SchedulerInternalStateController.get_internal_state"
)
POOL_STATS_OBSERVER = f"{MANAGERS}.scheduler_components.pool_stats_observer.SchedulerPoolStatsObserver"
POOL_STATS = f"{POOL_STATS_OBSERVER}.get_pool_stats"


@dataclass(frozen=True)
class Seam:
    """One hook on an upstream function."""

    target: str
    hook: Callable
    kind: HookType


def register() -> None:
    """Put every seam of this process in place; called by SGLang before it parses arguments."""
    from sglang_dynts.boot import kernel_choice, server_args

    if BACKEND_NAME not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([BACKEND_NAME])
    _register_all(_argument_seams())
    if "sglang.srt.entrypoints.engine" in sys.modules:
        sys.modules[
            "sglang.srt.entrypoints.engine"
        ].Engine.server_args_class = server_args.DynTSServerArgs
    register_resolution_hook("handle_missing_default_values")(server_args.choose_backend)
    register_resolution_hook("handle_attention_backend_compatibility")(kernel_choice.choose_kernels)
    register_resolution_hook("handle_cache_compatibility")(server_args.resolve_dynts)
    if BACKEND_NAME not in registered_radix_cache_backends():
        register_radix_cache_backend(BACKEND_NAME, _build_radix_cache)
    if _launches_servers():
        _register_all(_tokenizer_seams())
    if SCHEDULER_MODULE in sys.modules:
        _register_attention_backend()
        _register_all(_scheduler_seams())


def scheduler_targets() -> list[str]:
    """What is hooked in a scheduler process, each once."""
    return list(dict.fromkeys(seam.target for seam in _scheduler_seams()))


def launcher_targets() -> list[str]:
    """What is hooked in a process that takes requests."""
    return [seam.target for seam in _tokenizer_seams()]


def missing_scheduler_seams() -> list[str]:
    """What is not in place in this scheduler process."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    lost = (seam.target for seam in _scheduler_seams() if not _is_applied(seam))
    missing = list(dict.fromkeys(lost))  # a place may have two hooks
    if BACKEND_NAME not in ATTENTION_BACKENDS:
        missing.append(f"attention backend {BACKEND_NAME!r}")
    if BACKEND_NAME not in registered_radix_cache_backends():
        missing.append(f"radix cache backend {BACKEND_NAME!r}")
    return missing


def missing_launcher_seams() -> list[str]:
    """What is not in place in this launcher process."""
    return [seam.target for seam in _tokenizer_seams() if not _is_applied(seam)]


def check_scheduler_seams() -> None:
    """Refuse to serve unless every seam of a scheduler process is in place.

    Raises:
        RuntimeError: naming what is missing.
    """
    _refuse(missing_scheduler_seams())


def check_launcher_seams() -> None:
    """Refuse to launch unless this process checks requests and reports on them.

    Raises:
        RuntimeError: naming what is missing.
    """
    _refuse(missing_launcher_seams())


def _launches_servers() -> bool:
    """Whether requests are checked in this process: a launcher, or a user's own with an Engine."""
    return "sglang.srt.entrypoints.engine" in sys.modules or parent_process() is None


def _refuse(missing: list[str]) -> None:
    if missing:
        raise RuntimeError(
            f"DynTS cannot run: {', '.join(missing)} could not be hooked in this SGLang. Install the "
            "SGLang release that this version of sgl-dynts names, and look above for the cause"
        )


def _is_applied(seam: Seam) -> bool:
    hooks = {hook for _kind, hook, _source in HookRegistry._hooks.get(seam.target, ())}
    return seam.target in HookRegistry._patched and seam.hook in hooks


def _register_all(seams: list[Seam]) -> None:
    for seam in seams:
        HookRegistry.register(seam.target, seam.hook, seam.kind)


def _argument_seams() -> list[Seam]:
    from sglang_dynts.boot import server_args

    return [Seam(SERVER_ARGS, server_args.DynTSServerArgs, HookType.REPLACE)]


def _tokenizer_seams() -> list[Seam]:
    from sglang_dynts.entry import options as request_options
    from sglang_dynts.telling import health, reporting

    return [
        Seam(VERIFY_SAMPLING_PARAMS, request_options.verify_request, HookType.AFTER),
        Seam(UPDATE_META_INFO, reporting.report_one_object, HookType.BEFORE),
        Seam(TOKENIZER_READY, health.offer_health, HookType.AFTER),
    ]


def _scheduler_seams() -> list[Seam]:
    from sglang_dynts.forward import device_state as runtime
    from sglang_dynts.forward import positions, predictor_runner
    from sglang_dynts.scheduling import admission, policy_scores, resume
    from sglang_dynts.scheduling import round as compaction_step
    from sglang_dynts.telling import health, reporting

    return [
        Seam(LOAD_MODEL, predictor_runner.install_predictor, HookType.AFTER),
        Seam(POOLS_READY, runtime.allocate_runtime, HookType.AFTER),
        Seam(FORWARD_BATCH, positions.restore_positions, HookType.AFTER),
        Seam(FORWARD_BATCH, policy_scores.count_attention, HookType.AFTER),
        Seam(INIT_OUTPUT_STREAMER, compaction_step.start, HookType.BEFORE),
        Seam(OUTPUT_STREAMER_CLASS, reporting.choose_streamer, HookType.AFTER),
        Seam(BEFORE_ADMISSION, compaction_step.compact_requests, HookType.BEFORE),
        Seam(PREFILL_ADDER_CLASS, admission.choose_adder, HookType.AFTER),
        Seam(MAX_NEW_TOKENS, resume.allow_beyond_pool, HookType.AROUND),
        Seam(RELEASE_REQ, resume.copy_before_release, HookType.AROUND),
        Seam(POOL_STATS, reporting.add_totals, HookType.AFTER),
        Seam(INTERNAL_STATE, health.add_facts, HookType.AFTER),
    ]


def _register_attention_backend() -> None:
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    from sglang_dynts.boot.attention_backend import create_dynts_backend

    register_attention_backend(BACKEND_NAME)(create_dynts_backend)


def _build_radix_cache(context):
    from sglang_dynts.scheduling.prefix_cache import build_radix_cache

    return build_radix_cache(context)
