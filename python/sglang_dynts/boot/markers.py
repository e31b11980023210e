"""Which tokens open and close thinking: a flag, else the reasoning parser, else the usual text."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sglang.srt.parser.reasoning_parser import GptOssDetector, K2V3Detector, ReasoningParser
from sglang.srt.runtime_context import get_context, get_serving
from sglang.srt.sampling.sampling_params import get_request_reasoning_end_token_ids

from sgl_dynts.markers import Marker, find_beginning, find_marker, joins_tokens
from sgl_dynts.thinking import ThinkMarkers
from sglang_dynts.names import BACKEND_NAME

logger = logging.getLogger(__name__)

DEFAULT_START = "<think>"
DEFAULT_END = "</think>"
SEPARATORS = (".", ",", "?", "!", ";", ":", "\n", "\n\n")
HARMONY_START, HARMONY_END = "<|channel|>analysis<|message|>", "<|end|>"
HARMONY_SIGNS = ("<|channel|>", "<|message|>")
"""By them a tokenizer or a template is known to be of OpenAI's harmony format: gpt-oss."""
HARMONY_ANSWERS = ("<|channel|>final", "<|channel|>commentary")
"""Parts of a harmony answer that are no thinking: what the user reads, and calls of tools."""
AROUND_A_SEPARATOR = (("", ""), (" ", ""), ("", "\n"), ("", "\n\n"))


@dataclass(frozen=True)
class Texts:
    """What a model writes around its thinking.

    ``end_ids`` are the tokens of ``end``, which only a reasoning parser knows: some are not what its text
    encodes to. ``others`` are pairs of opening and closing texts that a request may choose instead, and
    ``interrupt`` ends thinking without a closing marker, as do ``answers``, spelled in one way alone.
    """

    start: str
    end: str
    end_ids: Sequence[int]
    others: tuple[tuple[str, str], ...] = ()
    interrupt: str | None = None
    answers: tuple[str, ...] = ()


def resolve_markers(tokenizer) -> ThinkMarkers:
    """Find the think markers of the served model, however its tokenizer spells them.

    A model that nothing says marks its thinking has none: all that it generates is thinking.

    Args:
        tokenizer: of the served model.

    Raises:
        ValueError: a marker is not in the tokenizer's vocabulary.
    """
    bag = get_context().config_bag(BACKEND_NAME)
    if not (bag.dynts_think_start or bag.dynts_think_end or _marks_thinking(tokenizer)):
        logger.warning(
            "DynTS: neither tokenizer nor chat template has %s, %s or %s, so all that the model "
            "generates counts as thinking; name its markers with --dynts-think-start and "
            "--dynts-think-end",
            DEFAULT_START,
            DEFAULT_END,
            HARMONY_START,
        )
        return ThinkMarkers((), ())
    texts = _parser_texts(tokenizer)
    start, end = bag.dynts_think_start or texts.start, bag.dynts_think_end
    opening = _known(tokenizer, start, _encode(tokenizer, start), "--dynts-think-start")
    ids = texts.end_ids if end is None else _encode(tokenizer, end)
    end = texts.end if end is None else end
    closing = _known(tokenizer, end, ids, "--dynts-think-end")
    return ThinkMarkers(
        opening,
        closing,
        _spelled(tokenizer, start, opening, [one for one, _ in texts.others]),
        _spelled(tokenizer, end, closing, [one for _, one in texts.others]),
        _interrupts(tokenizer, texts, joins_tokens(tokenizer, end, closing)),
        _control_ids(tokenizer) - {*opening, *closing},
    )


def _marks_thinking(tokenizer) -> bool:
    """Whether a reasoning parser, the tokenizer's own tokens or the chat template speak of thinking."""
    if get_serving().reasoning_parser:
        return True
    return _has_usual_marks(tokenizer) or _is_harmony(tokenizer)


def _has_usual_marks(tokenizer) -> bool:
    told = _told(tokenizer)
    return DEFAULT_START in told or DEFAULT_END in told


def _is_harmony(tokenizer) -> bool:
    """Whether thinking is a channel of its own, as gpt-oss has it."""
    told = _told(tokenizer)
    return all(sign in told for sign in HARMONY_SIGNS)


def _told(tokenizer) -> str:
    """The chat template and the tokens that were added for it."""
    return f"{tokenizer.chat_template or ''} {' '.join(tokenizer.get_added_vocab())}"


