"""Which models are served, and which are refused and why: one list, for refusals and documents alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang.srt.configs.hybrid_arch import mambaish_config
from sglang.srt.configs.model_config import (
    is_deepseek_dsa,
    is_deepseek_v4,
    is_minimax_sparse,
)
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.runtime_context import get_parallel

from sglang_dynts.boot.configuration import governs


@dataclass(frozen=True)
class ServedKind:
    """A kind of model that is served, as the documents tell it.

    ``shapes`` name models of this kind whose gain the roofline tells: ``benchmark/results/predict.json``.
    """

    kind: str
    models: str
    kernels: str
    to_set: str
    gain: str
    tested: str
    shapes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RefusedKind:
    """A kind of model that is not served; ``applies`` is asked of SGLang's configuration of a model."""

    kind: str
    models: str
    why: str
    applies: Callable[[Any], bool]

    def message(self, model_path: str) -> str:
        """What to tell the operator."""
        return (
            f"DynTS does not support --model-path {model_path}: it is a model with {self.kind}: "
            f"{self.why}; serve it without DynTS"
        )


_ON_CPU = "tokens of Hugging Face, on a CPU"

SERVED_KINDS = (
    ServedKind(
        "full attention in every layer, dense or with experts",
        "R1-Distill, Qwen2, Qwen3, Llama, Mistral, Phi-3, Phi-4",
        "FlashInfer, fa3, Triton",
        "",
        "measured: see the README's first table",
        f"{_ON_CPU}; kernels on an H200",
    ),
    ServedKind(
        "sliding and full layers in one KV pool",
        "Gemma 2, Gemma 3, EXAONE-4, Olmo 3",
        "FlashInfer, fa3, Triton",
        "a local window that is at least the model's own; the start names it",
        "not measured; less, since the budget stands above the model's window",
        f"{_ON_CPU}; not yet on a GPU",
    ),
    ServedKind(
        "sliding layers in a KV pool of their own, attention sinks",
        "gpt-oss",
        "fa3, Triton",
        "a local window of 128 or more; `--swa-full-tokens-ratio 0.1`, see below",
        "a window of the sliding layers is never made smaller, but is short",
        f"{_ON_CPU}; not yet on a GPU",
        ("gpt-oss-20b", "gpt-oss-120b"),
    ),
    ServedKind(
        "sliding layers in a KV pool of their own, values narrower than keys or heads with gates",
        "MiMo-V2-Flash, Step-3.5",
        "fa3, Triton",
        "a local window of 129 (Step: 513) or more; `--trust-remote-code`, see below",
        "not measured; a window of the sliding layers is never made smaller, but is short",
        f"{_ON_CPU}; not yet on a GPU",
    ),
    ServedKind(
        "latent attention (MLA), dense or with experts",
        "DeepSeek R1, V3 and V3.1, Kimi-K2, GLM-4.7-Flash",
        "FlashInfer MLA, fa3, Triton",
        "",
        "like full attention",
        f"{_ON_CPU}; not yet on a GPU",
        ("deepseek-r1",),
    ),
    ServedKind(
        "recurrent states in most layers, full attention in the others",
        "Qwen3-Next, Qwen3.5, dense or with experts",
        "FlashInfer, fa3, Triton",
        "a larger `--mamba-full-memory-ratio`, see below",
        "less, since a compaction makes no state smaller",
        f"{_ON_CPU}; not yet on a GPU",
        ("qwen3-next-80b", "qwen3.5-9b", "qwen3.5-35b"),
    ),
    ServedKind(
        "as its language model; positions in three parts (mrope) or one",
        "Qwen3-VL and other models with images, for text alone",
        "FlashInfer, fa3, Triton",
        "a request with an image gets HTTP 400",
        "not measured",
        f"{_ON_CPU}; not yet on a GPU",
    ),
)

WITH_TWO_POOLS = {"GptOssForCausalLM", "MiMoV2FlashForCausalLM", "Step3p5ForCausalLM"}
"""Architectures with sliding layers in a KV pool of their own that are served."""

WITH_RECURRENT_STATE = {
    "Qwen3NextForCausalLM",
    *("Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM"),
    *("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"),
}
"""Architectures with recurrent states (the gated delta rule) that are served."""


def has_recurrent_state(model) -> bool:
    """Whether a model has layers that keep a state in place of K and V.

    Args:
        model: SGLang's configuration of it.
    """
    return mambaish_config(model) is not None


def _has_tested_state(model) -> bool:
    return not WITH_RECURRENT_STATE.isdisjoint(model.hf_config.architectures or ())


def _has_tested_pools(model) -> bool:
    return not WITH_TWO_POOLS.isdisjoint(model.hf_config.architectures or ())


def _chooses_tokens(model) -> bool:
    config = model.hf_config
    return is_deepseek_dsa(config) or is_deepseek_v4(config) or is_minimax_sparse(config)


REFUSED_KINDS = (
    RefusedKind(
        "attention that chooses its tokens itself",
        "DeepSeek V3.2 and V4, GLM-5, MiniMax-M3",
        "two methods cannot both choose, and its index has no place for dropped tokens",
        _chooses_tokens,
    ),
    RefusedKind(
        "chunked local attention",
        "Llama 4",
        "its chunks are counted in columns, which a compaction moves",
        lambda model: model.attention_chunk_size is not None,
    ),
    RefusedKind(
        "sliding layers in a KV pool of their own",
        "MiMo-V2 that sees and hears, Step-3.7, Gemma 4",
        "they have not been tested yet",
        lambda model: model.is_hybrid_swa and not _has_tested_pools(model),
    ),
    RefusedKind(
        "recurrent states of another kind than the gated delta rule",
        "Kimi-Linear, Kimi-K3, Nemotron-H, Granite 4, Falcon-H1",
        "they have not been tested yet",
        lambda model: has_recurrent_state(model) and not _has_tested_state(model),
    ),
    RefusedKind(
        "an encoder", "Whisper", "its keys are no tokens", lambda model: model.is_encoder_decoder
    ),
    RefusedKind(
        "no text generation",
        "embedding and reward models",
        "there is no thinking to select from",
        lambda model: not model.is_generation,
    ),
)


def check_attention_ranks(_result, model_runner) -> None:
    """AFTER ModelRunner.load_model: refuse attention ranks for a model whose code knows none.

    SGLang 0.5.23 starts such a server, and its ranks, each with other tokens, add their embeddings up.
    A model that knows of them gives each its own: its embeddings are split as its attention is.

    Raises:
        ValueError: naming the flag and the model.
    """
    parallel = get_parallel()
    if not governs() or parallel.attn_dp_size == 1:
        return
    for module in model_runner.model.modules():
        is_input = isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
        if is_input and module.tp_size > parallel.attn_tp_size:
            name = type(model_runner.model).__name__
            raise ValueError(
                f"DynTS does not support --attn-dp-size {parallel.attn_dp_size} with {name}: SGLang's "
                "code of this model knows no attention ranks, and answers would be wrong; use --dp-size "
                "or --tp-size without it"
            )
