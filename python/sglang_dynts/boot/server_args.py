"""Our flags, what ``--attention-backend dynts`` implies, and the windows that are resolved from them."""

from math import inf
from typing import Annotated

import msgspec
from sglang.srt.arg_groups.arg_utils import NS, Arg
from sglang.srt.arg_groups.overrides import (
    declare_resolution,
    model_config_of,
    resolving_view,
)
from sglang.srt.model_executor.cuda_graph_config import Backend
from sglang.srt.server_args import ServerArgs

from sgl_dynts.checkpoint import PredictorHeader
from sgl_dynts.config import WINDOW_FIELDS, DynTSConfig, Windows, flag_of, in_flags
from sgl_dynts.policies import PREDICTOR, needing, policies, policy_names
from sglang_dynts.boot.predictor_files import check_hidden_size, find_for_policy
from sglang_dynts.boot.refusals import refuse_unsupported
from sglang_dynts.check_seams import check_release
from sglang_dynts.names import BACKEND_NAME, BASE_BACKENDS, SOURCE
from sglang_dynts.seams import Process, check

_NAMESPACE = NS(BACKEND_NAME)
FLAG_PREFIX = "--dynts-"


class DynTSServerArgs(ServerArgs, dict=True):  # pyright: ignore  a msgspec.Struct once imported
    """SGLang's server arguments with those of DynTS."""

    enable_dynts: Annotated[
        bool,
        Arg(
            help="Turn DynTS on under the attention backend in use (flashinfer, fa3, triton or "
            "torch_native). Implied by --attention-backend dynts.",
            resolvable=True,
        ),
        _NAMESPACE,
    ] = False
    dynts_predictor: Annotated[
        str | None,
        Arg(
            help="Importance predictor: a file, or a folder that holds dynts/predictor.safetensors "
            "or is_head.* tensors. Default: looked for in the model's folder."
        ),
        _NAMESPACE,
    ] = None
    dynts_policy: Annotated[
        str,
        Arg(
            help="Who decides which tokens a compaction keeps, for requests that name no policy of "
            f"their own: {', '.join(policy_names())}. All but {' and '.join(needing('predictor'))} can "
            "be served without a predictor, then --dynts-budget, --dynts-local-window and "
            "--dynts-keep-ratio are to be given.",
        ),
        _NAMESPACE,
    ] = PREDICTOR
    dynts_observe_queries: Annotated[
        int,
        Arg(
            help="Keep so many of each request's newest queries in every layer (32 is usual), and let "
            f"policies read attention: {', '.join(needing('queries'))} need it. "
            f"{' and '.join(needing('all_queries'))} reads that of every step, which is computed a "
            "second time in plain torch. For comparisons, not for speed; needs --tp-size 1, no CUDA "
            "graphs and --dynts-host-memory-gb 0. 0 keeps none.",
        ),
        _NAMESPACE,
    ] = 0
    dynts_budget: Annotated[
        int | None,
        Arg(
            help="B: most KV tokens a request holds for its question and thinking; a compaction is "
            "due when it is reached. Default: the predictor's header.",
            resolvable=True,
        ),
        _NAMESPACE,
    ] = None
    dynts_local_window: Annotated[
        int | None,
        Arg(
            help="W_l: newest tokens that a compaction never drops. Default: the predictor's header.",
            resolvable=True,
        ),
        _NAMESPACE,
    ] = None
    dynts_keep_ratio: Annotated[
        float | None,
        Arg(
            help="r: share of budget - local window, question included, that survives a compaction "
            "outside the local window. Default: the predictor's header.",
            resolvable=True,
        ),
        _NAMESPACE,
    ] = None
    dynts_min_selection: Annotated[
        int | None,
        Arg(
            help="Least number of thinking tokens outside the local window that survive a "
            "compaction however long the question is. Default: a quarter of the kept tokens."
        ),
        _NAMESPACE,
    ] = None
    dynts_disable_elastic: Annotated[
        bool,
        Arg(
            help="Compact a request only when its budget is reached, never earlier to spread the work, "
            "to avoid a retraction or to admit a waiting request. Admission then reserves the budget."
        ),
        _NAMESPACE,
    ] = False
    dynts_host_memory_gb: Annotated[
        float,
        Arg(
            help="Most host memory, in GiB per rank, for the windows of retracted requests, which go on "
            "from there with the same tokens. 0 keeps none: they are computed again, and no request "
            "may get longer than the KV pool."
        ),
        _NAMESPACE,
    ] = 16.0
    dynts_think_start: Annotated[
        str | None,
        Arg(
            help="Text that opens thinking, of one token or several. Default: the reasoning "
            "parser's marker, else <think>."
        ),
        _NAMESPACE,
    ] = None
    dynts_think_end: Annotated[
        str | None,
        Arg(
            help="Text that closes thinking, of one token or several. Default: the reasoning "
            "parser's marker, else </think>."
        ),
        _NAMESPACE,
    ] = None


