"""Where flags are refused, each with flag, value and remedy, before anything is loaded.

SGLang's flags that DynTS does not serve, and our own with values that nothing serves. What a value alone
makes wrong, such as ``--dynts-budget 1``, is refused by :mod:`sgl_dynts.config`, for flags and requests
alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from sglang.srt.environ import envs
from sglang.srt.model_executor.cuda_graph_config import Backend
from sglang.srt.runtime_context import get_platform

from sgl_dynts.policies import Sets, policies
from sglang_dynts.boot.model_kinds import REFUSED_KINDS, has_recurrent_state
from sglang_dynts.names import BACKEND_NAME, BASE_BACKENDS, DRAFTS, SUPPORTED_KERNELS


@dataclass(frozen=True)
class FlagRefusal:
    """A server argument that must keep its ``neutral`` value."""

    field: str
    why: str
    neutral: Any = False
    remedy: str = "drop the flag"

    def message(self, value: Any) -> str:
        """What to tell the operator."""
        flag = "--" + self.field.replace("_", "-")
        shown = flag if value is True else f"{flag} {value}"
        return f"DynTS does not support {shown}: {self.why}; {self.remedy}"


MOVABLE_DTYPES = ("auto", "bfloat16", "bf16", "float16", "fp8_e4m3", "fp8_e5m2")
"""KV dtypes whose tokens are nothing but their K and V."""

_ROWS = "it reads a request's row by token position, which a compaction changes"
_OTHER_CACHE = "only the DynTS radix cache keeps compacted rows out of the prefix tree"

FLAG_REFUSALS = (
    FlagRefusal("pp_size", "scores exist on the last pipeline rank alone", 1, "use --tp-size"),
    FlagRefusal("disaggregation_decode_enable_offload_kvcache", _ROWS),
    FlagRefusal("enable_pdmux", "prefill and decode share no scheduling step there"),
    FlagRefusal("dllm_algorithm", "diffusion decoding rewrites tokens in place", None),
    FlagRefusal("enable_streaming_session", _ROWS),
    FlagRefusal("enable_session_radix_cache", _ROWS),
    FlagRefusal("enable_return_routed_experts", _ROWS),
    FlagRefusal("enable_return_indexer_topk", _ROWS),
    FlagRefusal("kv_canary", _ROWS, "none"),
    FlagRefusal("enable_hisparse", "two methods cannot both choose the tokens that stay"),
    FlagRefusal("enable_lmcache", _OTHER_CACHE),
    FlagRefusal("enable_flexkv", _OTHER_CACHE),
    FlagRefusal("enable_unified_cache_external_linker", _OTHER_CACHE),
    FlagRefusal("enable_unified_memory", "slots move under the scores"),
    FlagRefusal("enable_page_major_kv_layout", "it needs pages of several tokens"),
    FlagRefusal("attn_cp_size", "a rank holds only its share of a row", 1),
    FlagRefusal("dcp_size", "a rank holds only its share of a row", 1),
    FlagRefusal("enable_prefill_cp", "a rank holds only its share of a row"),
    FlagRefusal("enable_two_batch_overlap", "it splits the batch that is scored"),
    FlagRefusal("enable_layernorm_sp", "no rank sees every token's hidden state"),
    FlagRefusal("enable_mis", "multi-item scoring generates nothing to select from"),
    FlagRefusal("prefill_only_disable_kv_cache", "there is no KV cache to select from"),
    FlagRefusal("enable_nvidia_megakernel", "its fused step passes the scoring by"),
    FlagRefusal("is_embedding", "an embedding model does not think"),
    FlagRefusal(
        "smg_grpc_mode",
        "its replies have no place for what DynTS reports",
        remedy="serve over HTTP, or use the gRPC port beside it (--grpc-port)",
    ),
)


KEYS = ("api_key", "admin_api_key")
"""Keys to a server. SGLang's tokenizer workers stop at the first, and pass over the second."""

