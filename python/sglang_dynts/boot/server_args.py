"""Our flags, what ``--attention-backend dynts`` implies, and the windows that are resolved from them."""

import argparse
import logging
from pathlib import Path
from typing import Annotated, Any

import msgspec
from sglang.srt.arg_groups.arg_utils import NS, Arg
from sglang.srt.arg_groups.overrides import (
    declare_resolution,
    model_config_of,
    resolving_view,
)
from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs

from sgl_dynts.checkpoint import PredictorHeader, PredictorSource
from sgl_dynts.config import WINDOW_FIELDS, DynTSConfig, Windows, in_flags, windows_for
from sgl_dynts.policies import CALIBRATED, PREDICTOR, needing, policy_names
from sglang_dynts.boot.configuration import DECODES, PREFILLS, is_enabled
from sglang_dynts.boot.host_cpu import names_dynts
from sglang_dynts.boot.kernel_choice import meant_by_dynts
from sglang_dynts.boot.model_kinds import has_recurrent_state
from sglang_dynts.boot.predictor_files import find_for_policy
from sglang_dynts.boot.refusals import (
    RETRACTION_BACKUP,
    calibrates,
    refuse_backend,
    refuse_idle_flags,
    refuse_other_width,
    refuse_own_flags,
    refuse_unknown_policy,
    refuse_unsupported,
    unserved_policies,
)
from sglang_dynts.check_seams import check_release
from sglang_dynts.names import BACKEND_NAME, FLAG_PREFIX, SOURCE
from sglang_dynts.seams import Process, check

logger = logging.getLogger(__name__)
_NAMESPACE = NS(BACKEND_NAME)
HOST_MEMORY_GB = 16.0
"""For copies of retracted requests, where nobody says another number."""


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
    dynts_predictor_path: Annotated[
        str | None,
        Arg(help="The predictor that was found, None where there is none.", no_cli=True, resolvable=True),
        _NAMESPACE,
    ] = None
    dynts_unserved_policies: Annotated[
        dict[str, str] | None,
        Arg(help="Policies that no request may choose here, and why.", no_cli=True, resolvable=True),
        _NAMESPACE,
    ] = None
    dynts_policy: Annotated[
        str | None,
        Arg(
            help="Who decides which tokens a compaction keeps, for requests that name no policy of "
            f"their own: {', '.join(policy_names())}. Default: {PREDICTOR} where the model has one, else "
            f"{CALIBRATED}, which needs no training. All but {' and '.join(needing('predictor'))} can be "
            "served without a predictor.",
            resolvable=True,
        ),
        _NAMESPACE,
    ] = None
    dynts_policy_why: Annotated[
        str | None,
        Arg(help="Why this is the server's policy.", no_cli=True, resolvable=True),
        _NAMESPACE,
    ] = None
    dynts_calibration_text: Annotated[
        str | None,
        Arg(
            help="A text file that the model reads at its first start, so that it is known what its "
            f"queries are like; the first 32768 tokens count. {', '.join(needing('calibration'))} needs "
            "that; with this flag requests may name it on a server with another policy, too. Default: a "
            "text that ships. What is found is kept as dynts/calibration.safetensors beside the model, "
            "or in the user's cache folder where that cannot be written."
        ),
        _NAMESPACE,
    ] = None
    dynts_calibrates: Annotated[
        bool,
        Arg(help="Whether this server knows its queries.", no_cli=True, resolvable=True),
        _NAMESPACE,
    ] = False
    dynts_observe_queries: Annotated[
        int,
        Arg(
            help="Keep so many of each request's newest queries in every layer (32 is usual), and let "
            f"policies read attention: {', '.join(needing('queries'))} need it. "
            f"{' and '.join(needing('all_queries'))} read that of every step, which is computed a "
            "second time in plain torch. For comparisons, not for speed; needs no CUDA graphs and "
            "--dynts-host-memory-gb 0, and without a set per KV head --tp-size 1. 0 keeps none.",
        ),
        _NAMESPACE,
    ] = 0
    dynts_budget: Annotated[
        int | None,
        Arg(
            help="B: most KV tokens a request holds for its question and thinking; a compaction is "
            "due when it is reached. Default: the predictor's header, else 5000 or a quarter of the "
            "model's context length.",
            resolvable=True,
        ),
        _NAMESPACE,
    ] = None
    dynts_local_window: Annotated[
        int | None,
        Arg(
            help="W_l: newest tokens that a compaction never drops. Default: the predictor's header, "
            "else two fifths of the budget.",
            resolvable=True,
        ),
        _NAMESPACE,
    ] = None
    dynts_keep_ratio: Annotated[
        float | None,
        Arg(
            help="r: share of budget - local window, question included, that survives a compaction "
            "outside the local window. Default: the predictor's header, else 0.4.",
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
        float | None,
        Arg(
            help="Most host memory, in GiB per rank, for the windows of retracted requests, which go on "
            "from there with the same tokens. 0 keeps none: they are computed again, and no request "
            f"may get longer than the KV pool. Default: {HOST_MEMORY_GB:g}; 0 for models with recurrent "
            "states, which no copy would fit.",
            resolvable=True,
        ),
        _NAMESPACE,
    ] = None
    dynts_think_start: Annotated[
        str | None,
        Arg(
            help="Text that opens thinking, of one token or several. Default: the reasoning "
            "parser's marker, else <think> where the tokenizer or the chat template has it, else none: "
            "all that the model generates is thinking."
        ),
        _NAMESPACE,
    ] = None
    dynts_think_end: Annotated[
        str | None,
        Arg(
            help="Text that closes thinking, of one token or several. Default: the reasoning "
            "parser's marker, else </think>, as above."
        ),
        _NAMESPACE,
    ] = None

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace):
        """Build them from a command line; as in SGLang, but for a configuration file it did not read.

        Raises:
            ValueError: that file asks for DynTS.
        """
        refuse_unread_config(args.config)
        return super().from_cli_args(args)

    def get_tokenizer_worker_class(self):
        """Return SGLang's, in a process with its plug-ins: SGLang 0.5.23 loads none in a worker's.

        Raises:
            RuntimeError: DynTS is served, and a hook is not in place.
        """
        load_plugins()
        if is_enabled():
            check(Process.LAUNCHER)
        return super().get_tokenizer_worker_class()


