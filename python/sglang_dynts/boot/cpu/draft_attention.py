"""Attention of drafts on the host CPU: each token sees what is committed, and its own branch alone."""

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from sglang_dynts.boot.cpu.attention import HostCpuAttention, attend


class DraftingAttention(HostCpuAttention):
    """What a model attends with, also where it verifies drafts or a draft reads what was accepted."""

    def forward_extend(
        self, q, k, v, layer: RadixAttention, forward_batch, save_kv_cache=True, sinks=None, **kwargs
    ) -> torch.Tensor:
        """Attention of a prefill's new tokens, or of drafts: [num_tokens, query_heads * v_head_dim]."""
        mode = forward_batch.forward_mode
        num_tokens = len(q) // max(1, len(forward_batch.seq_lens))
        if mode.is_target_verify():
            lens, mask = forward_batch.seq_lens, forward_batch.spec_info.custom_mask
        elif mode.is_draft_extend_v2():
            lens, mask = forward_batch.seq_lens - num_tokens, None
        else:
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache, sinks, **kwargs)
        self._store(layer, forward_batch, k, v)
        outputs, read = [], 0
        queries = q.view(len(lens), num_tokens, layer.tp_q_head_num, layer.qk_head_dim)
        for row, length, query in zip(
            forward_batch.req_pool_indices.tolist(), lens.tolist(), queries, strict=True
        ):
            width = length + num_tokens
            sees = torch.ones(num_tokens, width, dtype=torch.bool).tril(length)
            told = None if mask is None else mask[read : read + num_tokens * width]
            if told is not None and len(told):  # nothing is told of rows that only fill a batch
                sees, read = told.view(num_tokens, width).bool(), read + num_tokens * width
            sees = in_window(sees, length, layer.sliding_window_size)
            outputs.append(self._attend_to(self._slots(row, 0, width), query, layer, sinks, sees))
        return torch.cat(outputs).view(len(q), -1)

    def _slots(self, row: int, start: int, end: int) -> torch.Tensor:
        assert self.req_to_token_pool is not None
        return self.req_to_token_pool.req_to_token[row, start:end]

    def _attend_to(self, slots, query, layer: RadixAttention, sinks=None, sees=None) -> torch.Tensor:
        """Attend from [n, heads, head_dim] queries to the slots that they see; as many outputs."""
        pool, places = self.token_to_kv_pool, self._places(slots, layer)
        keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
        return attend(query, keys[places], values[places], layer, sinks, sees)


def in_window(sees: torch.Tensor, length: int, window: int) -> torch.Tensor:
    """Hide from a draft's tokens what is out of their layer's sliding window.

    Args:
        sees: [n, length + n] bool, what each token sees of the window and of the draft, itself included.
        length: of the window.
        window: tokens before its own that a token sees, less than 0 for all.
    """
    if window < 0:
        return sees
    own = sees[:, length:].sum(1) + length - 1  # its position: the branch up to it is all it sees there
    return sees & (torch.cat((torch.arange(length), own)) >= own[:, None] - window)


class DraftStepAttention(DraftingAttention):
    """Attention of one step of a draft: what is committed, and the steps before it on the same branch."""

    def __init__(self, model_runner, step: int, num_steps: int) -> None:
        super().__init__(model_runner)
        self.step, self.num_steps = step, num_steps

    def forward_decode(
        self, q, k, v, layer: RadixAttention, forward_batch, save_kv_cache=True, sinks=None, **_kwargs
    ) -> torch.Tensor:
        """Write this step's K and V, and attend: [requests * branches, heads * v_head_dim]."""
        self._store(layer, forward_batch, k, v)
        rows, lens = forward_batch.req_pool_indices.tolist(), forward_batch.seq_lens.tolist()
        queries = q.view(-1, 1, layer.tp_q_head_num, layer.qk_head_dim)
        num_branches = len(queries) // len(rows)
        outputs = []
        for index, query in enumerate(queries):
            row, length = rows[index // num_branches], lens[index // num_branches]
            first = length + index % num_branches * self.num_steps
            branch = self._slots(row, first, first + self.step + 1)
            slots = torch.cat((self._slots(row, 0, length), branch))
            outputs.append(self._attend_to(slots, query, layer, sinks))
        return torch.cat(outputs).view(len(q), -1)


class DraftSteps:
    """The attention of all steps of a draft, as SGLang's worker asks for it."""

    needs_cpu_seq_lens = True

    def __init__(self, model_runner, num_steps: int) -> None:
        self.attn_backends = [DraftStepAttention(model_runner, i, num_steps) for i in range(num_steps)]

    def init_forward_metadata(self, _forward_batch) -> None:
        """Prepare nothing: every step reads the rows itself."""