HIERARCHY_REFUSALS = (
    FlagRefusal("hicache_storage_backend", "prefixes in a storage have not been tested yet", None),
    FlagRefusal("hicache_host_memory_mode", "it needs a storage behind the host", "cache"),
)
"""Flags that must keep their values beside a hierarchical cache."""

CPU_LAYOUTS = ("page_first", "layer_first")
"""How prefixes may lie on the host where a CPU serves."""

SPECULATIVE_ALGORITHMS = (*DRAFTS, "NEXTN")
"""Ways to draft that are served; SGLang resolves multi-token heads (NEXTN) to EAGLE."""

DRAFT_REFUSALS = {
    "DFLASH": "its draft keeps a cache of its own by position, which a compaction does not reach",
    "DSPARK": "its draft keeps a cache of its own by position, which a compaction does not reach",
    "FROZEN_KV_MTP": "its draft reads the target's K and V by position, which a compaction changes",
    "UNO": "its root is computed outside the window, at a position that a compaction changes",
}
"""Ways to draft that are not served, and why."""

SPECULATIVE_REFUSALS = (
    FlagRefusal("enable_multi_layer_eagle", "each of its heads counts positions anew"),
    FlagRefusal("speculative_adaptive", "the number of drafts bounds a step, and it would change"),
    FlagRefusal("enable_mixed_chunk", "a mixed step takes lengths of before a compaction"),
    FlagRefusal("speculative_draft_window_size", _ROWS, None),
    FlagRefusal("enable_watermark", "it marks drafts that a compaction does not let through"),
    FlagRefusal("dynts_observe_queries", "drafts that are rejected would be counted", 0),
)
"""Flags that must keep their values beside speculation."""

_TWO_POOLS = (
    "the model's sliding layers have a KV pool of their own; the two have not been tested together yet"
)

TWO_POOL_REFUSALS = (
    FlagRefusal("disaggregation_mode", _TWO_POOLS, "null"),
    FlagRefusal("enable_hierarchical_cache", _TWO_POOLS),
)
"""Flags that must keep their values beside sliding layers with a KV pool of their own."""

RECURRENT_REFUSALS = (
    FlagRefusal("disaggregation_mode", "states that are handed over have not been tested yet", "null"),
    FlagRefusal("enable_hierarchical_cache", "states on the host have not been tested yet"),
    FlagRefusal("enable_int8_mamba_checkpoint", "states of eight bits have not been tested yet"),
    FlagRefusal("enable_linear_replayssm", "states that lag behind have not been tested yet"),
    FlagRefusal("enable_linear_replayssm_spec", "states that lag behind have not been tested yet"),
    FlagRefusal("dynts_observe_queries", "attention beside states has not been tested yet", 0),
)
"""Flags that must keep their values beside recurrent states."""

_HANDED_OVER = "the two have not been tested together yet"

HANDED_OVER_DRAFTS = ("EAGLE", "EAGLE3", "NEXTN")
"""Ways to draft that are served where prompts come from another server."""

DISAGGREGATION_REFUSALS = (
    FlagRefusal("enable_hierarchical_cache", _HANDED_OVER),
    FlagRefusal("disaggregation_decode_enable_radix_cache", "it has not been tested yet"),
    FlagRefusal("disaggregation_decode_host_receive_threshold", "it has not been tested yet", 1.0),
    FlagRefusal("disaggregation_decode_allocation_policy", "it has not been tested yet", "early"),
    FlagRefusal("enable_pd_role_switch", "a server governs requests from its start on, or never"),
)
"""Flags that must keep their values on either side of disaggregation."""

RETRACTION_BACKUP = "cpu_tensor"
"""SGLang's way to keep retracted requests of a decode server that is served; it is for those without a
window, since copies of windows are ours."""

KEEPS_STATES = "extra_buffer"
"""SGLang's way to keep recurrent states for its prefix cache that is served."""

