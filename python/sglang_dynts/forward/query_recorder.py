"""The newest queries of every request, for policies that ask what these attend to."""

from collections.abc import Iterator

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from sgl_dynts.policies import LayerView
from sglang_dynts.boot.configuration import arguments
from sglang_dynts.boot.sliding_window import attention_layers, least_local_window

IN_FLIGHT = 2
"""Places that a forward in flight may write while older queries are read."""


class QueryRecorder:
    """Keeps each request's newest queries of every layer, RoPE applied, in a ring per row.

    ``queries`` is [layers, rows, ring, query heads, head_dim] in the model's dtype: for a model of
    28 layers and 3584 query channels in 16 bits 6.8 MB per row at 32 queries, which is why a server
    records only when asked to.
    """

    def __init__(self, layers: list[RadixAttention], num_rows: int, num_kept: int, dtype, device) -> None:
        self.layers = layers
        self.num_kept = num_kept
        self.ring_len = num_kept + IN_FLIGHT
        shape = (layers[0].tp_q_head_num, layers[0].qk_head_dim)
        self.queries = torch.zeros(
            len(layers), num_rows, self.ring_len, *shape, dtype=dtype, device=device
        )
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(self._recorder_of(index))

    def _recorder_of(self, index: int):
        def record(_layer, args) -> None:
            query, forward_batch = args[0], args[3]
            mode = forward_batch.forward_mode
            if mode.is_idle():
                return
            rows = forward_batch.req_pool_indices
            if not mode.is_decode():
                rows = self._rows_of_newest(forward_batch)
            num = rows.shape[0]
            places = forward_batch.positions[:num] % self.ring_len
            self.queries[index, rows, places] = query[:num].view(num, *self.queries.shape[-2:])

        return record

    def _rows_of_newest(self, forward_batch) -> torch.Tensor:
        """[num_tokens] int64 row of each token, 0 for those that a newer one would overwrite."""
        lens = forward_batch.extend_seq_lens
        total = forward_batch.extend_num_tokens
        rows = torch.repeat_interleave(forward_batch.req_pool_indices, lens, output_size=total)
        ends = torch.repeat_interleave(lens.cumsum(0), lens, output_size=total)
        from_end = ends - torch.arange(total, device=ends.device)
        return torch.where(from_end <= self.ring_len, rows, 0)

    def views(
        self, row: int, seq_len: int, local_window: int, slots: torch.Tensor, pool
    ) -> Iterator[LayerView]:
        """Yield what each layer's newest queries see, the newest token left out: it is in computation.

        Args:
            row: of the request.
            seq_len: tokens it has seen, that one included.
            local_window: its local window; queries are taken from inside it.
            slots: [window_len] int64, what it holds, that one included.
            pool: SGLang's KV pool.
        """
        num = max(1, min(self.num_kept, local_window - 1))
        places = [position % self.ring_len for position in range(seq_len - 1 - num, seq_len - 1)]
        for index, layer in enumerate(self.layers):
            keys = pool.get_key_buffer(layer.layer_id)[slots[:-1]]
            yield LayerView(self.queries[index, row, places], keys, layer.scaling)


def create_recorder(model_runner, num_rows: int) -> QueryRecorder | None:
    """Start recording on a model runner if the server was asked to.

    Raises:
        ValueError: what its layers attend to cannot be read from queries and the pool's keys.
    """
    num_kept = arguments().dynts_observe_queries
    if not num_kept:
        return None
    if model_runner.use_mla_backend or least_local_window(model_runner):
        what = "latent (MLA)" if model_runner.use_mla_backend else "sliding-window"
        raise ValueError(
            f"--dynts-observe-queries {num_kept}: attention of layers with {what} attention is not "
            "read; give 0, and a policy that reads none"
        )
    layers = attention_layers(model_runner)
    return QueryRecorder(layers, num_rows, num_kept, model_runner.dtype, model_runner.device)