def choose_backend(server_args, previous) -> None:
    """Resolution step ``handle_missing_default_values``: write out what ``dynts`` means here.

    Done before SGLang decides anything by the backend's name, so each such decision is the one it
    takes for the kernels that really run.
    """
    previous(server_args)
    cfg = resolving_view(server_args)
    split = (cfg.prefill_attention_backend, cfg.decode_attention_backend)
    if BACKEND_NAME in split:
        raise ValueError(
            f"--prefill-attention-backend/--decode-attention-backend {BACKEND_NAME}: DynTS governs "
            f"both phases; use --attention-backend {BACKEND_NAME}"
        )
    if cfg.attention_backend != BACKEND_NAME:
        return
    if cfg.device not in BASE_BACKENDS:
        raise ValueError(
            f"--attention-backend {BACKEND_NAME} does not support --device {cfg.device}; "
            f"supported: {', '.join(BASE_BACKENDS)}"
        )
    kernels = BASE_BACKENDS[cfg.device]
    declare_resolution(server_args, SOURCE, attention_backend=kernels, enable_dynts=True)


def resolve_dynts(server_args, previous) -> None:
    """Resolution step ``handle_cache_compatibility``: refuse, resolve the windows, pick the cache.

    Raises:
        ValueError: naming flag, value and remedy.
        RuntimeError: another release of SGLang, or a hook that is not in place.
    """
    previous(server_args)
    cfg = resolving_view(server_args)
    if not cfg.enable_dynts:
        _refuse_idle_flags(cfg)
        return
    check_release()
    check(Process.LAUNCHER)
    refuse_unsupported(cfg, model_config_of(server_args))
    _check_host_memory(cfg.dynts_host_memory_gb)
    _check_policy(cfg)
    header = _find_header(cfg, model_config_of(server_args).hidden_size)
    config = resolve_windows(cfg, header)
    declare_resolution(
        server_args,
        SOURCE,
        radix_cache_backend=BACKEND_NAME,
        **{f"dynts_{name}": value for name, value in config.given().items()},
    )


def resolve_windows(cfg, header: PredictorHeader | None) -> DynTSConfig:
    """Combine flags and header into the server's windows.

    Raises:
        ValueError: naming the flag.
    """
    recommended = Windows() if header is None else header.windows
    try:
        windows = Windows(*(getattr(cfg, f"dynts_{name}") for name in WINDOW_FIELDS)).over(recommended)
        if not windows.missing():
            return windows.complete(cfg.dynts_min_selection)
    except ValueError as error:
        raise ValueError(in_flags(error, FLAG_PREFIX)) from error
    lacking = ", ".join(flag_of(name, FLAG_PREFIX) for name in windows.missing())
    raise ValueError(
        f"{lacking} not given, and without a predictor nothing recommends a value; "
        "give the flag, or name a predictor with --dynts-predictor"
    )


def _check_host_memory(gigabytes: float) -> None:
    if not 0 <= gigabytes < inf:
        raise ValueError(f"--dynts-host-memory-gb {gigabytes} must be a number of GiB, 0 or more")


def _check_policy(cfg) -> None:
    name = cfg.dynts_policy
    if name not in policies():
        raise ValueError(f"--dynts-policy {name} is not known; choose one of {', '.join(policies())}")
    if policies()[name].needs_queries and not cfg.dynts_observe_queries:
        raise ValueError(f"--dynts-policy {name} needs --dynts-observe-queries 32 or another number")
    if cfg.dynts_observe_queries:
        _check_observation(cfg)


def _check_observation(cfg) -> None:
    """Refuse to record queries where they would be wrong or missing.

    Raises:
        ValueError: naming the flag.
    """
    reasons = {
        f"--dynts-observe-queries {cfg.dynts_observe_queries}: give 0 or more": cfg.dynts_observe_queries
        < 0,
        f"--tp-size {cfg.tp_size}: each rank sees its own heads alone; use 1": cfg.tp_size > 1,
        f"--dynts-host-memory-gb {cfg.dynts_host_memory_gb:g}: host copies hold no queries; give 0": (
            cfg.dynts_host_memory_gb > 0
        ),
        f"--kv-cache-dtype {cfg.kv_cache_dtype}: keys are read without their scale; give auto": str(
            cfg.kv_cache_dtype
        ).startswith("fp8"),
        "CUDA graphs do not record them; give --cuda-graph-backend-decode disabled and "
        "--cuda-graph-backend-prefill disabled": cfg.device == "cuda" and _captures_graphs(cfg),
    }
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise ValueError(f"--dynts-observe-queries cannot be served: {'; '.join(found)}")


def _captures_graphs(cfg) -> bool:
    graphs = cfg.cuda_graph_config
    return not graphs.decode.backend == graphs.prefill.backend == Backend.DISABLED


def _find_header(cfg, hidden_size: int) -> PredictorHeader | None:
    source = find_for_policy(cfg.dynts_policy, cfg.model_path, cfg.revision, cfg.dynts_predictor)
    if source is None:
        return None
    check_hidden_size(source.path, source.header.hidden_size, hidden_size)
    return source.header


def _refuse_idle_flags(cfg) -> None:
    """A DynTS flag on a server without DynTS asks for something that would not happen."""
    fields = msgspec.structs.fields(DynTSServerArgs)  # pyright: ignore  a Struct once imported
    ours = {field.name: field.default for field in fields if field.name.startswith("dynts_")}
    given = [name for name, default in ours.items() if getattr(cfg, name) != default]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(
            f"{flags} given, but DynTS is off; add --attention-backend {BACKEND_NAME} or "
            "--enable-dynts, or drop the flag"
        )
