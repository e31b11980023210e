"""The table of seams: which hook of ours hangs on which function of SGLang's, in which process.

Nothing imports this file but the entry point. It imports the rooms inside its functions, since each
process is to load only what it needs: the launcher no scheduler, the scheduler no HTTP server.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import parent_process

from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES, add_attention_backend_choices
from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook
from sglang.srt.mem_cache.registry import register_radix_cache_backend, registered_radix_cache_backends
from sglang.srt.platforms import current_platform
from sglang.srt.plugins.hook_registry import HookType

from sglang_dynts import seams
from sglang_dynts.names import BACKEND_NAME
from sglang_dynts.seams import Hook, Process, Seam


def unchanged(hook: Hook) -> Hook:
    """Return a hook as it is."""
    return hook


def register(wrap: Callable[[Hook], Hook] = unchanged) -> None:
    """Put every seam of this process in place; called by SGLang before it parses arguments.

    Args:
        wrap: put around each hook of a launcher and a scheduler, by whoever measures what they take.
    """
    _register_arguments()
    if BACKEND_NAME not in registered_radix_cache_backends():
        register_radix_cache_backend(BACKEND_NAME, _build_radix_cache)
    if _launches_servers():
        seams.put_in_place(Process.LAUNCHER, _wrapped(_launcher_seams(), wrap))
    if seams.SCHEDULER_MODULE in sys.modules:
        _register_attention_backend()
        seams.put_in_place(Process.SCHEDULER, _wrapped(_scheduler_seams(), wrap))
    _register_host_cpu()


def _launches_servers() -> bool:
    """Whether requests are checked in this process: a launcher, or a user's own with an Engine."""
    return seams.ENGINE_MODULE in sys.modules or parent_process() is None


def _wrapped(table: list[Seam], wrap: Callable[[Hook], Hook]) -> list[Seam]:
    return [replace(seam, hook=wrap(seam.hook)) for seam in table]


def _register_arguments() -> None:
    from sglang_dynts.boot import kernel_choice, server_args

    if BACKEND_NAME not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([BACKEND_NAME])
    ours = Seam(seams.SERVER_ARGS, server_args.DynTSServerArgs, HookType.REPLACE)
    seams.put_in_place(Process.ANY, [ours])
    if seams.ENGINE_MODULE in sys.modules:
        sys.modules[seams.ENGINE_MODULE].Engine.server_args_class = server_args.DynTSServerArgs
    register_resolution_hook("handle_missing_default_values")(server_args.choose_backend)
    register_resolution_hook("handle_attention_backend_compatibility")(kernel_choice.choose_kernels)
    register_resolution_hook("handle_cache_compatibility")(server_args.resolve_dynts)


def _register_host_cpu() -> None:
    """Put in place what the host CPU needs beyond its platform's own methods."""
    from sglang_dynts.boot.cpu import platform

    if not isinstance(current_platform, platform.HostCpuPlatform):
        return
    table = [Seam(seams.NO_OVERLAP_ON_CPU, platform.keep_overlap, HookType.REPLACE)]
    if seams.SCHEDULER_MODULE in sys.modules:
        from sglang_dynts.boot.cpu import hierarchy, recurrent, recurrent_drafts, speculation

        for part in (speculation, hierarchy, recurrent, recurrent_drafts):
            table += part.scheduler_seams()
    seams.put_in_place(Process.HOST_CPU, table)


def _launcher_seams() -> list[Seam]:
    from sglang_dynts.entry import bodies, carriers, endpoint_refusals, front_end, options
    from sglang_dynts.telling import health, reporting

    return [
        Seam(seams.VERIFY_SAMPLING_PARAMS, options.verify_request, HookType.AFTER),
        Seam(seams.UPDATE_META_INFO, reporting.report_one_object, HookType.BEFORE),
        Seam(seams.TOKENIZER_READY, front_end.tell_no_images, HookType.AFTER),
        Seam(seams.TOKENIZER_READY, bodies.shorten_errors, HookType.AFTER),
        Seam(seams.TOKENIZER_READY, carriers.watch_bodies, HookType.AFTER),
        Seam(seams.TOKENIZER_READY, endpoint_refusals.guard_endpoints, HookType.AFTER),
        Seam(seams.TOKENIZER_READY, health.offer_health, HookType.AFTER),
    ]


