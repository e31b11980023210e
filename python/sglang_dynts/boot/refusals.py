"""What DynTS does not serve, each with flag, value and remedy; checked before anything is loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang.srt.configs.hybrid_arch import mambaish_config
from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.environ import envs
from sglang.srt.runtime_context import get_platform

from sglang_dynts.names import BACKEND_NAME, SUPPORTED_KERNELS


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


_ROWS = "it reads a request's row by token position, which a compaction changes"
_OTHER_CACHE = "only the DynTS radix cache keeps compacted rows out of the prefix tree"

FLAG_REFUSALS = (
    FlagRefusal("speculative_algorithm", "drafting owns the lengths that a compaction rewrites", None),
    FlagRefusal("pp_size", "scores exist on the last pipeline rank alone", 1, "use --tp-size"),
    FlagRefusal("disaggregation_mode", "the decode side schedules elsewhere", "null"),
    FlagRefusal("disaggregation_decode_enable_offload_kvcache", _ROWS),
    FlagRefusal("enable_pdmux", "prefill and decode share no scheduling step there"),
    FlagRefusal("attn_dp_size", "not shown to be right yet", 1, "use --dp-size"),
    FlagRefusal("dllm_algorithm", "diffusion decoding rewrites tokens in place", None),
    FlagRefusal("enable_streaming_session", _ROWS),
    FlagRefusal("enable_session_radix_cache", _ROWS),
    FlagRefusal("enable_return_routed_experts", _ROWS),
    FlagRefusal("enable_return_indexer_topk", _ROWS),
    FlagRefusal("kv_canary", _ROWS, "none"),
    FlagRefusal("enable_hisparse", "two methods cannot both choose the tokens that stay"),
    FlagRefusal("enable_hierarchical_cache", "not shown to be right yet"),
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
        "tokenizer_worker_num", "extra tokenizer workers load no plug-in to check requests with", 1
    ),
)


@dataclass(frozen=True)
class ModelRefusal:
    """A kind of model that is not served."""

    kind: str
    applies: Callable[[Any], bool]


MODEL_REFUSALS = (
    ModelRefusal("sliding-window attention", lambda m: m.is_hybrid_swa or m.sliding_window_size),
    ModelRefusal("chunked local attention", lambda m: m.attention_chunk_size is not None),
    ModelRefusal("Mamba or linear attention", lambda m: mambaish_config(m) is not None),
    ModelRefusal("multi-head latent attention (MLA)", lambda m: m.attention_arch == AttentionArch.MLA),
    ModelRefusal("multimodal input", lambda m: m.is_multimodal or m.model_is_mrope),
    ModelRefusal("an encoder", lambda m: m.is_encoder_decoder),
    ModelRefusal("no text generation", lambda m: not m.is_generation),
)

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
    for refusal in FLAG_REFUSALS:
        value = getattr(cfg, refusal.field)
        if value != refusal.neutral:
            raise ValueError(refusal.message(value))
    _refuse_platform()
    _refuse_kernels(cfg)  # before the cache: kernels may set a page size that nobody named
    _refuse_cache(cfg)
    for refusal in MODEL_REFUSALS:
        if refusal.applies(model_config):
            raise ValueError(
                f"DynTS does not support --model-path {cfg.model_path}: it is a model with "
                f"{refusal.kind}; serve it without DynTS"
            )
    _refuse_head_size(cfg, model_config.hf_config)
    for variable, why in ENVIRONMENT_REFUSALS:
        if getattr(envs, variable).get():
            raise ValueError(f"DynTS does not support {variable}=1: {why}; unset it")


def _refuse_head_size(cfg, config) -> None:
    """SGLang 0.5.23 does not read the head size of a Qwen2 model on a CPU: the first forward fails."""
    if cfg.device != "cpu" or getattr(config, "model_type", None) != "qwen2":
        return
    derived, told = config.hidden_size // config.num_attention_heads, getattr(config, "head_dim", None)
    if told not in (None, derived):
        raise ValueError(
            f"DynTS does not support --model-path {cfg.model_path} on a CPU: SGLang 0.5.23 takes heads "
            f"of hidden_size / num_attention_heads = {derived} there, its config.json says head_dim "
            f"{told}; use a GPU"
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
