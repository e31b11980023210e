"""How long a GPU takes: seconds of a decode step, a prefill and a compaction round; no tensors.

The roofline model (Williams, Waterman and Patterson, 2009): work takes as long as its memory traffic or
its arithmetic, whichever is longer. Traffic counts what must be read once: weights, and the keys and
values of every token that is attended to. Weights and attention follow each other in a step, so each has
its own longer side. Sampling, norms and launches come on top: seconds that were fitted to measured steps
of a dense model. Left out are what GPUs tell each other under tensor parallelism, and the arithmetic of
recurrent layers, whose states are read and written once per step. Arithmetic has the speed of bfloat16,
also with weights of fewer bits.
"""

from dataclasses import dataclass

BYTES_PER_VALUE = 2
"""bfloat16, of keys and values, and of weights unless a checkpoint ships fewer bits."""

FLOPS_PER_PARAMETER = 2
"""A product and a sum for each token."""

SLIDE_INTERVAL = 128
"""Tokens that SGLang lets pass before it slides a window in a KV pool of its own
(``SGLANG_SWA_EVICTION_INTERVAL``)."""

COMPACTION_BYTES_PER_TOKEN = 64
"""A slot read and written (8), a score gathered as one 32-byte sector, and the passes of a top-k."""

COMPACTION_LAUNCH_SECONDS = 60e-6
"""At most 12 launches and small copies of 5 µs, whatever the number of requests: the rows as they were,
the plan's sizes, one or two kernels, the batch's lengths, the pool's free list."""

HEAD_CHOICE_BYTES = 400
"""Of each candidate in each layer and KV head: two sorts by radix, of a float32 and of an int64, each
with its int64 index, read and written in every pass of 8 bits; a little more for what is marked."""

HEAD_CHOICE_LAUNCH_SECONDS = 300e-6
"""At most 60 launches of 5 µs, for each request."""

HEAD_JUDGEMENT_LAUNCH_SECONDS = 100e-6
"""At most 20: mean rotations, the kernel, a softmax, a mean and products of what it says."""

HEAD_MOVES_LAUNCH_SECONDS = 10e-6
"""Two: of keys and values, and of what else is held of every token and head."""


@dataclass(frozen=True)
class Gpu:
    """One GPU: its data sheet, and the shares of it that well-made kernels reach.

    ``bandwidth`` in bytes/s, ``peak_flops`` in dense bfloat16 FLOP/s, ``memory_bytes`` usable.
    ``pool_fraction`` of the memory holds weights, keys and values; ``reserved_bytes`` of that are
    activations and graphs. ``step_seconds`` and ``request_seconds`` are what a decode step takes beside
    weights and attention, whole and for each request; fitted to five steps of an H200, from 4.7 ms with
    1 request to 12.0 ms with 262 (``gpu.json`` and ``whole_pool.json`` in ``benchmark/results``).
    """

    name: str
    bandwidth: float
    peak_flops: float
    memory_bytes: float
    bandwidth_efficiency: float = 0.82
    flops_efficiency: float = 0.6
    pool_fraction: float = 0.88
    reserved_bytes: float = 4e9
    step_seconds: float = 1.1e-3
    request_seconds: float = 6e-6

    def seconds(self, num_bytes: float, flops: float) -> float:
        """Time of a step with this traffic and this arithmetic: the longer of the two."""
        return max(
            num_bytes / (self.bandwidth * self.bandwidth_efficiency),
            flops / (self.peak_flops * self.flops_efficiency),
        )


@dataclass(frozen=True)
class Experts:
    """The routed experts of all layers, of which a token reads ``active`` of ``num`` in each.

    ``num_parameters`` counts them all; ``value_bytes`` are those of one parameter, scales included.
    """

    num: int
    active: int
    num_parameters: float
    value_bytes: float

    def read_bytes(self, num_tokens: float) -> float:
        """Bytes that so many tokens read, if each chooses by itself and no expert is preferred."""
        share = 1 - (1 - self.active / self.num) ** num_tokens
        return share * self.value_bytes * self.num_parameters

    @property
    def active_parameters(self) -> float:
        """Weights that one token reads."""
        return self.num_parameters * self.active / self.num


NO_EXPERTS = Experts(1, 1, 0, BYTES_PER_VALUE)


