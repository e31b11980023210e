"""Tiny random models for token-exact tests, each with a random predictor beside it."""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig

from benchmark.harness import tiny_models
from benchmark.harness.tiny_models import (
    END_THINK,
    FIRST_WORD,
    SIZES,
    SPECIAL,
    THINK,
    config_of,
    random_model,
    random_predictor,
    word_tokenizer,
    wrap_tokenizer,
    write_random_weights,
)
from sgl_dynts.checkpoint import PREDICTOR_FILE
from sgl_dynts.config import DynTSConfig
from tests.e2e.draft_heads import (
    add_layer_that_drafts,
    add_qwen_head,
    write_eagle3_head,
    write_eagle_head,
)
from tests.e2e.step_models import STEP, StepForCausalLM, write_step

VOCAB_SIZE, HIDDEN_SIZE = SIZES["vocab_size"], SIZES["hidden_size"]
SEPARATORS = {250: ".", 251: ",", 252: "?", 253: "!", 254: ";", 255: ":"}
EXPERTS = {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
EVERY_EXPERT = EXPERTS | {"num_experts_per_tok": EXPERTS["num_experts"]}
"""In four layers two experts are so often as good as each other that rounding would choose."""
CHANGES_ITS_MIND = "changes_its_mind"
"""A model that closes and opens its thinking now and then."""
EAGLE_HEAD = "eagle_head"
"""A head that drafts for the model "llama"."""
EAGLE3_HEAD = "eagle3_head"
"""A head that drafts for any model of four layers."""
SPELLER = "speller"
"""A model whose tokens are bytes, so that it can spell anything; it closes its thinking now and then."""
MIMO_V2 = "mimo_v2"
UNTRAINED = "untrained"
"""A model that marks no thinking and has no predictor."""
WORDS_FILE = "words.txt"
"""In every model's folder: a text of its words."""

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
"""Of Olmo 3, in which SGLang 0.5.23 does not find another theta under the names of layer types."""
LAYER_TYPES = ("sliding_attention", "full_attention")
MODEL_WINDOW = 24
"""Tokens that a sliding layer of these models sees, the query's own included."""
SLIDING = {
    "head_dim": 16,
    "num_hidden_layers": 4,
    "sliding_window": MODEL_WINDOW,
    "layer_types": [*LAYER_TYPES] * 2,
}
LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 24,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "num_hidden_layers": 3,
}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 48,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "moe_layer_freq": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 2048,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
DEEPSEEK = {**LATENT, **ROUTED, "rope_parameters": YARN}
ONE_HEAD = {"num_nextn_predict_layers": 1}
MROPE = {
    "head_dim": 32,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    },
}
WIDE_MROPE = MROPE["rope_parameters"] | {"mrope_section": [12, 10, 10]}
VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": HIDDEN_SIZE,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
IMAGE_WORDS = {
    244: "<|image_pad|>",
    245: "<|video_pad|>",
    246: "<|vision_start|>",
    247: "<|vision_end|>",
}
IMAGE_IDS = dict(
    zip(
        ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
        IMAGE_WORDS,
        strict=True,
    )
)
RECURRENT = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "full_attention_interval": 4,  # the same, as SGLang 0.5.23 reads it
    "head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