def _scheduler_seams() -> list[Seam]:
    from sglang_dynts.boot import model_kinds, sliding_window
    from sglang_dynts.entry import arrival
    from sglang_dynts.forward import (
        counted_attention,
        device_state,
        drafts,
        positions,
        predictor_runner,
        weight_updates,
    )
    from sglang_dynts.scheduling import admission, prefix_cache, resume, round, speculation, start
    from sglang_dynts.scheduling.handed_over import hooks, queue
    from sglang_dynts.telling import health, reporting

    return [
        Seam(seams.LOAD_MODEL, model_kinds.check_attention_ranks, HookType.AFTER),
        Seam(seams.LOAD_MODEL, sliding_window.check_server_window, HookType.AFTER),
        Seam(seams.LOAD_MODEL, predictor_runner.install_predictor, HookType.AFTER),
        Seam(seams.UPDATE_FROM_DISK, weight_updates.update_from_disk, HookType.AROUND),
        Seam(seams.UPDATE_FROM_TENSOR, weight_updates.refuse_unusable, HookType.AROUND),
        Seam(seams.UPDATE_FROM_IPC, weight_updates.settle_shared, HookType.AFTER),
        Seam(seams.END_OF_UPDATE, weight_updates.settle_session, HookType.AFTER),
        Seam(seams.POOLS_READY, device_state.allocate, HookType.AFTER),
        Seam(seams.POOLS_READY, drafts.join_pools, HookType.AFTER),
        Seam(seams.FORWARD_BATCH, device_state.carry_out_moves, HookType.AFTER),  # before all others
        Seam(seams.FORWARD_BATCH, positions.restore_positions, HookType.AFTER),
        Seam(seams.FORWARD_BATCH, counted_attention.count_attention, HookType.AFTER),
        Seam(seams.INIT_OUTPUT_STREAMER, start.start, HookType.BEFORE),
        Seam(seams.INIT_OUTPUT_STREAMER, reporting.start_meter, HookType.AFTER),
        Seam(seams.OUTPUT_STREAMER_CLASS, reporting.choose_streamer, HookType.AFTER),
        Seam(seams.BEFORE_ADMISSION, round.compact_requests, HookType.BEFORE),
        Seam(seams.NEXT_ON_DECODE_SIDE, hooks.compact_on_decode_side, HookType.BEFORE),
        Seam(seams.PREALLOC_QUEUE, queue.DynTSPreallocQueue, HookType.REPLACE),
        Seam(seams.RESTORE_KV, hooks.restore, HookType.AROUND),
        Seam(seams.PREBUILT, hooks.shorten_prebuilt, HookType.AFTER),
        Seam(seams.VERIFY_DRAFTS, speculation.stop_where_due, HookType.AROUND),
        Seam(seams.PROCESS_RESULT, speculation.skip_settled, HookType.AROUND),
        Seam(seams.PREFILL_ADDER_CLASS, admission.choose_adder, HookType.AFTER),
        Seam(seams.NEW_GENERATION, arrival.admit_generation, HookType.AROUND),
        Seam(seams.NEW_EMBEDDING, arrival.admit_embedding, HookType.AROUND),
        Seam(seams.MAX_NEW_TOKENS, resume.allow_beyond_pool, HookType.AROUND),
        Seam(seams.RELEASE_REQ, resume.copy_before_release, HookType.AROUND),
        Seam(seams.KEEP_STATE, prefix_cache.keep_state, HookType.AROUND),
        Seam(seams.POOL_STATS, reporting.add_totals, HookType.AFTER),
        Seam(seams.INTERNAL_STATE, health.add_facts, HookType.AFTER),
    ]


def _register_attention_backend() -> None:
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    from sglang_dynts.boot.attention_backend import create_dynts_backend

    register_attention_backend(BACKEND_NAME)(create_dynts_backend)


def _build_radix_cache(context):
    from sglang_dynts.scheduling.prefix_cache import build_radix_cache

    return build_radix_cache(context)
