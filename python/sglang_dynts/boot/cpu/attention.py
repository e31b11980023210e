"""Attention on the host CPU: SGLang's torch kernels, and in torch what these leave out."""

from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool


class HostCpuAttention(TorchNativeAttnBackend):
    """SGLang's torch attention for every layer that it serves, bit by bit.

    It serves no capped logits (Gemma 2), no attention sinks (gpt-oss), no pool of its own for sliding
    layers, and it never looks at K and V that are not in the pool, as those of latent attention in a
    prefill. It says nothing of that: its tokens are wrong there. Such layers are computed here.
    """

    def forward_extend(
        self, q, k, v, layer: RadixAttention, forward_batch, save_kv_cache=True, sinks=None, **_kwargs
    ) -> torch.Tensor:
        """Attention of a prefill's new tokens: [num_tokens, query_heads * v_head_dim]."""
        has_prefix = any(forward_batch.extend_prefix_lens_cpu)
        given = None if k is None or save_kv_cache or has_prefix else (k, v)
        if given is None and self._is_served_upstream(layer, sinks):
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        if save_kv_cache:
            self._store(layer, forward_batch, k, v)
        lens = forward_batch.extend_seq_lens_cpu
        queries = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim).split(lens)
        if given is None:
            keys, values = self._held(layer, forward_batch)
        else:
            keys, values = given[0].split(lens), given[1].split(lens)
        return _attend_all(queries, keys, values, layer, sinks)

    def forward_decode(
        self, q, k, v, layer: RadixAttention, forward_batch, save_kv_cache=True, sinks=None, **_kwargs
    ) -> torch.Tensor:
        """Attention of each request's newest token: [num_requests, query_heads * v_head_dim]."""
        if self._is_served_upstream(layer, sinks):
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        if save_kv_cache:
            self._store(layer, forward_batch, k, v)
        parts = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim).split(1)
        return _attend_all(parts, *self._held(layer, forward_batch), layer, sinks)

    def get_cpu_graph_seq_len_fill_value(self) -> int:
        """Return the length of a row that only fills a batch up to that of another rank."""
        return 1

    def _is_served_upstream(self, layer: RadixAttention, sinks) -> bool:
        return not (layer.logit_cap or sinks is not None or self.use_sliding_window_kv_pool)

    def _store(self, layer: RadixAttention, forward_batch, k, v) -> None:
        if k is not None and v is not None:
            places = KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc)
            pool: Any = self.token_to_kv_pool
            pool.set_kv_buffer(layer, places, k, v)

    def _held(
        self, layer: RadixAttention, forward_batch
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Of each request, K and V of the tokens that it holds: [seq_len, kv_heads, head_dim]."""
        keys = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        values = self.token_to_kv_pool.get_value_buffer(layer.layer_id)
        assert self.req_to_token_pool is not None
        rows = self.req_to_token_pool.req_to_token[forward_batch.req_pool_indices]
        lens = forward_batch.seq_lens.tolist()
        slots = [self._places(row[:num], layer) for row, num in zip(rows, lens, strict=True)]
        return [keys[some] for some in slots], [values[some] for some in slots]

    def _places(self, slots: torch.Tensor, layer: RadixAttention) -> torch.Tensor:
        """Where slots lie in the pool of a layer; what a sliding layer has freed lies at 0, masked."""
        pool = self.token_to_kv_pool
        if isinstance(pool, SWAKVPool) and pool.layers_mapping[layer.layer_id][1]:
            return pool.translate_loc_from_full_to_swa(slots).long()
        return slots.long()


def _attend_all(queries, keys, values, layer: RadixAttention, sinks) -> torch.Tensor:
    """Attend request by request; queries of the same layer, each request's the newest of its keys."""
    parts = [attend(*one, layer, sinks) for one in zip(queries, keys, values, strict=True)]
    return torch.cat(parts).view(-1, layer.tp_q_head_num * layer.v_head_dim)


def attend(query, keys, values, layer: RadixAttention, sinks=None, seen=None) -> torch.Tensor:
    """Causal attention of one request's newest tokens, or what ``seen`` says.

    Args:
        query: [n, query_heads, head_dim], of the last n of the m tokens.
        keys: [m, kv_heads, head_dim].
        values: [m, kv_heads, v_head_dim].
        layer: its scale, cap of the logits and sliding window, -1 for none.
        sinks: [query_heads], a logit of each head that takes its share and gives nothing.
        seen: [n, m] bool, which keys each query sees, its layer's window aside; default: up to its own.

    Returns:
        [n, query_heads, v_head_dim] in the query's dtype.
    """
    num, shared = len(query), query.shape[1] // keys.shape[1]
    keys, values = (some.to(query.dtype).repeat_interleave(shared, 1) for some in (keys, values))
    logits = torch.einsum("nhd,mhd->hnm", query, keys) * layer.scaling
    if layer.logit_cap:
        logits = layer.logit_cap * torch.tanh(logits / layer.logit_cap)
    if seen is None:
        seen = _seen(num, len(keys), layer.sliding_window_size)
    logits = logits.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        column = sinks.to(logits.dtype).view(-1, 1, 1).expand(-1, num, 1)
        logits = torch.cat([logits, column], -1)
    shares = logits.softmax(-1)[..., : len(keys)]
    return torch.einsum("hnm,mhd->nhd", shares, values)


def _seen(num: int, held: int, window: int) -> torch.Tensor:
    """[num, held] bool, which keys the last ``num`` tokens see; ``window`` keys before their own."""
    at = torch.arange(held - num, held)[:, None]
    keys = torch.arange(held)[None]
    seen = keys <= at
    return seen if window < 0 else seen & (keys >= at - window)
