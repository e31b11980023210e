"""Importance targets of the thinking tokens of one trace, for models of Hugging Face's library.

Nothing here holds a matrix of all rows of attention. With s tokens, `answer` needs memory for a chunk
of rows times s; `deletion` for one per head; `future` also for the queries and keys of all layers;
`gradient` for one backward pass. A model whose attention has soft caps or sinks attends by its own
file's code, which does hold such a matrix per layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sgl_dynts.training.attention_rows import Attended, Recorder, recording_attention, row_chunks
from sgl_dynts.training.deletion import deletion_effects, entering_sizes
from sgl_dynts.training.targets import far_attention


@dataclass(frozen=True)
class TraceSpans:
    """Where the parts of a trace of `length` tokens are.

    ``thinking_start`` is the first thinking token, ``thinking_end`` the end marker; what follows it
    is the answer.
    """

    thinking_start: int
    thinking_end: int
    length: int

    def __post_init__(self) -> None:
        """Refuse spans without thinking or answer.

        Raises:
            ValueError: says which field.
        """
        if not 0 <= self.thinking_start < self.thinking_end:
            raise ValueError(
                f"thinking_start={self.thinking_start}, thinking_end={self.thinking_end}: "
                "the trace has no thinking token; leave it out"
            )
        if self.thinking_end + 1 >= self.length:
            raise ValueError(
                f"thinking_end={self.thinking_end}, length={self.length}: "
                "nothing follows the end of thinking; leave the trace out"
            )

    @property
    def thinking(self) -> slice:
        """The tokens that a predictor is trained on."""
        return slice(self.thinking_start, self.thinking_end)

    @property
    def answer_start(self) -> int:
        """The first token after the end marker."""
        return self.thinking_end + 1


@dataclass(frozen=True)
class Importance:
    """Of n thinking tokens: ``hidden`` [n, d], states after the final norm, ``targets`` [n] float32."""

    hidden: Tensor
    targets: Tensor


def answer_importance(model: PreTrainedModel, ids: Tensor, spans: TraceSpans) -> Importance:
    """Return how much the answer reads each thinking token: mean over layers, heads, answer rows.

    Source: the DynTS paper, importance of thinking tokens. The diagonal is zeroed there; no answer
    row has its own column among the thinking tokens, so that changes nothing here.

    Args:
        model: causal LM, in the dtype to compute in.
        ids: [s] int64, question, thinking and answer.
        spans: of `ids`.

    Raises:
        ValueError: no layer attends in a way that can be recorded, or the trace is longer than the model.
    """
    recorder = _AnswerRows(spans)
    hidden = _forward(model, ids, recorder)
    return Importance(hidden[spans.thinking], recorder.total[spans.thinking] / recorder.num_layers)


def future_importance(
    model: PreTrainedModel, ids: Tensor, spans: TraceSpans, distance: int
) -> Importance:
    """Return the most that any token further than `distance` on reads each thinking token.

    The reader may be a thinking or an answer token; attention is the mean over layers and heads.
    Arguments and errors are those of :func:`answer_importance`.
    """
    recorder = _AllLayers()
    hidden = _forward(model, ids, recorder)
    targets = torch.zeros(spans.length, device=ids.device)
    for rows in row_chunks(spans.thinking_start, spans.length):
        attention = sum(layer.mean_rows(rows) for layer in recorder.layers)
        mean = torch.as_tensor(attention) / len(recorder.layers)
        targets = targets.maximum(far_attention(mean, distance, rows.start))
    return Importance(hidden[spans.thinking], targets[spans.thinking])


def deletion_importance(
    model: PreTrainedModel, ids: Tensor, spans: TraceSpans, distance: int = 0
) -> Importance:
    """Return how much the model's states change without each thinking token, for those who read it.

    The sum over layers, heads and tokens further than `distance` on of the squared change of a head's
    output, as a share of the state that it is added to; see :func:`deletion_effects`. Arguments and
    errors are those of :func:`answer_importance`.
    """
    with entering_sizes(model) as sizes:
        recorder = _Effects(spans, distance, sizes)
        hidden = _forward(model, ids, recorder)
    return Importance(hidden[spans.thinking], recorder.total[spans.thinking])


def gradient_importance(model: PreTrainedModel, ids: Tensor, spans: TraceSpans) -> Importance:
    """Return how much each thinking token moves the answer's log-probability, to first order.

    That is the absolute derivative of ``log p(answer | question, thinking)`` by a factor at the token's
    embedding, ``|<gradient, embedding>|`` (gradient times input), from one backward pass. Arguments
    and errors are those of :func:`answer_importance`.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError("the model has no output embeddings; load it as a causal LM")
    embedded = model.get_input_embeddings()(ids[None]).detach().requires_grad_()
    with recording_attention(model):
        _check_length(model, len(ids))
        hidden = model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state[0]
    logits = head(hidden[spans.answer_start - 1 : -1])
    likelihood = -torch.nn.functional.cross_entropy(
        logits.float(), ids[spans.answer_start :], reduction="sum"
    )
    (gradient,) = torch.autograd.grad(likelihood, embedded)
    targets = (gradient * embedded).detach()[0].float().sum(-1).abs()
    return Importance(hidden.detach()[spans.thinking], targets[spans.thinking])


class _AnswerRows:
    """Sums up, over layers, the mean of the answer's rows: ``total`` [s]."""

    def __init__(self, spans: TraceSpans) -> None:
        self.spans = spans
        self.total = torch.zeros(spans.length)
        self.num_layers = 0

    def record(self, attended: Attended) -> None:
        first, last = self.spans.answer_start, self.spans.length
        self.total = self.total.to(attended.query.device)
        for rows in row_chunks(first, last):
            self.total += attended.mean_rows(rows).sum(0) / (last - first)
        self.num_layers += 1


class _AllLayers:
    """Keeps every layer, since a maximum of means needs all of them at once."""

    def __init__(self) -> None:
        self.layers: list[Attended] = []

    def record(self, attended: Attended) -> None:
        self.layers.append(attended)


class _Effects:
    """Sums up, over layers, what would change without each token: ``total`` [s]."""

    def __init__(self, spans: TraceSpans, distance: int, sizes: list[Tensor]) -> None:
        self.rows = spans.thinking_start, spans.length
        self.distance = distance
        self.sizes = sizes
        self.total = torch.zeros(spans.length)

    def record(self, attended: Attended) -> None:
        self.total = self.total.to(attended.query.device)
        self.total += deletion_effects(attended, self.sizes[-1], *self.rows, self.distance)


@torch.no_grad()
def _forward(model: PreTrainedModel, ids: Tensor, recorder: Recorder) -> Tensor:
    """Return the states after the final norm [s, d], having shown the recorder each layer."""
    _check_length(model, len(ids))
    with recording_attention(model, recorder):
        output = model.base_model(input_ids=ids[None], use_cache=False)
    return output.last_hidden_state[0]


def _check_length(model: PreTrainedModel, length: int) -> None:
    longest = model.config.get_text_config().max_position_embeddings
    if length > longest:
        raise ValueError(
            f"a trace of {length} tokens is longer than the model's max_position_embeddings={longest}; "
            "leave it out or shorten the generation's max_new_tokens"
        )
