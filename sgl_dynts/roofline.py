"""How long a GPU takes: seconds of a decode step, a prefill and a compaction round; no tensors.

The roofline model (Williams, Waterman and Patterson, 2009): work takes as long as its memory traffic or
its arithmetic, whichever is longer. Traffic counts what must be read once: weights, and the keys and
values of every token that is attended to. Weights and attention follow each other in a step, so each has
its own longer side. Sampling, norms and launches come on top: seconds that were fitted to measured steps.
"""

from dataclasses import dataclass

BYTES_PER_VALUE = 2
"""bfloat16, of weights, keys and values alike."""

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
class ModelShape:
    """A dense transformer's sizes, as its ``config.json`` has them.

    ``num_parameters`` counts all weights; ``vocab_size * hidden_size`` of them are the input
    embedding, of which a step reads next to nothing, and as many the output head.
    """

    name: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    num_parameters: float

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of one token's keys and values, all layers."""
        return 2 * BYTES_PER_VALUE * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def embedding_parameters(self) -> int:
        """Weights of the input embedding, and of the output head."""
        return self.vocab_size * self.hidden_size

    @property
    def weight_bytes(self) -> float:
        """Bytes of memory that the weights take."""
        return BYTES_PER_VALUE * self.num_parameters

    @property
    def read_bytes(self) -> float:
        """Bytes of weights that every step reads: all but the input embedding."""
        return BYTES_PER_VALUE * (self.num_parameters - self.embedding_parameters)

    @property
    def predictor_bytes(self) -> int:
        """Bytes of an importance predictor d -> 2d -> d/2 -> 1 without biases (the paper's sizes)."""
        d = self.hidden_size
        return BYTES_PER_VALUE * (2 * d * d + 2 * d * d // 2 + d // 2)

    def pool_tokens(self, gpu: Gpu) -> int:
        """Tokens whose keys and values fit beside the weights."""
        room = gpu.pool_fraction * gpu.memory_bytes - self.weight_bytes - gpu.reserved_bytes
        return int(room / self.kv_token_bytes)

    def attention_flops(self, num_pairs: float) -> float:
        """FLOPs of attention over this many (query, key) pairs: two products of head_dim each."""
        return 4 * self.num_layers * self.num_heads * self.head_dim * num_pairs


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
        kv_tokens: tokens whose keys and values are read, over all requests.
        predictor: whether each new token is scored in the same step.
    """
    extra = shape.predictor_bytes if predictor else 0
    weights = shape.read_bytes + extra
    linear = gpu.seconds(weights, batch * weights)
    attention = gpu.seconds(kv_tokens * shape.kv_token_bytes, shape.attention_flops(kv_tokens))
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
    head_bytes = BYTES_PER_VALUE * shape.embedding_parameters
    flops = new_tokens * (shape.read_bytes - head_bytes + extra) + batch * head_bytes
    num_bytes = shape.read_bytes + extra + new_tokens * shape.kv_token_bytes
    return gpu.seconds(num_bytes, flops + shape.attention_flops(attended_pairs))


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
