"""The demo model: a small decoder in plain torch, quick on one CPU thread; Qwen3, or Qwen2 or Llama.

Parameter names and arithmetic are those of ``Qwen3ForCausalLM``, ``Qwen2ForCausalLM`` and
``LlamaForCausalLM`` in transformers, so that a state dict moves between the two unchanged.
`benchmark.ledgers.export` writes it as a Hugging Face folder.
"""

# Submodules are attributes that torch types as Tensor or Module, and nothing narrower.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOperatorIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

SHARPNESS = 1.6
"""Initial weight of the query and key norms; attention logits reach up to 8 times its square. Without
norms the projections begin that much larger."""
FAMILIES = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
"""Their classes in transformers. Qwen3 norms each head of queries and keys, Qwen2 adds biases to queries,
keys and values."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the decoder; ``num_heads`` query heads share ``num_kv_heads`` key/value heads.

    ``family``: one of `FAMILIES`.
    """

    vocab_size: int
    family: str = "qwen3"
    hidden_size: int = 128
    intermediate_size: int = 256
    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    max_positions: int = 4096


class KVCache:
    """Keys and values of a batch of equally long sequences, in fixed storage.

    ``keys`` and ``values``: [num_layers, batch, num_kv_heads, capacity, head_dim].
    """

    def __init__(self, model: DemoModel, batch: int, capacity: int) -> None:
        """Allocate room for `capacity` tokens per sequence, in the model's dtype, on its device."""
        shape = model.shape
        size = (shape.num_layers, batch, shape.num_kv_heads, capacity, shape.head_dim)
        self.keys, self.values = (model.model.norm.weight.new_zeros(size) for _ in range(2))
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values [b, kv, s, head_dim] of `layer`; return all stored so far."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., size] in the dtype of `x`."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention; what is done to queries, keys and values beside it is the family's."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        biased = shape.family == "qwen2"
        self.q_proj = nn.Linear(shape.hidden_size, queries, bias=biased)
        self.k_proj = nn.Linear(shape.hidden_size, keys, bias=biased)
        self.v_proj = nn.Linear(shape.hidden_size, keys, bias=biased)
        self.o_proj = nn.Linear(queries, shape.hidden_size, bias=False)
        self.q_norm, self.k_norm = _head_norm(shape), _head_norm(shape)

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries, rotated keys and values: [b, heads or kv heads, s, head_dim]."""
        q, k, v = (self._split(layer(x)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return _rotate(self.q_norm(q), rope), _rotate(self.k_norm(k), rope), v.transpose(1, 2)

    def merge(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attend and project back to [b, s, hidden]; without `mask` attention is causal."""
        if q.shape[2] == 1:
            return self.o_proj(_attend_one_token(q, k, v, mask).flatten(1)[:, None])
        repeat = self.shape.num_heads // self.shape.num_kv_heads
        k, v = (x.repeat_interleave(repeat, dim=1) for x in (k, v))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Return causal attention weights [b, heads, s, s] in float32."""
        k = k.repeat_interleave(self.shape.num_heads // self.shape.num_kv_heads, dim=1)
        logits = (q @ k.transpose(-1, -2)).float() * self.shape.head_dim**-0.5
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        return logits.masked_fill(future, float("-inf")).softmax(-1)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.shape.head_dim))


def _head_norm(shape: ModelShape) -> nn.Module:
    return RMSNorm(shape.head_dim, shape.norm_eps) if shape.family == "qwen3" else nn.Identity()


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [b, s, hidden_size]."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.norm_eps)


class Decoder(nn.Module):
    """The parameters below ``model.`` in a Hugging Face state dict."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.norm_eps)


class DemoModel(nn.Module):
    """The language model; the output matrix is the embedding's."""

    def __init__(self, shape: ModelShape) -> None:
        """Build an untrained model of `shape`."""
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        _initialize(self)
        cos, sin = _rope_table(shape)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.norm.weight.device

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the last hidden states after the final norm, what the output matrix reads.

        Args:
            tokens: [b, s] int64, which follow what `cache` holds.
            cache: extended by these tokens, if given.
            mask: [b, 1, s, held] bool, True where a row may read; causal without.

        Returns:
            [b, s, hidden_size].
        """
        start = 0 if cache is None else cache.length
        end = start + tokens.shape[1]
        rope = self.rope_cos[start:end], self.rope_sin[start:end]
        x = self.model.embed_tokens(tokens)
        for index, layer in enumerate(self.model.layers):
            q, k, v = layer.self_attn.project(layer.input_layernorm(x), rope)
            if cache is not None:
                k, v = cache.append(index, k, v)
            x = x + layer.self_attn.merge(q, k, v, mask)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        if cache is not None:
            cache.length = end
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return next-token logits [..., vocab_size] of hidden states [..., hidden_size]."""
        return functional.linear(hidden, self.model.embed_tokens.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return next-token logits [b, s, vocab_size] of tokens [b, s] int64."""
        return self.logits(self.hidden(tokens))

    def mean_attention(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return (hidden [b, s, hidden_size], attention [b, s, s] float32).

        The attention is the mean over all heads and layers; row i is what token i reads.
        """
        rope = self.rope_cos[: tokens.shape[1]], self.rope_sin[: tokens.shape[1]]
        x = self.model.embed_tokens(tokens)
        total = x.new_zeros(tokens.shape + tokens.shape[1:], dtype=torch.float32)
        for layer in self.model.layers:
            q, k, v = layer.self_attn.project(layer.input_layernorm(x), rope)
            total += layer.self_attn.weights(q, k).mean(1)
            x = x + layer.self_attn.merge(q, k, v, None)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.model.norm(x), total / len(self.model.layers)


def _attend_one_token(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend from one token per sequence, without a copy of the keys for each query head.

    Query heads that share a key head become rows of one product. Returns [b, heads, 1, head_dim].
    """
    rows = q.unflatten(1, (k.shape[1], -1)).squeeze(3)
    return functional.scaled_dot_product_attention(rows, k, v, attn_mask=mask).flatten(1, 2)[:, :, None]


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate [b, s, heads, head_dim] by position and return it as [b, heads, s, head_dim]."""
    cos, sin = (table.to(x.dtype) for table in rope)
    x = x.transpose(1, 2)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _rope_table(shape: ModelShape) -> tuple[Tensor, Tensor]:
    frequencies = shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2) / shape.head_dim)
    angles = torch.arange(shape.max_positions).float()[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _initialize(model: DemoModel) -> None:
    """Wide embeddings, a small final norm, pointed attention.

    Lookups by word identity are learnt much sooner, and less is left to averages over the whole
    trace, which change when a part of it is dropped.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for layer in model.model.layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            nn.init.normal_(projection.weight, std=0.2 * projection.in_features**-0.5)
        _sharpen(layer.self_attn)
    nn.init.normal_(model.model.embed_tokens.weight, std=0.5)
    nn.init.constant_(
        model.model.norm.weight, 0.2 * (ModelShape.hidden_size / model.shape.hidden_size) ** 0.5
    )


def _sharpen(attention: Attention) -> None:
    if attention.shape.family == "qwen3":
        for norm in (attention.q_norm, attention.k_norm):
            nn.init.constant_(norm.weight, SHARPNESS)
        return
    for projection in (attention.q_proj, attention.k_proj):
        nn.init.normal_(projection.weight, std=SHARPNESS * projection.in_features**-0.5)