ENVIRONMENT_REFUSALS = (
    ("SGLANG_ENABLE_POST_CAPTURE_KV_SIZING", "the KV pool grows after the scores are allocated"),
    ("SGLANG_RUST_SERVER", "it checks no request and reports no DynTS numbers"),
)


def refuse_unsupported(cfg, model_config) -> None:
    """Refuse every combination that DynTS does not serve.

    Args:
        cfg: resolved server arguments.
        model_config: SGLang's configuration of the served model.

    Raises:
        ValueError: naming flag, value, reason and remedy.
    """
    _refuse_flags(cfg, FLAG_REFUSALS)
    if cfg.tokenizer_worker_num > 1:
        refuse_keys_of_workers(cfg)
    if cfg.enable_hierarchical_cache:
        refuse_hierarchy(cfg)
    if cfg.disaggregation_mode != "null":
        refuse_disaggregation(cfg)
    if cfg.speculative_algorithm is not None:
        refuse_speculation(cfg)
    _refuse_platform()
    _refuse_kernels(cfg)  # before the cache: kernels may set a page size that nobody named
    _refuse_cache(cfg)
    for refused in REFUSED_KINDS:
        if refused.applies(model_config):
            raise ValueError(refused.message(cfg.model_path))
    _refuse_head_size(cfg, model_config.hf_config)
    _refuse_foreign_class(cfg, model_config.hf_config)
    if model_config.is_hybrid_swa:
        _refuse_flags(cfg, TWO_POOL_REFUSALS)
    if has_recurrent_state(model_config):
        _refuse_beside_states(cfg)
    for variable, why in ENVIRONMENT_REFUSALS:
        if getattr(envs, variable).get():
            raise ValueError(f"DynTS does not support {variable}=1: {why}; unset it")


def _refuse_flags(cfg, refusals: Sequence[FlagRefusal], more: str = "") -> None:
    """Refuse the first flag that has not its neutral value; ``more`` ends the message."""
    for refusal in refusals:
        value = getattr(cfg, refusal.field)
        if value != refusal.neutral:
            raise ValueError(refusal.message(value) + more)


def refuse_keys_of_workers(cfg) -> None:
    """Refuse a key that SGLang 0.5.23 checks in a server's one process alone.

    Raises:
        ValueError: naming the flags; the key is no one's to read.
    """
    for field in KEYS:
        if getattr(cfg, field) is not None:
            raise ValueError(
                f"DynTS does not support --{field.replace('_', '-')} with --tokenizer-worker-num "
                f"{cfg.tokenizer_worker_num}: the workers of SGLang 0.5.23 check no key; use "
                "--tokenizer-worker-num 1, or a gateway that checks it"
            )


def refuse_hierarchy(cfg) -> None:
    """Refuse what does not go together with prefixes on the host.

    Raises:
        ValueError: naming flag, value, reason and remedy.
    """
    _refuse_flags(cfg, HIERARCHY_REFUSALS)
    if cfg.hicache_write_policy == "write_back":
        raise ValueError(
            "DynTS does not support --hicache-write-policy write_back: it has not been tested yet; use "
            "write_through or write_through_selective"
        )
    if cfg.device == "cpu" and cfg.hicache_mem_layout not in CPU_LAYOUTS:
        raise ValueError(
            f"DynTS does not support --hicache-mem-layout {cfg.hicache_mem_layout} on a CPU: it is "
            f"not copied there; use {' or '.join(CPU_LAYOUTS)}, with --hicache-io-backend kernel"
        )


def refuse_disaggregation(cfg) -> None:
    """Refuse what does not go together with prompts that another server computes.

    Raises:
        ValueError: naming flag, value, reason and remedy.
    """
    mode = cfg.disaggregation_mode
    _refuse_flags(cfg, DISAGGREGATION_REFUSALS, f", or --disaggregation-mode {mode}")
    if cfg.speculative_algorithm not in (None, *HANDED_OVER_DRAFTS):
        raise ValueError(
            f"DynTS does not support --speculative-algorithm {cfg.speculative_algorithm}: with "
            f"--disaggregation-mode {mode} it has not been tested yet; use one of "
            f"{', '.join(HANDED_OVER_DRAFTS)}"
        )
    backup = cfg.disaggregation_decode_retraction_backup
    if backup not in (None, RETRACTION_BACKUP):
        raise ValueError(
            f"DynTS does not support --disaggregation-decode-retraction-backup {backup}: it keeps no "
            "scores of the tokens; copies of windows are bounded by --dynts-host-memory-gb, and 0 keeps "
            "none; drop the flag"
        )


