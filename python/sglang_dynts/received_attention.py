"""The attention that every token has got, for requests whose policy asks for all of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from sgl_dynts.policies import LayerView


@dataclass(frozen=True)
class Counted:
    """One request of a forward: which of the forward's queries count, and [held] int64, what it holds.

    The queries are those of the last tokens that it holds.
    """

    queries: slice
    slots: torch.Tensor


class ReceivedAttention:
    """Adds up the attention that the tokens of counted requests get, query by query.

    ``received`` is [num_slots] float32, for each KV slot the sum over all queries since its token was
    computed of the mean over layers and heads. No kernel gives its attention out, so each layer's is
    computed once more after it, in plain torch from the K in the pool. Only tokens after the question
    are counted as queries: none before them sees a token that is ever judged.

    A forward and a compaction meet in ``received`` alone, where a compaction waits on the device for the
    forward in flight. Slots move no K and V, so the sums stay where they are.
    """

    def __init__(
        self, layers: Sequence[RadixAttention], num_slots: int, kv_pool, req_to_token: torch.Tensor
    ) -> None:
        self.received = torch.zeros(num_slots, device=req_to_token.device)
        self.kv_pool = kv_pool
        self.req_to_token = req_to_token
        self._num_layers = len(layers)
        self._rids: list[str] = []
        self._counted: list[Counted] = []
        self._num_done = len(layers)
        self._forward_done = torch.cuda.Event() if req_to_token.is_cuda else None
        for layer in layers:
            layer.register_forward_hook(self._count)

    def begin(self, forward_batch, rows: Mapping[int, tuple[int, int]]) -> None:
        """Take note of whose attention the layers of a forward are to count; new tokens begin at 0.

        The slots are read now, before the forward: later its rows are the scheduler's again.

        Args:
            forward_batch: the forward; its layers may see a copy, with the same list of request ids.
            rows: row and length of question, by index in the batch, of the requests to count.
        """
        self._check_done()
        self._counted = list(self._find(forward_batch, rows))
        self._rids = forward_batch.rids
        self._num_done = 0 if self._counted else self._num_layers
        for one in self._counted:
            num = one.queries.stop - one.queries.start
            self.received.index_fill_(0, one.slots[-num:], 0.0)

    def _find(self, forward_batch, rows: Mapping[int, tuple[int, int]]) -> Iterator[Counted]:
        held = forward_batch.seq_lens_cpu.tolist()
        new = (
            [1] * len(held)
            if forward_batch.forward_mode.is_decode()
            else forward_batch.extend_seq_lens_cpu
        )
        end = 0
        for index, num_new in enumerate(new):
            end += num_new
            row, question_len = rows.get(index, (0, held[index]))
            num = min(num_new, held[index] - question_len)
            if num > 0:
                slots = self.req_to_token[row, : held[index]].long()
                yield Counted(slice(end - num, end), slots)

    def _count(self, layer: RadixAttention, args, _output) -> None:
        """After a layer's attention, when the K of its new tokens is in the pool."""
        query, forward_batch = args[0], args[3]
        if not self._counted or forward_batch.rids is not self._rids:  # a warm-up is not announced
            return
        keys = self.kv_pool.get_key_buffer(layer.layer_id)
        shape = (-1, layer.tp_q_head_num, layer.qk_head_dim)
        for one in self._counted:
            view = LayerView(query[one.queries].view(shape), keys[one.slots], layer.scaling)
            self.received[one.slots] += view.received() / self._num_layers
        self._num_done += 1
        if self._num_done == self._num_layers and self._forward_done is not None:
            self._forward_done.record()

    def read(self, slots: torch.Tensor) -> torch.Tensor:
        """Return [n] float32, what the tokens in these slots have got; slots: [n] int64."""
        self._check_done()
        if self._forward_done is not None:
            torch.cuda.current_stream().wait_event(self._forward_done)
        return self.received[slots]

    def _check_done(self) -> None:
        assert self._num_done == self._num_layers, (
            f"{self._num_done=} of {self._num_layers} layers counted"
        )