"""Three layers with a recurrent state, and one with full attention."""
QWEN3_NEXT = {
    **RECURRENT,
    **EVERY_EXPERT,
    "shared_expert_intermediate_size": 48,
    "decoder_sparse_step": 1,
}
QUARTER_MROPE = MROPE["rope_parameters"] | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25}
TURNS = {"rope_type": "default", "partial_rotary_factor": 0.5}
MIMO = {
    **SLIDING,
    "head_dim": 32,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "mlp_layer_types": ["dense"] + ["sparse"] * 3,
}
"""Keys are wider than values, and sliding layers have twice the heads of K and V."""
MIMO_OF_SGLANG = {
    "hybrid_layer_pattern": [1, 0] * 2,
    "moe_layer_freq": [0] + [1] * 3,
    "sliding_window_size": MODEL_WINDOW - 1,  # SGLang 0.5.23 shows its layers one token more
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_head_dim": 32,
    "swa_v_head_dim": 16,
    "add_swa_attention_sink_bias": True,
    "rope_theta": 5000000.0,
    "swa_rope_theta": 10000.0,
    "partial_rotary_factor": 0.334,
    "layernorm_epsilon": 1e-5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
"""What its files say in words that SGLang 0.5.23 reads; transformers has these values of itself."""
OWN_CLASS = """from transformers import PretrainedConfig


class OwnConfig(PretrainedConfig):
    model_type = "{model_type}"
"""
"""As in files of these models: SGLang 0.5.23 cannot read transformers' classes for them."""
TRUSTED = (MIMO_V2, STEP)
"""Kinds whose configuration is a class in their folder."""
STEP_CONFIG = Step3p7TextConfig(
    **SIZES | SLIDING,
    num_sliding_attention_heads=8,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=48,
    share_expert_dim=48,
    mlp_layer_types=["dense"] + ["sparse"] * 3,
    moe_router_scaling_factor=2.0,
    pad_token_id=0,
    rope_parameters={
        "full_attention": TURNS | {"rope_theta": 1000000.0},
        "sliding_attention": TURNS | {"rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    },
)
"""Heads have gates, and sliding layers have more of them."""
GEMMA = {**SLIDING, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}

CONFIGS = {
    CHANGES_ITS_MIND: config_of("llama"),
    "llama": config_of("llama"),
    "qwen2": config_of("qwen2"),
    "qwen3": config_of("qwen3", head_dim=32),
    "qwen3_moe": config_of("qwen3_moe", **EXPERTS),
    "gemma2": config_of("gemma2", **GEMMA, attn_logit_softcapping=5.0, hidden_act="gelu_pytorch_tanh"),
    "gemma3": config_of("gemma3_text", **GEMMA),
    "olmo3": config_of("olmo3", **SLIDING, rope_parameters=dict.fromkeys(LAYER_TYPES, ROPE)),
    "exaone4": config_of(
        "exaone4",
        **SLIDING,
        sliding_window_pattern="LG",
        rope_parameters=ROPE | {"rope_theta": 1000000.0},  # the only one that SGLang 0.5.23 reads
    ),
    "mistral": config_of("mistral", head_dim=16, sliding_window=MODEL_WINDOW),
    "phi3": config_of("phi3", sliding_window=MODEL_WINDOW, pad_token_id=0),
    "deepseek_v3": config_of("deepseek_v3", **DEEPSEEK, first_k_dense_replace=1),
    "deepseek_v3_dense": config_of("deepseek_v3", **DEEPSEEK, first_k_dense_replace=3),
    "glm4_moe_lite": config_of(
        "glm4_moe_lite",
        **LATENT,
        **ROUTED,
        mlp_layer_types=["dense", "sparse", "sparse"],
        first_k_dense_replace=1,
    ),
    "qwen3_vl": config_of("qwen3_vl", text_config={**SIZES, **MROPE}, vision_config=VISION, **IMAGE_IDS),
    "gpt_oss": config_of("gpt_oss", **SLIDING, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_next": config_of("qwen3_next", **QWEN3_NEXT),
    "qwen3_5": config_of(
        "qwen3_5",
        text_config={**SIZES, **RECURRENT, "rope_parameters": QUARTER_MROPE},
        vision_config=VISION,
        **IMAGE_IDS,
    ),
    "qwen3_5_text": config_of("qwen3_5_text", **RECURRENT, rope_parameters=QUARTER_MROPE),
    "llama_deep": config_of("llama", num_hidden_layers=4),
    "deepseek_v3_mtp": config_of("deepseek_v3", **DEEPSEEK, first_k_dense_replace=1, **ONE_HEAD),
    "glm4_moe_mtp": config_of(
        "glm4_moe", **ROUTED, **ONE_HEAD, head_dim=32, first_k_dense_replace=1, partial_rotary_factor=0.5
    ),
    "qwen3_next_mtp": config_of("qwen3_next", **QWEN3_NEXT),
    MIMO_V2: config_of("mimo_v2_flash", **MIMO, **MIMO_OF_SGLANG),
    STEP: STEP_CONFIG,
}
"""By kind; its place is the seed of its weights, so new kinds come last."""


def build_model(kind: str, folder: Path) -> Path:
    """Write a random model of this kind, its tokenizer and its predictor; returns the folder."""
    if kind == SPELLER:
        config = config_of("llama", vocab_size=256 + len(SPECIAL))
        return write_model(config, 3, folder, (END_THINK,), _byte_tokenizer())
    if kind == UNTRAINED:
        unmarked = word_tokenizer(VOCAB_SIZE, special=SPECIAL[:THINK], words=SEPARATORS)
        write_model(config_of("llama"), 6, folder, tokenizer=unmarked)
        (folder / PREDICTOR_FILE).unlink()
        return folder
    if kind == EAGLE_HEAD:
        return write_eagle_head(folder)
    if kind == EAGLE3_HEAD:
        return write_eagle3_head(folder)
    often = (THINK, END_THINK) if kind == CHANGES_ITS_MIND else ()
    write_model(CONFIGS[kind], list(CONFIGS).index(kind), folder, often)
    if kind in COMPLETED:
        COMPLETED[kind](folder)
    return folder


def add_class_of_config(folder: Path) -> None:
    """Let a folder's configuration be of a class that is in the folder, which a server must trust."""
    path, module = folder / "config.json", "configuration_of_its_own"
    config = json.loads(path.read_text())
    config.pop("rope_parameters", None)
    config["auto_map"] = {"AutoConfig": f"{module}.OwnConfig"}
    path.write_text(json.dumps(config))
    (folder / f"{module}.py").write_text(OWN_CLASS.format_map(config))


COMPLETED = {
    "deepseek_v3_mtp": add_layer_that_drafts,
    "glm4_moe_mtp": add_layer_that_drafts,
    "qwen3_next_mtp": add_qwen_head,
    **dict.fromkeys(TRUSTED, add_class_of_config),
}
"""What adds to a kind's files: a head that drafts (multi-token prediction), or a class."""


def build_wide_model(folder: Path) -> Path:
    """Write a llama whose heads are as wide as the GPU kernels need: hidden size 256, 4 heads of 64."""
    return write_model(config_of("llama", hidden_size=256, head_dim=64, initializer_range=0.1), 0, folder)


WIDE = {"hidden_size": 256, "initializer_range": 0.1}
WIDE_LATENT = {
    "head_dim": 64,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}
WIDE_STATES = {"head_dim": 64, "linear_key_head_dim": 128, "linear_value_head_dim": 128}
WIDE_CONFIGS = {
    "sliding": config_of(
        "gemma2",
        **GEMMA | WIDE | {"head_dim": 64},
        attn_logit_softcapping=5.0,
        hidden_act="gelu_pytorch_tanh",
    ),
    "latent": config_of("deepseek_v3", **DEEPSEEK | WIDE | WIDE_LATENT, first_k_dense_replace=1),
    "latent_dense": config_of("deepseek_v3", **DEEPSEEK | WIDE | WIDE_LATENT, first_k_dense_replace=3),
    "images": config_of(
        "qwen3_vl",
        text_config=SIZES | MROPE | WIDE | {"head_dim": 64, "rope_parameters": WIDE_MROPE},
        vision_config=VISION | {"out_hidden_size": 256},
        **IMAGE_IDS,
    ),
    "two_pools": config_of(
        "gpt_oss", **SLIDING | WIDE | {"head_dim": 64}, num_local_experts=4, num_experts_per_tok=2
    ),
    "recurrent": config_of("qwen3_next", **QWEN3_NEXT | WIDE | WIDE_STATES),
}
"""Of other families, as wide as the GPU kernels need."""


def build_wide_family(family: str, folder: Path) -> Path:
    """Write a model of ``WIDE_CONFIGS``."""
    return write_model(WIDE_CONFIGS[family], list(WIDE_CONFIGS).index(family), folder)


def write_model(
    config: PreTrainedConfig,
    seed: int,
    folder: Path,
    often: tuple[int, ...] = (),
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Write a random model with tokenizer and predictor; ``often`` are markers that it generates.

    The predictor recommends a local window of 16, or of what the model's sliding layers see.
    """
    if isinstance(config, Step3p7TextConfig):
        write_step(folder, random_model(StepForCausalLM, config, seed, often))
    else:
        write_random_weights(folder, config, seed, often)
    sees, text = hasattr(config, "vision_config"), config.get_text_config()
    named = SEPARATORS | IMAGE_WORDS if sees else SEPARATORS
    tokenizer = tokenizer or word_tokenizer(VOCAB_SIZE, words=named)
    (_processor(tokenizer) if sees else tokenizer).save_pretrained(folder)
    write_predictor(folder / PREDICTOR_FILE, text.hidden_size, MODEL_WINDOW if slides(text) else 16)
    draw = random.Random(seed)
    words = (f"w{draw.randrange(FIRST_WORD, min(SEPARATORS))}" for _ in range(2500))
    (folder / WORDS_FILE).write_text(" ".join(words))
    return folder


WITH_TWO_POOLS = ("gpt_oss", MIMO_V2, STEP)
"""Kinds whose sliding layers have a KV pool of their own."""


def slides(config: PreTrainedConfig) -> bool:
    """Whether a layer is served with a sliding window, whatever the configuration mentions."""
    return "sliding_attention" in (getattr(config, "layer_types", None) or ())


def has_states(kind: str) -> bool:
    """Whether layers of this kind of model keep a recurrent state."""
    return "linear_attention" in (getattr(CONFIGS[kind].get_text_config(), "layer_types", None) or ())


def write_predictor(path: Path, hidden_size: int, local_window: int = 16) -> None:
    predictor = random_predictor(hidden_size, (96, 32), std=0.3)
    tiny_models.write_predictor(path, predictor, DynTSConfig(96, local_window, 0.4))


def _processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    """What reads a request's images."""
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.add_tokens(list(IMAGE_WORDS.values()), special_tokens=True)  # told apart without spaces
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
    )


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *sorted(ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = wrap_tokenizer(tokenizer)
    wrapped.chat_template = "{{ bos_token }}{{ messages[-1].content }}<think>"
    return wrapped