def refuse_speculation(cfg) -> None:
    """Refuse ways to draft, and what does not go together with drafts.

    Raises:
        ValueError: naming flag, value, reason and remedy.
    """
    asked = f"--speculative-algorithm {cfg.speculative_algorithm}"
    if cfg.speculative_algorithm not in SPECULATIVE_ALGORITHMS:
        why = DRAFT_REFUSALS.get(cfg.speculative_algorithm, "it has not been tested yet")
        raise ValueError(
            f"DynTS does not support {asked}: {why}; use one of {', '.join(SPECULATIVE_ALGORITHMS)}"
        )
    _refuse_flags(cfg, SPECULATIVE_REFUSALS, f", or {asked}")
    if envs.SGLANG_ENABLE_OVERLAP_PLAN_STREAM.get():
        raise ValueError(
            f"DynTS does not support SGLANG_ENABLE_OVERLAP_PLAN_STREAM=1 with {asked}: positions are "
            "read there on a stream that no compaction waits for; unset it"
        )


def _refuse_beside_states(cfg) -> None:
    """Refuse what does not go together with recurrent states."""
    _refuse_flags(cfg, RECURRENT_REFUSALS, ", or serve the model without DynTS")
    strategy = cfg.mamba_radix_cache_strategy
    if not cfg.disable_radix_cache and strategy != KEEPS_STATES:
        raise ValueError(
            f"DynTS does not support --mamba-radix-cache-strategy {strategy}, given or chosen by SGLang: "
            "it keeps no state of a question while its answer goes on; use --mamba-radix-cache-strategy "
            f"{KEEPS_STATES}, or --disable-radix-cache"
        )
    if cfg.dynts_host_memory_gb:
        raise ValueError(
            f"DynTS does not support --dynts-host-memory-gb {cfg.dynts_host_memory_gb:g} with a model "
            "with recurrent states: when a request is retracted, its state is one token further than its "
            "copy; give 0, and retracted requests are computed again"
        )


def _refuse_head_size(cfg, config) -> None:
    """SGLang 0.5.23 does not read the head size of a Qwen2 model on a CPU; its first forward fails."""
    if cfg.device != "cpu" or getattr(config, "model_type", None) != "qwen2":
        return
    derived, told = config.hidden_size // config.num_attention_heads, getattr(config, "head_dim", None)
    if told not in (None, derived):
        raise ValueError(
            f"DynTS does not support --model-path {cfg.model_path} on a CPU: SGLang 0.5.23 takes "
            f"hidden_size / num_attention_heads = {derived} as the head size there, but config.json says "
            f"head_dim {told}; use a GPU"
        )


def _refuse_foreign_class(cfg, config) -> None:
    """SGLang 0.5.23 does not read transformers' class of a MiMo-V2; loading such a model fails."""
    rotations = getattr(config, "rope_parameters", None) or {}
    is_mimo = "MiMoV2FlashForCausalLM" in (config.architectures or ())
    if is_mimo and "full_attention" in rotations:
        raise ValueError(
            f"DynTS does not support --model-path {cfg.model_path} as transformers reads it: SGLang "
            "0.5.23 does not know rotations named by kind of layer; give --trust-remote-code, and the "
            "class in the model's folder is taken"
        )


def _refuse_platform() -> None:
    platform = get_platform()
    if platform.is_hip or platform.is_npu:
        raise ValueError(
            "DynTS does not support --device of an AMD or Ascend machine: overlap scheduling gives "
            "no fence for a compaction there; use CUDA or a CPU"
        )