def refuse_unread_config(path: str | None) -> None:
    """Refuse a configuration file that asks for DynTS and that SGLang did not read.

    Args:
        path: what is left of ``--config`` after parsing; SGLang takes what it reads off the command line.

    Raises:
        ValueError: it was given as one word.
    """
    if path is not None and names_dynts(Path(path)):
        raise ValueError(
            f"--config={path}: SGLang reads a configuration file only if it is a word of its own, and "
            f"this one asks for DynTS; write --config {path}"
        )


def choose_backend(server_args, previous) -> None:
    """Resolution step ``handle_missing_default_values``: write out what ``dynts`` means here.

    Done before SGLang decides anything by the backend's name, so each such decision is the one it
    takes for the kernels that really run.
    """
    previous(server_args)
    cfg = resolving_view(server_args)
    refuse_backend(cfg)
    if cfg.attention_backend == BACKEND_NAME:
        kernels = meant_by_dynts(cfg.device, model_config_of(server_args))
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
        refuse_idle_flags(cfg, _own_defaults())
        return
    check_release()
    check(Process.LAUNCHER)
    model = model_config_of(server_args)
    prefills = cfg.disaggregation_mode == PREFILLS
    if cfg.dynts_host_memory_gb is None:
        declare_resolution(server_args, SOURCE, dynts_host_memory_gb=_host_memory(model))
    refuse_unsupported(cfg, model)
    refuse_unknown_policy(cfg.dynts_policy)
    source = _find_predictor(cfg, model.hidden_size)
    policy, why = choose_policy(cfg.dynts_policy, source)
    latents = model.attention_arch == AttentionArch.MLA
    unserved = unserved_policies(cfg, policy, latents=latents)
    refuse_own_flags(cfg, policy, unserved)
    config = resolve_windows(cfg, source and source.header, model.context_len)
    declare_resolution(
        server_args,
        SOURCE,
        radix_cache_backend=None if prefills else BACKEND_NAME,
        dynts_policy=policy,
        dynts_policy_why=why,
        dynts_calibrates=not prefills and calibrates(cfg, policy),
        dynts_predictor_path=source and str(source.path),
        dynts_unserved_policies=unserved,
        **{f"dynts_{name}": value for name, value in config.given().items()},
    )
    if cfg.disaggregation_mode == DECODES:
        declare_resolution(server_args, SOURCE, disaggregation_decode_retraction_backup=RETRACTION_BACKUP)


def _host_memory(model) -> float:
    """GiB for copies of retracted requests, where nobody says a number."""
    if not has_recurrent_state(model):
        return HOST_MEMORY_GB
    logger.info(
        "DynTS: retracted requests of this model are computed again, and no request may get longer than "
        "the KV pool. Copies on the host are off, for recurrent states are one token further by then"
    )
    return 0.0


def choose_policy(named: str | None, source: PredictorSource | None) -> tuple[str, str]:
    """Return the server's policy, and why it is that.

    Args:
        named: by the flag.
        source: of the predictor, None where there is none.
    """
    if named is not None:
        return named, "--dynts-policy names it"
    if source is not None:
        return PREDICTOR, f"the model has a predictor: {source.path}"
    return CALIBRATED, "the model has no predictor"


def resolve_windows(cfg, header: PredictorHeader | None, context_len: int) -> DynTSConfig:
    """Combine flags, header and the model's context length into the server's windows.

    Raises:
        ValueError: naming the flag.
    """
    try:
        given = Windows(*(getattr(cfg, f"dynts_{name}") for name in WINDOW_FIELDS))
        if header is not None:
            return given.over(header.windows).complete(cfg.dynts_min_selection)
        windows = windows_for(context_len, given)
        if given.missing():
            logger.info(
                "DynTS: no predictor recommends windows; %s for a context of %d tokens",
                " ".join(windows.flags(FLAG_PREFIX)),
                context_len,
            )
        return windows.complete(cfg.dynts_min_selection)
    except ValueError as error:
        raise ValueError(in_flags(error, FLAG_PREFIX)) from error


def _find_predictor(cfg, hidden_size: int) -> PredictorSource | None:
    source = find_for_policy(cfg.dynts_policy, cfg.model_path, cfg.revision, cfg.dynts_predictor)
    if source is not None:
        refuse_other_width(source.path, source.header.hidden_size, hidden_size)
    return source


def _own_defaults() -> dict[str, Any]:
    fields = msgspec.structs.fields(DynTSServerArgs)  # pyright: ignore  a Struct once imported
    return {field.name: field.default for field in fields if field.name.startswith("dynts_")}