@dataclass(frozen=True)
class Pools:
    """What SGLang's pools hold beside the weights of one GPU.

    ``tokens`` of layers of full attention or of latents, ``sliding_tokens`` of sliding layers,
    ``states`` of recurrent ones.
    """

    tokens: int
    sliding_tokens: int = 0
    states: int = 0

    def around(self, tokens: int) -> "Pools":
        """Return pools of the same proportions with so many tokens."""
        share = tokens / self.tokens
        return Pools(tokens, int(share * self.sliding_tokens), int(share * self.states))


@dataclass(frozen=True)
class ModelShape:
    """A transformer's sizes, as its ``config.json`` has them; all that is derived is of one GPU.

    ``num_parameters`` counts all weights; ``vocab_size * hidden_size`` of them are the input
    embedding, of which a step reads next to nothing, and as many the output head. Other weights take
    ``value_bytes`` each, but for ``experts``.

    Of the layers, ``sliding_layers`` see the newest ``sliding_window`` tokens, in a KV pool of their
    own; ``recurrent_layers`` keep states of ``state_bytes`` together, of which a request takes
    ``num_states``. Compactions drop tokens from the others alone. ``latent_widths`` are those of a key
    and of a value in latent attention, where the key is all that is stored.

    Weights, heads and states are split over ``tp_size`` GPUs. Latents are not: each GPU holds them all.
    """

    name: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    num_parameters: float
    value_bytes: float = BYTES_PER_VALUE
    experts: Experts = NO_EXPERTS
    sliding_layers: int = 0
    sliding_window: int = 0
    recurrent_layers: int = 0
    state_bytes: int = 0
    num_states: int = 1
    latent_widths: tuple[int, int] | None = None
    tp_size: int = 1

    @property
    def full_layers(self) -> int:
        """Layers that attend to every token a request holds."""
        return self.num_layers - self.sliding_layers - self.recurrent_layers

    @property
    def layer_token_bytes(self) -> int:
        """Bytes of one token in one layer of attention."""
        if self.latent_widths is not None:
            return BYTES_PER_VALUE * self.latent_widths[0]
        kv_heads = -(-self.num_kv_heads // self.tp_size)
        return 2 * BYTES_PER_VALUE * kv_heads * self.head_dim

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of one token in all layers from which a compaction drops it."""
        return self.full_layers * self.layer_token_bytes

    @property
    def sliding_token_bytes(self) -> int:
        """Bytes of one token in all sliding layers."""
        return self.sliding_layers * self.layer_token_bytes

    @property
    def fixed_bytes(self) -> float:
        """Most bytes of a request that no compaction frees: sliding windows and states."""
        window = self.sliding_window + SLIDE_INTERVAL
        return window * self.sliding_token_bytes + self.num_states * self.state_bytes / self.tp_size

    @property
    def fixed_traffic_bytes(self) -> float:
        """Bytes that a step reads of these, and writes of a state, for each request."""
        return self.sliding_window * self.sliding_token_bytes + 2 * self.state_bytes / self.tp_size

    @property
    def embedding_parameters(self) -> int:
        """Weights of the input embedding, and of the output head."""
        return self.vocab_size * self.hidden_size

    @property
    def weight_bytes(self) -> float:
        """Bytes of memory that the weights take."""
        experts = self.experts.value_bytes * self.experts.num_parameters
        return self.read_bytes + (BYTES_PER_VALUE * self.embedding_parameters + experts) / self.tp_size

    @property
    def read_bytes(self) -> float:
        """Bytes of weights that every step reads: all but the input embedding and routed experts."""
        inner = self.num_parameters - 2 * self.embedding_parameters - self.experts.num_parameters
        whole = BYTES_PER_VALUE * self.embedding_parameters + self.value_bytes * inner
        return whole / self.tp_size

    @property
    def token_flops(self) -> float:
        """FLOPs of the weights for one token, the output head's included."""
        idle = self.experts.num_parameters - self.experts.active_parameters
        active = self.num_parameters - self.embedding_parameters - idle
        return FLOPS_PER_PARAMETER * active / self.tp_size

    @property
    def predictor_bytes(self) -> int:
        """Bytes of an importance predictor d -> 2d -> d/2 -> 1 without biases (the paper's sizes)."""
        d = self.hidden_size
        return BYTES_PER_VALUE * (2 * d * d + 2 * d * d // 2 + d // 2)

    def weight_traffic(self, num_tokens: float, *, predictor: bool = False) -> float:
        """Bytes of weights that a forward of so many tokens reads, with the predictor's or without."""
        experts = self.experts.read_bytes(num_tokens) / self.tp_size
        return self.read_bytes + experts + (self.predictor_bytes if predictor else 0)

    def cache_traffic(self, batch: float, kv_tokens: float) -> float:
        """Bytes of keys, values and states that a decode step reads and writes.

        Args:
            batch: requests, each longer than a sliding window.
            kv_tokens: tokens that layers of full attention read, over all requests.
        """
        return kv_tokens * self.kv_token_bytes + batch * self.fixed_traffic_bytes

    def pool_tokens(self, gpu: Gpu, sliding_share: float = 0) -> int:
        """Tokens whose keys and values fit beside the weights.

        Args:
            gpu: whose memory it is.
            sliding_share: tokens of sliding layers that the memory holds for each of these.
        """
        return self.pools(gpu, sliding_share).tokens

    def pools(self, gpu: Gpu, sliding_share: float = 0, state_ratio: float = 0) -> Pools:
        """Divide the memory beside the weights as SGLang does; one state more is for padding.

        Args:
            gpu: whose memory it is.
            sliding_share: ``--swa-full-tokens-ratio``, tokens of sliding layers for each of the others.
            state_ratio: ``--mamba-full-memory-ratio``, bytes of states for each of keys and values.
        """
        room = gpu.pool_fraction * gpu.memory_bytes - self.weight_bytes - gpu.reserved_bytes
        state = self.state_bytes / self.tp_size
        states = int(room * state_ratio / (1 + state_ratio) / state) - 1 if state_ratio else 0
        room -= (states + 1) * state if states else 0
        tokens = int(room / (self.kv_token_bytes + sliding_share * self.sliding_token_bytes))
        return Pools(tokens, int(sliding_share * tokens), states)

    def even_state_ratio(self, held_len: float) -> float:
        """``--mamba-full-memory-ratio`` with which states and tokens of such requests run out together.

        Args:
            held_len: tokens that a request holds in layers of full attention; 0 states give 0.
        """
        return self.num_states * self.state_bytes / self.tp_size / (held_len * self.kv_token_bytes)

    def requests_in(self, pools: Pools, held_len: float) -> int:
        """Requests that every pool has room for; at least 1.

        Args:
            pools: of this model.
            held_len: tokens that a request holds in layers of full attention.
        """
        shares = [pools.tokens / held_len]
        if self.sliding_layers:
            shares.append(pools.sliding_tokens / (self.sliding_window + SLIDE_INTERVAL))
        if self.recurrent_layers:
            shares.append(pools.states / self.num_states)
        return max(1, int(min(shares)))

    def pool_share(self, held_len: float) -> float:
        """Tokens of the pool that a request takes, what has a fixed size counted as tokens.

        This is as if SGLang's flags divided the memory between its pools just as the requests need it.

        Args:
            held_len: tokens that it holds in layers of full attention.
        """
        return held_len + self.fixed_bytes / self.kv_token_bytes

    def attention_flops(self, num_pairs: float, num_sliding_pairs: float = 0) -> float:
        """FLOPs of attention over this many (query, key) pairs: one product with a key, one with a value.

        Args:
            num_pairs: that layers of full attention look at.
            num_sliding_pairs: that sliding layers look at.
        """
        widths = sum(self.latent_widths or (self.head_dim, self.head_dim))
        heads = -(-self.num_heads // self.tp_size)
        pair = FLOPS_PER_PARAMETER * widths * heads
        return pair * self.full_layers * num_pairs + pair * self.sliding_layers * num_sliding_pairs


H200 = Gpu("H200", bandwidth=4.8e12, peak_flops=989e12, memory_bytes=139 * 2**30)
H100 = Gpu("H100", bandwidth=3.35e12, peak_flops=989e12, memory_bytes=79 * 2**30)
"""The SXM module."""
GPUS = {"h200": H200, "h100": H100}

QWEN_7B = ModelShape("qwen-7b", 28, 28, 4, 128, 3584, 152064, 7.616e9)
"""Qwen2.5-7B and what was distilled into it."""
LLAMA_8B = ModelShape("llama-8b", 32, 32, 8, 128, 4096, 128256, 8.030e9)
"""Llama-3.1-8B and what was distilled into it."""
SHAPES = {shape.name: shape for shape in (QWEN_7B, LLAMA_8B)}


def decode_seconds(
    gpu: Gpu, shape: ModelShape, batch: int, kv_tokens: float, *, predictor: bool = False
) -> float:
    """Time of one decode step.

    Args:
        gpu: what it runs on.
        shape: of the served model.
        batch: requests that each compute one token.
        kv_tokens: tokens whose keys and values layers of full attention read, over all requests.
        predictor: whether each new token is scored in the same step.
    """
    extra = shape.predictor_bytes if predictor else 0
    weights = shape.weight_traffic(batch, predictor=predictor)
    linear = gpu.seconds(weights, batch * (shape.token_flops + extra))
    pairs = shape.attention_flops(kv_tokens, batch * shape.sliding_window)
    attention = gpu.seconds(shape.cache_traffic(batch, kv_tokens), pairs)
    return linear + attention + gpu.step_seconds + batch * gpu.request_seconds


def prefill_seconds(
    gpu: Gpu,
    shape: ModelShape,
    new_tokens: int,
    attended_pairs: float,
    *,
    batch: int = 1,
    predictor: bool = False,
) -> float:
    """Time of one prefill of several requests together.

    Args:
        gpu: what it runs on.
        shape: of the served model.
        new_tokens: tokens computed.
        attended_pairs: (query, key) pairs, see :func:`causal_pairs`.
        batch: requests, each of which needs the output head once.
        predictor: whether each new token is scored in the same step.
    """
    extra = shape.predictor_bytes if predictor else 0
    head = FLOPS_PER_PARAMETER * shape.embedding_parameters / shape.tp_size
    flops = new_tokens * (shape.token_flops - head + extra) + batch * head
    written = new_tokens * (shape.kv_token_bytes + shape.sliding_token_bytes)
    num_bytes = shape.weight_traffic(new_tokens, predictor=predictor) + written
    sliding_pairs = min(attended_pairs, new_tokens * shape.sliding_window)
    return gpu.seconds(num_bytes, flops + shape.attention_flops(attended_pairs, sliding_pairs))


def causal_pairs(prefix_len: int, new_len: int) -> int:
    """(query, key) pairs of ``new_len`` tokens that follow ``prefix_len`` cached ones."""
    return new_len * prefix_len + new_len * (new_len + 1) // 2


def compaction_seconds(gpu: Gpu, window_tokens: int) -> float:
    """Time of one compaction round over windows of this many tokens together, 0 for none."""
    if not window_tokens:
        return 0.0
    return COMPACTION_LAUNCH_SECONDS + gpu.seconds(COMPACTION_BYTES_PER_TOKEN * window_tokens, 0)


def head_judgement_seconds(gpu: Gpu, shape: ModelShape, held_tokens: int) -> float:
    """Time in which one request's held tokens are judged by the attention that they can expect."""
    num_bytes = held_tokens * shape.kv_token_bytes
    products = 3 * (shape.head_dim // 2) ** 2 * held_tokens * shape.num_layers * shape.num_heads
    return HEAD_JUDGEMENT_LAUNCH_SECONDS + gpu.seconds(num_bytes, 2 * products)


def head_choice_seconds(gpu: Gpu, shape: ModelShape, candidates: int) -> float:
    """Time in which all KV heads choose which of one request's candidates they keep."""
    num_bytes = HEAD_CHOICE_BYTES * candidates * shape.num_layers * shape.num_kv_heads
    return HEAD_CHOICE_LAUNCH_SECONDS + gpu.seconds(num_bytes, 0)


def head_moves_seconds(gpu: Gpu, shape: ModelShape, kept_tokens: int) -> float:
    """Most time in which all KV heads move what they keep of one request, each token read and written."""
    return HEAD_MOVES_LAUNCH_SECONDS + gpu.seconds(2 * kept_tokens * shape.kv_token_bytes, 0)


def mean_full_len(question_len: int, output_len: int) -> float:
    """Tokens a request holds with the full cache, averaged over its generation."""
    return question_len + output_len / 2


def mean_compacted_len(question_len: int, output_len: int, budget: int, retained: int) -> float:
    """Tokens a request holds with DynTS, averaged over its generation.

    It grows from its question to the budget, then saws between ``retained`` and the budget.
    """
    ramp = min(output_len, budget - question_len)
    grown = question_len + ramp
    saws = output_len - ramp
    return (ramp * (question_len + grown) / 2 + saws * (retained + budget) / 2) / output_len


def speedup_at(gpu: Gpu, shape: ModelShape, batch: int, full_len: float, compacted_len: float) -> float:
    """Full cache's time per decode step over DynTS's at the same batch, lengths as means."""
    full = decode_seconds(gpu, shape, batch, batch * full_len)
    return full / decode_seconds(gpu, shape, batch, batch * compacted_len, predictor=True)


def break_even_tokens(shape: ModelShape) -> float:
    """KV tokens a step must read less, over all requests, to pay for the predictor's weights."""
    return shape.predictor_bytes / shape.kv_token_bytes