def markers_of_request(params, markers: ThinkMarkers) -> ThinkMarkers:
    """Return the markers of one request: SGLang names the closing one that its reasoning effort chose.

    Args:
        params: SGLang's `SamplingParams`.
        markers: of the server.
    """
    known = [marker.ids for marker in markers.closes if marker.ids]
    chosen = get_request_reasoning_end_token_ids(params.custom_params, allowed_sequences=known)
    if chosen is None:
        return markers
    return replace(markers, closing=tuple(chosen), closers=())


def separator_ids(tokenizer) -> frozenset[int]:
    """Token ids of punctuation and line breaks, alone, after a space or before a line break.

    Args:
        tokenizer: of the served model; a separator that is no single token of its vocabulary is left out.
    """
    texts = [f"{before}{mark}{after}" for mark in SEPARATORS for before, after in AROUND_A_SEPARATOR]
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    single = {ids[0] for ids in encoded if len(ids) == 1}
    return frozenset(single - {tokenizer.unk_token_id})


def _control_ids(tokenizer) -> frozenset[int]:
    """Ids that stand between turns: special tokens, and others that were added for the chat template.

    DeepSeek's user and assistant are of the second kind.
    """
    template = str(tokenizer.chat_template or "")
    added = tokenizer.added_tokens_decoder.items()
    found = {
        token_id
        for token_id, token in added
        if token.special or (token.content.strip() and token.content in template)
    }
    return frozenset(found.union(tokenizer.all_special_ids) - {tokenizer.unk_token_id})


def _parser_texts(tokenizer) -> Texts:
    """Return what the reasoning parser says, else the usual texts."""
    name = get_serving().reasoning_parser
    if not name and _is_harmony(tokenizer) and not _has_usual_marks(tokenizer):
        return _harmony_texts(tokenizer)
    if not name:
        return Texts(DEFAULT_START, DEFAULT_END, _encode(tokenizer, DEFAULT_END))
    detector = ReasoningParser(model_type=name, stream_reasoning=False, tokenizer=tokenizer).detector
    if isinstance(detector, GptOssDetector):
        return _harmony_texts(tokenizer)
    end_ids = detector.get_think_end_token_ids(tokenizer)
    start, end, interrupt = (
        detector.think_start_token,
        detector.think_end_token,
        detector.tool_start_token,
    )
    return Texts(start, end, end_ids, _other_pairs(detector), interrupt)


def _harmony_texts(tokenizer) -> Texts:
    """Thinking runs in parts, with calls of tools in between, each part in the channel of analysis."""
    ids = _encode(tokenizer, HARMONY_END)
    return Texts(HARMONY_START, HARMONY_END, ids, answers=HARMONY_ANSWERS)


def _other_pairs(detector) -> tuple[tuple[str, str], ...]:
    """Return K2 Horizon's markers of other reasoning efforts; it lists the closing ones alone."""
    if not isinstance(detector, K2V3Detector):
        return ()
    ends = [
        end for end in detector.request_selectable_think_end_tokens if end != detector.think_end_token
    ]
    return tuple((end.replace("</", "<", 1), end) for end in ends)


def _spelled(tokenizer, text: str, ids: tuple[int, ...], others: Sequence[str]) -> tuple[Marker, ...]:
    """Return how tokens spell a marker or one of its others, nothing where only these ids do."""
    vocabulary = tokenizer.get_vocab() if others else {}
    known = [Marker.of_ids((vocabulary[other],)) for other in others if other in vocabulary]
    found = (find_marker(tokenizer, text, ids), *known)
    return () if found == (Marker.of_ids(ids),) else found


def _interrupts(tokenizer, texts: Texts, joins: bool) -> tuple[Marker, ...]:
    found = find_beginning(tokenizer, texts.interrupt, joins) if texts.interrupt else None
    spelled = [_encode(tokenizer, text) for text in texts.answers]
    answers = (Marker.of_ids(ids) for ids in spelled if _knows(tokenizer, ids))
    return (found, *answers) if found else tuple(answers)


def _encode(tokenizer, text: str) -> Sequence[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def _knows(tokenizer, ids: Sequence[int]) -> bool:
    return bool(ids) and tokenizer.unk_token_id not in ids


def _known(tokenizer, text: str, ids: Sequence[int], flag: str) -> tuple[int, ...]:
    if not _knows(tokenizer, ids):
        raise ValueError(
            f"{flag}: {text!r} is not in the tokenizer's vocabulary, so thinking cannot be "
            f"recognised; name the model's own marker with {flag}"
        )
    return tuple(ids)
