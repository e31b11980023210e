"""How many weights a model has, counted from its config.json; routed experts apart from the rest.

Names in the code are those of the fields. Each count is the one of Hugging Face's class for the text
alone: a tower for images and layers that only draft are left out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

Config = dict[str, Any]


class Weights(NamedTuple):
    """Parameters of a model, routed experts among them or not; and the experts alone."""

    num_parameters: int
    expert_parameters: int = 0


def count_weights(config: Config) -> Weights:
    """Count a model's weights, a tied output head twice, since a step reads it."""
    hidden = config["hidden_size"]
    ends = 2 * config["vocab_size"] * hidden + hidden
    layers, experts = COUNTED[config["model_type"]](config)
    return Weights(ends + layers, experts)


def head_dim_of(config: Config) -> int:
    """Return the width of an attention head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def kv_heads_of(config: Config) -> int:
    """Return how many heads keys and values have."""
    return config.get("num_key_value_heads") or config["num_attention_heads"]


def recurrent_layers_of(config: Config) -> int:
    """Return how many layers keep a state in place of keys and values."""
    every = config.get("full_attention_interval")
    layers = config["num_hidden_layers"]
    return layers - layers // every if every else 0


def _attention(config: Config) -> int:
    """Products for queries, keys, values and the output."""
    hidden, head_dim = config["hidden_size"], head_dim_of(config)
    return 2 * hidden * head_dim * (config["num_attention_heads"] + kv_heads_of(config))


def _dense(config: Config) -> Weights:
    head_dim = head_dim_of(config)
    attention = _attention(config)
    if config["model_type"] == "qwen2":
        attention += head_dim * (config["num_attention_heads"] + 2 * kv_heads_of(config))  # biases
    if config["model_type"] == "qwen3":
        attention += 2 * head_dim  # norms of queries and keys
    hidden = config["hidden_size"]
    layer = attention + 3 * hidden * config["intermediate_size"] + 2 * hidden
    return Weights(config["num_hidden_layers"] * layer)


def _gpt_oss(config: Config) -> Weights:
    hidden, inner, heads = (
        config[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    biases = head_dim_of(config) * (heads + 2 * kv_heads_of(config)) + hidden
    attention = _attention(config) + biases + heads  # a sink for each head
    experts = config["num_local_experts"] * (3 * hidden * inner + 2 * inner + hidden)
    router = config["num_local_experts"] * (hidden + 1)
    layers = config["num_hidden_layers"]
    return Weights(layers * (attention + experts + router + 2 * hidden), layers * experts)


def _deepseek(config: Config) -> Weights:
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    dense = config["first_k_dense_replace"]
    expert = 3 * hidden * config["moe_intermediate_size"]
    routed = config["n_routed_experts"]
    sparse = expert * (routed + config["n_shared_experts"]) + routed * hidden
    inner = dense * 3 * hidden * config["intermediate_size"] + (layers - dense) * sparse
    return Weights(
        layers * (_latent_attention(config) + 2 * hidden) + inner, (layers - dense) * routed * expert
    )


def _latent_attention(config: Config) -> int:
    """Products of latent attention, and the norms of both latents."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    query, latent = config["q_lora_rank"], config["kv_lora_rank"]
    rotated, plain, value = (config[f"{n}_head_dim"] for n in ("qk_rope", "qk_nope", "v"))
    queries = hidden * query + query + query * heads * (plain + rotated)
    keys = hidden * (latent + rotated) + latent + latent * heads * (plain + value)
    return queries + keys + heads * value * hidden


def _delta_rule(config: Config) -> Weights:
    """Layers of full attention with a gate, layers of the gated delta rule; dense or with experts."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    recurrent = recurrent_layers_of(config)
    head_dim = head_dim_of(config)
    gate = hidden * config["num_attention_heads"] * head_dim
    full = _attention(config) + gate + 2 * head_dim
    inner, experts = _experts_beside_shared(config)
    layer = inner + experts + 2 * hidden
    attention = (layers - recurrent) * full + recurrent * _recurrent_layer(config)
    return Weights(attention + layers * layer, layers * experts)


def _recurrent_layer(config: Config) -> int:
    hidden, value_heads = config["hidden_size"], config["linear_num_value_heads"]
    values = value_heads * config["linear_value_head_dim"]
    convolved = convolved_width(config)
    products = hidden * (convolved + 2 * values + 2 * value_heads)  # a gate, the output; beta, decay
    return (
        products
        + convolved * config["linear_conv_kernel_dim"]
        + 2 * value_heads
        + config["linear_value_head_dim"]
    )


def convolved_width(config: Config) -> int:
    """Return the width of queries, keys and values of a recurrent layer together."""
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    return 2 * keys + config["linear_num_value_heads"] * config["linear_value_head_dim"]


def _experts_beside_shared(config: Config) -> Weights:
    """Weights of one layer's products: those that every token reads, and routed experts."""
    hidden, num = config["hidden_size"], config.get("num_experts", 0)
    if not num:
        return Weights(3 * hidden * config["intermediate_size"])
    shared = 3 * hidden * config["shared_expert_intermediate_size"] + hidden
    return Weights(shared + num * hidden, num * 3 * hidden * config["moe_intermediate_size"])


COUNTED: dict[str, Callable[[Config], Weights]] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3"), _dense),
    "gpt_oss": _gpt_oss,
    "deepseek_v3": _deepseek,
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _delta_rule),
}
"""By ``model_type``."""