def _refuse_cache(cfg) -> None:
    if cfg.page_size != 1:
        raise ValueError(
            f"DynTS does not support --page-size {cfg.page_size}: single tokens are freed; "
            "use --page-size 1"
        )
    if cfg.radix_cache_backend not in (None, BACKEND_NAME):
        raise ValueError(
            f"DynTS does not support --radix-cache-backend {cfg.radix_cache_backend}: {_OTHER_CACHE}; "
            "drop the flag"
        )
    if str(cfg.kv_cache_dtype).startswith(("fp4", "nvfp4", "mxfp8")):
        raise ValueError(
            f"DynTS does not support --kv-cache-dtype {cfg.kv_cache_dtype}: tokens share scale "
            "factors in blocks; use auto, bfloat16, fp8_e4m3 or fp8_e5m2"
        )


def _refuse_kernels(cfg) -> None:
    flags = ("attention_backend", "prefill_attention_backend", "decode_attention_backend")
    for field in flags:
        value = getattr(cfg, field)
        if value is not None and value not in SUPPORTED_KERNELS:
            raise ValueError(
                f"DynTS does not support --{field.replace('_', '-')} {value}; use "
                f"--attention-backend {BACKEND_NAME}, or --enable-dynts with one of "
                f"{', '.join(SUPPORTED_KERNELS)}"
            )


def refuse_backend(cfg) -> None:
    """Refuse ``dynts`` as attention backend where it means nothing; before SGLang resolves the name.

    Raises:
        ValueError: naming the flag and the remedy.
    """
    if BACKEND_NAME in (cfg.prefill_attention_backend, cfg.decode_attention_backend):
        raise ValueError(
            f"--prefill-attention-backend/--decode-attention-backend {BACKEND_NAME}: DynTS governs "
            f"both phases; use --attention-backend {BACKEND_NAME}"
        )
    if cfg.attention_backend == BACKEND_NAME and cfg.device not in BASE_BACKENDS:
        raise ValueError(
            f"--attention-backend {BACKEND_NAME} does not support --device {cfg.device}; "
            f"supported: {', '.join(BASE_BACKENDS)}"
        )


def refuse_idle_flags(cfg, defaults: Mapping[str, Any]) -> None:
    """Refuse our flags on a server without DynTS: they ask for something that would not happen.

    Args:
        cfg: resolved server arguments.
        defaults: of our fields, by name.

    Raises:
        ValueError: naming the flags and the remedy.
    """
    given = [name for name, default in defaults.items() if getattr(cfg, name) != default]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(
            f"{flags} given, but DynTS is off; add --attention-backend {BACKEND_NAME} or "
            "--enable-dynts, or drop the flag"
        )


def refuse_unknown_policy(name: str | None) -> None:
    """Refuse a policy that is not known; None asks for none.

    Raises:
        ValueError: naming flag, value and remedy.
    """
    if name is not None and name not in policies():
        raise ValueError(f"--dynts-policy {name} is not known; choose one of {', '.join(policies())}")


def refuse_own_flags(cfg, policy: str, unserved: Mapping[str, str]) -> None:
    """Refuse values of our own flags, the windows aside, that cannot be served.

    Args:
        cfg: resolved server arguments.
        policy: the server's.
        unserved: policies that cannot be served here, and why.

    Raises:
        ValueError: naming flag, value and remedy.
    """
    if not 0 <= cfg.dynts_host_memory_gb < inf:
        raise ValueError(
            f"--dynts-host-memory-gb {cfg.dynts_host_memory_gb} must be a number of GiB, 0 or more"
        )
    if policies()[policy].needs_queries and not cfg.dynts_observe_queries:
        raise ValueError(
            f"--dynts-policy {policy} reads attention; give --dynts-observe-queries 32 or another number"
        )
    if cfg.dynts_observe_queries:
        _refuse_observation(cfg)
    text = cfg.dynts_calibration_text
    if text is not None and not Path(text).is_file():
        raise ValueError(f"--dynts-calibration-text {text} is no file; name a text file in UTF-8")
    if policy in unserved:
        chosen = "" if cfg.dynts_policy else ", which is chosen since the model has no predictor,"
        raise ValueError(f"--dynts-policy {policy}{chosen} cannot be served: {unserved[policy]}")


