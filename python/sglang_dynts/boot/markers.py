"""Which token ids open and close thinking: a flag, else the reasoning parser, else the usual text."""

from collections.abc import Sequence

from sglang.srt.parser.reasoning_parser import ReasoningParser
from sglang.srt.runtime_context import get_context, get_serving

from sgl_dynts.thinking import ThinkMarkers
from sglang_dynts.names import BACKEND_NAME

DEFAULT_START = "<think>"
DEFAULT_END = "</think>"
SEPARATORS = (".", ",", "?", "!", ";", ":", "\n", "\n\n")
AROUND_A_SEPARATOR = (("", ""), (" ", ""), ("", "\n"), ("", "\n\n"))


def resolve_markers(tokenizer) -> ThinkMarkers:
    """Find the think markers of the served model.

    Args:
        tokenizer: of the served model.

    Raises:
        ValueError: a marker is not in the tokenizer's vocabulary.
    """
    bag = get_context().config_bag(BACKEND_NAME)
    start, end, end_ids = _parser_markers(tokenizer)
    opening = _encode(tokenizer, bag.dynts_think_start or start, "--dynts-think-start")
    if bag.dynts_think_end is not None:
        return ThinkMarkers(opening, _encode(tokenizer, bag.dynts_think_end, "--dynts-think-end"))
    return ThinkMarkers(opening, _known(tokenizer, end, end_ids, "--dynts-think-end"))


def separator_ids(tokenizer) -> frozenset[int]:
    """Token ids of punctuation and line breaks, alone, after a space or before a line break.

    Args:
        tokenizer: of the served model; a separator that is no single token of its vocabulary is left out.
    """
    texts = [f"{before}{mark}{after}" for mark in SEPARATORS for before, after in AROUND_A_SEPARATOR]
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    single = {ids[0] for ids in encoded if len(ids) == 1}
    return frozenset(single - {tokenizer.unk_token_id})


def _parser_markers(tokenizer) -> tuple[str, str, Sequence[int]]:
    """Opening text, closing text and closing ids of the reasoning parser, else the usual ones.

    Only the parser knows its closing ids: some are not what its text encodes to.
    """
    name = get_serving().reasoning_parser
    if not name:
        usual = tokenizer.encode(DEFAULT_END, add_special_tokens=False)
        return DEFAULT_START, DEFAULT_END, usual
    detector = ReasoningParser(model_type=name, stream_reasoning=False, tokenizer=tokenizer).detector
    end_ids = detector.get_think_end_token_ids(tokenizer)
    return detector.think_start_token, detector.think_end_token, end_ids


def _encode(tokenizer, text: str, flag: str) -> tuple[int, ...]:
    return _known(tokenizer, text, tokenizer.encode(text, add_special_tokens=False), flag)


def _known(tokenizer, text: str, ids: Sequence[int], flag: str) -> tuple[int, ...]:
    if not ids or tokenizer.unk_token_id in ids:
        raise ValueError(
            f"{flag}: {text!r} is not in the tokenizer's vocabulary, so thinking cannot be "
            f"recognised; name the model's own marker with {flag}"
        )
    return tuple(ids)
