"""From a model and traces, or plain texts, to states and targets on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sgl_dynts.tasks.json_lines import LineError
from sgl_dynts.training.attempts import why_none_is_right
from sgl_dynts.training.importance import (
    Importance,
    TraceSpans,
    answer_importance,
    deletion_importance,
    future_importance,
    gradient_importance,
)
from sgl_dynts.training.states import StateSettings, StateStore, TraceStates
from sgl_dynts.training.targets import TARGET_KINDS, WITH_DISTANCE
from sgl_dynts.training.texts import TASK, TextCut, Texts, text_traces
from sgl_dynts.training.trace_file import Trace, fingerprint, read_traces

LEAST_TOKENS = 2
"""A trace with fewer tokens that count has no order to learn."""


@dataclass(frozen=True)
class Target:
    """What a predictor is trained on; `distance` is of the kinds that have one."""

    kind: str
    distance: int = 0

    def __post_init__(self) -> None:
        """Refuse an unknown kind and a distance that cannot be.

        Raises:
            ValueError: naming the field, its value and a remedy.
        """
        if self.kind not in TARGET_KINDS:
            raise ValueError(f"target {self.kind!r} is unknown; choose of {', '.join(TARGET_KINDS)}")
        if (self.kind in WITH_DISTANCE) != (self.distance > 0):
            raise ValueError(
                f"distance={self.distance}: it must be above 0 for the targets "
                f"{' and '.join(WITH_DISTANCE)}, and 0 for others"
            )

    @property
    def name(self) -> str:
        """The target's name in a predictor's header."""
        return f"{self.kind}_{self.distance}" if self.distance else self.kind

    def importance(self, model: PreTrainedModel, ids: torch.Tensor, spans: TraceSpans) -> Importance:
        """Return states and targets of all thinking tokens; errors as in `importance.py`."""
        match self.kind:
            case "answer":
                return answer_importance(model, ids, spans)
            case "future":
                return future_importance(model, ids, spans, self.distance)
            case "deletion":
                return deletion_importance(model, ids, spans, self.distance)
            case _:
                return gradient_importance(model, ids, spans)

    def num_counted(self, spans: TraceSpans) -> int:
        """Return how many thinking tokens count, the first ones.

        Where there is a distance, those at the end have no reader far enough away: their targets say
        nothing about them.
        """
        has_distance = self.kind in WITH_DISTANCE
        with_reader = spans.length - self.distance - 1 if has_distance else spans.thinking_end
        return max(0, min(spans.thinking_end, with_reader) - spans.thinking_start)


@dataclass(frozen=True)
class Model:
    """A model: what of it decides states and targets, and the longest sequence it takes.

    ``tokenizer`` is the fingerprint of its vocabulary, None of a loaded model that names no place of its.
    """

    source: Path | PreTrainedModel
    name: str
    sha256: str
    dtype: torch.dtype
    max_len: int
    vocab_size: int
    tokenizer: str | None

    @classmethod
    def open(cls, source: Path | PreTrainedModel, dtype: torch.dtype | None = None) -> Model:
        """Read what is known of a model without loading it.

        Args:
            source: folder of a model, or one that is loaded.
            dtype: to compute in; default: the configuration's, or the one it is loaded in.

        Raises:
            ValueError: no Hugging Face model in the folder, a quantised one, or one is loaded in another
                dtype.
        """
        if isinstance(source, Path):
            config, place = AutoConfig.from_pretrained(_checked(source)), source
            _refuse_quantised(config, place)
            sha256 = _digest_of_files(source)
            own = getattr(torch, str(config.dtype or "float32").removeprefix("torch."))
        else:
            sha256, config, place = _digest_of_weights(source), source.config, source.name_or_path
            _refuse_quantised(config, place or config.model_type)
            own = source.dtype
            if dtype not in (None, own):
                raise ValueError(
                    f"dtype={dtype}: the model is loaded in {own}; convert it or leave dtype out"
                )
        return cls(
            source,
            Path(place).resolve().name if place else config.model_type,
            sha256,
            dtype or own,
            config.max_position_embeddings,
            config.vocab_size,
            fingerprint(AutoTokenizer.from_pretrained(place).get_vocab()) if place else None,
        )

    def load(self, device: torch.device | str) -> PreTrainedModel:
        """Load the model onto `device`, frozen; one that is loaded stays where it is."""
        if not isinstance(self.source, Path):
            return self.source.eval()
        model = AutoModelForCausalLM.from_pretrained(self.source, dtype=self.dtype)
        frozen = cast(torch.nn.Module, model).requires_grad_(False).eval()
        return cast(PreTrainedModel, frozen.to(device))

    def load_tokenizer(self) -> Any:
        """Load the model's tokenizer.

        Raises:
            ValueError: the model is loaded and names no place of it.
        """
        place = self.source if isinstance(self.source, Path) else self.source.name_or_path
        if not place:
            raise ValueError(
                "texts: the loaded model names no folder, so that its tokenizer is not known; give the "
                "model's folder, or load it with from_pretrained"
            )
        return AutoTokenizer.from_pretrained(place)

    def settings(self, target: Target) -> StateSettings:
        """Return what states of this model and targets of this kind depend on."""
        return StateSettings(self.sha256, str(self.dtype), target.kind, target.distance)


def usable_traces(
    source: Path | Iterable[Trace], model: Model, target: Target
) -> tuple[list[Trace], int]:
    """Return (right traces to train on, how many are too short for the target), all of them checked.

    Raises:
        LineError: a trace that cannot be used, another tokenizer, or no trace to train on.
    """
    if isinstance(source, Path):
        place = str(source)
        traces = list(read_traces(source, tokenizer=model.tokenizer, max_len=model.max_len))
        if not traces:
            raise LineError(f"{place}: no right trace in it; {why_none_is_right(source)}")
    else:
        place, traces = "traces", [trace for trace in source if trace.correct]
        if not traces:
            raise LineError("traces: none of those given is right; only right ones are trained on")
        for trace in traces:
            trace.check(f"traces: problem {trace.problem}", model.max_len)
    for trace in traces:
        highest = max(*trace.prompt_ids, *trace.output_ids)
        if highest >= model.vocab_size:
            raise LineError(
                f"{place}: problem {trace.problem}: token id {highest}, but the model knows "
                f"{model.vocab_size}; generate the trace with this model"
            )
    return _long_enough(place, traces, target, "generate longer ones or lower --distance")


def usable_texts(texts: Texts, cut: TextCut, model: Model, target: Target) -> tuple[list[Trace], int]:
    """Return (windows of texts to train on, how many are too short for the target).

    Raises:
        ValueError: the target needs an answer, the model takes no such windows or has no tokenizer, or
            there is no text to train on.
    """
    if target.kind not in WITH_DISTANCE:
        raise ValueError(
            f"target {target.kind!r} needs an answer, and texts have none; choose "
            f"{' or '.join(WITH_DISTANCE)}, or give traces"
        )
    if cut.length > model.max_len:
        raise ValueError(
            f"text_len={cut.length}, but the model takes {model.max_len} tokens "
            "(max_position_embeddings); lower it"
        )
    traces = text_traces(texts, model.load_tokenizer(), cut)
    return _long_enough("texts", traces, target, "give longer ones, raise text_len or lower the distance")


def _long_enough(place: str, traces: list[Trace], target: Target, remedy: str) -> tuple[list[Trace], int]:
    found = [trace for trace in traces if target.num_counted(spans_of(trace)) >= LEAST_TOKENS]
    if not found:
        kind = "right traces" if traces[0].task != TASK else "windows"
        raise LineError(
            f"{place}: none of {len(traces)} {kind} has {LEAST_TOKENS} tokens that count for the "
            f"target {target.name}; {remedy}"
        )
    return found, len(traces) - len(found)


def collect(
    store: StateStore,
    traces: Sequence[Trace],
    model: PreTrainedModel,
    target: Target,
) -> Generator[str]:
    """Compute and store what the store lacks, yielding the key of each trace once it is computed."""
    return store.add((trace_key(trace), partial(trace_states, model, trace, target)) for trace in traces)


def trace_states(model: PreTrainedModel, trace: Trace, target: Target) -> TraceStates:
    """Return states and targets of one trace's tokens that count, on the model's device."""
    spans = spans_of(trace)
    ids = torch.tensor([*trace.prompt_ids, *trace.output_ids], device=model.device)
    importance = target.importance(model, ids, spans)
    critical = torch.zeros(spans.length, dtype=torch.bool)
    critical[[len(trace.prompt_ids) + position for position in trace.critical or ()]] = True
    counted = slice(0, target.num_counted(spans))
    return TraceStates(
        importance.hidden[counted].contiguous(),
        importance.targets[counted].float(),
        critical[spans.thinking][counted],
    )


def spans_of(trace: Trace) -> TraceSpans:
    """Return where thinking and answer are in prompt and output together."""
    start, end = (len(trace.prompt_ids) + position for position in trace.thinking)
    return TraceSpans(start, end, trace.length)


def trace_key(trace: Trace) -> str:
    """Return the key of a trace: a digest of all that its states and targets follow from."""
    parts = [trace.prompt_ids, trace.output_ids, list(trace.thinking), trace.critical]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _checked(folder: Path) -> Path:
    """Return a folder that holds a model.

    Raises:
        ValueError: it does not, or its weights were quantised by ModelOpt, which its config need not say.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: no config.json with *.safetensors; name a model's folder")
    if (folder / "hf_quant_config.json").exists():
        raise ValueError(_quantised(folder, "hf_quant_config.json"))
    return folder


def _refuse_quantised(config: Any, place: Path | str) -> None:
    values = config.to_dict()
    settings = values.get("quantization_config") or values.get("compression_config")
    if settings:
        raise ValueError(_quantised(place, settings.get("quant_method") or "quantization_config"))


def _quantised(place: Path | str, by: str) -> str:
    return (
        f"{place}: its weights are quantised ({by}), and targets are computed with the weights it was "
        "made from; name the folder of these, in bfloat16 or float32; the predictor serves both"
    )


def _digest_of_files(folder: Path) -> str:
    files = sorted([folder / "config.json", *folder.glob("*.safetensors")])
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _digest_of_weights(model: PreTrainedModel) -> str:
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