def calibrates(cfg, policy: str) -> bool:
    """Whether a server with this policy is to know what its model's queries are like."""
    return policies()[policy].needs_calibration or cfg.dynts_calibration_text is not None


def unserved_policies(cfg, own: str, *, latents: bool) -> dict[str, str]:
    """Return the policies that cannot be served with these arguments, and why; a flag of ours aside.

    Args:
        cfg: resolved server arguments.
        own: the server's policy.
        latents: whether the model keeps one latent of all heads instead of K and V (MLA).
    """
    reasons = {name: _why_unserved(name, cfg, own, latents) for name in policies()}
    return {name: reason for name, reason in reasons.items() if reason}


def _why_unserved(name: str, cfg, own: str, latents: bool) -> str:
    policy, dtype = policies()[name], str(cfg.kv_cache_dtype)
    several = policy.sets is not Sets.ONE
    reasons = {
        "SGLANG_USE_HND_KVCACHE keeps K and V by head, where they cannot be moved by token; unset it": (
            several and envs.SGLANG_USE_HND_KVCACHE.get()
        ),
        f"--kv-cache-dtype {dtype}: a token's K and V have scales, which are not moved; give auto": (
            several and dtype not in MOVABLE_DTYPES
        ),
        f"--tp-size {cfg.tp_size}: it averages over heads, and each rank sees its own alone; use 1": (
            policy.needs_queries and not several and cfg.tp_size > cfg.attn_dp_size
        ),
        f"it counts attention by head, for the server's own policy alone; give --dynts-policy {name}": (
            several and policy.needs_all_queries and name != own
        ),
        f"it needs a calibration; give --dynts-policy {name} or --dynts-calibration-text FILE": (
            policy.needs_calibration and not calibrates(cfg, own)
        ),
        "it reads K and V of each head, and this model keeps latents (MLA); name a predictor with "
        "--dynts-predictor, or a policy that reads none, such as window": (
            policy.needs_calibration and latents
        ),
    }
    return "; ".join(reason for reason, applies in reasons.items() if applies)


def _refuse_observation(cfg) -> None:
    """Refuse to record queries where they would be wrong or missing."""
    num_queries, dtype = cfg.dynts_observe_queries, str(cfg.kv_cache_dtype)
    copies = f"--dynts-host-memory-gb {cfg.dynts_host_memory_gb:g}"
    reasons = {
        f"--dynts-observe-queries {num_queries}: give 0 or more": num_queries < 0,
        f"{copies}: host copies hold no queries; give 0": cfg.dynts_host_memory_gb > 0,
        f"--kv-cache-dtype {dtype}: keys are read without their scale; give auto": (
            dtype.startswith("fp8")
        ),
        "CUDA graphs do not record them; give --cuda-graph-backend-decode disabled and "
        "--cuda-graph-backend-prefill disabled": cfg.device == "cuda" and _captures_graphs(cfg),
    }
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise ValueError(f"--dynts-observe-queries cannot be served: {'; '.join(found)}")


def _captures_graphs(cfg) -> bool:
    graphs = cfg.cuda_graph_config
    return not graphs.decode.backend == graphs.prefill.backend == Backend.DISABLED


def refuse_other_width(path: Path, found: int, wanted: int) -> None:
    """Refuse a predictor made for another width.

    Raises:
        ValueError: naming both sizes.
    """
    if found != wanted:
        raise ValueError(
            f"--dynts-predictor {path}: made for hidden_size={found}, the served model has "
            f"hidden_size={wanted}; name a predictor trained for this model"
        )
