"""The attention that every token has got, for requests whose policy asks for all of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from sgl_dynts.policies import LayerView, received_from_newest
from sgl_dynts.transfer import to_device

TOKENS_AT_ONCE = 1 << 16
"""Bounds what the keys of a block take in float32: 134 MB with 4 KV heads of 128."""


@dataclass(frozen=True)
class Counted:
    """One request of a forward: which of the forward's queries count, and what it holds.

    The queries are those of the last of the ``held`` tokens in the request's ``row``.
    """

    queries: slice
    row: int
    held: int

    @property
    def num(self) -> int:
        """How many queries count."""
        return self.queries.stop - self.queries.start


class Many:
    """The attention of a request's several queries, as in a prefill."""

    def __init__(self, one: Counted, req_to_token: torch.Tensor) -> None:
        self.queries = one.queries
        self.slots = req_to_token[one.row, : one.held].long()
        self.new_slots = self.slots[-one.num :]

    def received(
        self, query: torch.Tensor, keys: torch.Tensor, scaling: float, *, by_head: bool
    ) -> torch.Tensor:
        """Return [held] float32, what each of `slots` gets in one layer; by head [held, kv_heads].

        Args:
            query: [num_tokens, query_heads, head_dim] of the whole forward.
            keys: [num_slots, kv_heads, head_dim] of the layer's pool.
            scaling: the layer's.
            by_head: whether KV heads are told apart.
        """
        view = LayerView(query[self.queries], keys[self.slots], scaling)
        return view.received_by_head().T if by_head else view.received()


class Block:
    """The attention of many requests' one query each, as in a decode; padding is slot 0, nobody's."""

    def __init__(self, some: Sequence[Counted], req_to_token: torch.Tensor) -> None:
        device = req_to_token.device
        facts = torch.tensor([(one.queries.start, one.row, one.held) for one in some])
        queries, rows, held = to_device(facts.T.contiguous(), device)
        width = max(one.held for one in some)
        self.queries = queries
        self.is_held = torch.arange(width, device=device) < held[:, None]
        self.slots = torch.where(self.is_held, req_to_token[rows, :width], 0).long()
        self.new_slots = self.slots.gather(1, held[:, None] - 1).flatten()

    def received(
        self, query: torch.Tensor, keys: torch.Tensor, scaling: float, *, by_head: bool
    ) -> torch.Tensor:
        """Return [b, width] float32, by head [b, width, kv_heads]; arguments as of `Many`."""
        given = (query[self.queries], keys[self.slots], self.is_held, scaling)
        received = received_from_newest(*given, by_head=by_head)
        return received.transpose(1, 2) if by_head else received


class ReceivedAttention:
    """Adds up the attention that the tokens of counted requests get, query by query.

    ``received`` is [num_slots] float32, for each KV slot the sum over all queries since its token was
    computed of the mean over layers and heads. No kernel gives its attention out, so each layer's is
    computed once more after it, in plain torch from the K in the pool. Only tokens after the question
    are counted as queries: none before them sees a token that is ever judged.

    A forward and a compaction meet in the sums alone, where a compaction waits on the device for the
    forward in flight. With ``by_head`` they are kept for each layer and KV head, ``by_head`` being one
    [num_slots, kv_heads] float32 for each layer: so long as a request has one set of tokens the two ways
    agree, and with a set per head the sums move as K and V do.
    """

    def __init__(
        self,
        layers: Sequence[RadixAttention],
        num_slots: int,
        kv_pool,
        req_to_token: torch.Tensor,
        *,
        by_head: bool = False,
    ) -> None:
        device = req_to_token.device
        self.received = torch.zeros(0 if by_head else num_slots, device=device)
        heads = [layer.tp_k_head_num for layer in layers] if by_head else []
        self.by_head = [torch.zeros(num_slots, num, device=device) for num in heads]
        self._places = {layer.layer_id: place for place, layer in enumerate(layers)}
        self.kv_pool = kv_pool
        self.req_to_token = req_to_token
        self._num_layers = len(layers)
        self._rids: list[str] = []
        self._counted: list[Many | Block] = []
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
        self._counted = list(self._group(self._find(forward_batch, rows)))
        self._rids = forward_batch.rids
        self._num_done = 0 if self._counted else self._num_layers
        for one in self._counted:
            for sums in self.by_head or [self.received]:
                sums.index_fill_(0, one.new_slots, 0.0)

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
                yield Counted(slice(end - num, end), row, held[index])

    def _group(self, counted: Iterable[Counted]) -> Iterator[Many | Block]:
        """Put the requests of one query each together; sorted, so that little of a block is padding."""
        by_length = sorted(counted, key=lambda one: one.held)
        block: list[Counted] = []
        for one in by_length:
            if one.num > 1:
                yield Many(one, self.req_to_token)
                continue
            if block and one.held * (len(block) + 1) > TOKENS_AT_ONCE:
                yield Block(block, self.req_to_token)
                block = []
            block.append(one)
        if block:
            yield Block(block, self.req_to_token)

    def _count(self, layer: RadixAttention, args, _output) -> None:
        """After a layer's attention, when the K of its new tokens is in the pool."""
        query, forward_batch = args[0], args[3]
        if not self._counted or forward_batch.rids is not self._rids:  # a warm-up is not announced
            return
        keys = self.kv_pool.get_key_buffer(layer.layer_id)
        query = query.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        for one in self._counted:
            received = one.received(query, keys, layer.scaling, by_head=bool(self.by_head))
            slots = one.slots.flatten()
            if self.by_head:
                sums = self.by_head[self._places[layer.layer_id]]
                sums.index_add_(0, slots, received.reshape(len(slots), -1))
            else:
                self.received.index_add_(0, slots, received.flatten() / self._num_layers)
        self._num_done += 1
        if self._num_done == self._num_layers and self._forward_done is not None:
            self._forward_done.record()

    def read(self, slots: torch.Tensor) -> torch.Tensor:
        """Return [n] float32, what the tokens in these slots have got; slots: [n] int64."""
        self._wait()
        if self.by_head:
            return self.read_by_head(slots).mean((0, 1))
        return self.received[slots]

    def read_by_head(self, slots: torch.Tensor) -> torch.Tensor:
        """Return [layers, kv_heads, n] float32, as :meth:`read`, where it is kept by head."""
        self._wait()
        return torch.stack([sums[slots].T for sums in self.by_head])

    def _wait(self) -> None:
        self._check_done()
        if self._forward_done is not None:
            torch.cuda.current_stream().wait_event(self._forward_done)

    def _check_done(self) -> None:
        assert self._num_done == self._num_layers, (
            f"{self._num_done=} of {self._num_layers} layers counted"
        )
