"""Which token ids open and close thinking: a flag, else the reasoning parser, else the usual text."""

from sglang.srt.parser.reasoning_parser import ReasoningParser
from sglang.srt.runtime_context import get_context, get_serving

from sgl_dynts.thinking import ThinkMarkers
from sglang_dynts.names import BACKEND_NAME

DEFAULT_START = "<think>"
DEFAULT_END = "</think>"


def resolve_markers(tokenizer) -> ThinkMarkers:
    """Find the think markers of the served model.

    Args:
        tokenizer: of the served model.

    Raises:
        ValueError: a marker is not in the tokenizer's vocabulary.
    """
    bag = get_context().config_bag(BACKEND_NAME)
    start, end = _parser_markers(tokenizer)
    opening = _encode(tokenizer, bag.dynts_think_start or start, "--dynts-think-start")
    if bag.dynts_think_end is None and end is not None:
        return ThinkMarkers(opening, end)
    text = bag.dynts_think_end or DEFAULT_END
    return ThinkMarkers(opening, _encode(tokenizer, text, "--dynts-think-end"))


def _parser_markers(tokenizer) -> tuple[str, tuple[int, ...] | None]:
    """Opening text and closing token ids of the reasoning parser, where one is in use."""
    name = get_serving().reasoning_parser
    if not name:
        return DEFAULT_START, None
    detector = ReasoningParser(model_type=name, stream_reasoning=False, tokenizer=tokenizer).detector
    return detector.think_start_token, tuple(detector.get_think_end_token_ids(tokenizer)) or None


def _encode(tokenizer, text: str, flag: str) -> tuple[int, ...]:
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    if not ids or tokenizer.unk_token_id in ids:
        raise ValueError(
            f"{flag}: {text!r} is not in the tokenizer's vocabulary, so thinking cannot be "
            f"recognised; name the model's own marker with {flag}"
        )
    return ids
