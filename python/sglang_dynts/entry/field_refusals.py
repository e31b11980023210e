"""Fields of a request that are refused: what nobody would read, and what SGLang cannot take."""

from sgl_dynts.config import WINDOW_FIELDS, as_name, quoted
from sglang_dynts.boot.configuration import is_enabled
from sglang_dynts.entry.bodies import Fields, objects_in
from sglang_dynts.entry.options import NO_EMBEDDINGS
from sglang_dynts.names import BACKEND_NAME

FIELD = "custom_params"
PASSED_ON = ("chat_template_kwargs", "session_params")
"""Objects that routers pass on whole; SGLang gives them to the chat template and to its sessions."""
SAMPLING = "sampling_params"
UNREAD = {
    "extra_body": (FIELD, BACKEND_NAME),
    "options": (FIELD, BACKEND_NAME),
    "parameters": (FIELD, BACKEND_NAME),
    "instances": (FIELD, BACKEND_NAME),
    SAMPLING: (BACKEND_NAME,),
}
"""By objects of a body, or lists of them: what people write into them, and nobody reads there."""
READS_SAMPLING = "/generate"
"""The endpoint whose body has sampling parameters of SGLang's form at its top."""
SPELLING = f'"{FIELD}": {{"{BACKEND_NAME}": {{...}}}}'
OF_ONE_PROMPT = ("top_logprobs_num", "logprob_start_len", "rid")
"""What may be a list for several prompts; SGLang 0.5.23 ends, or fails, where one prompt has a list."""
PROCESSOR = "custom_logit_processor"
"""The one reader of ``custom_params`` beside us."""
EMBEDDINGS = "input_embeds"
NO_JSON = "positional_embed_overrides"
"""A field of SGLang's that holds tensors; it ends where JSON holds it."""


def refuse_misplaced(fields: Fields, path: str) -> None:
    """Refuse options where nobody reads them.

    Args:
        fields: of a body.
        path: of the endpoint.

    Raises:
        ValueError: naming the place and the right spelling.
    """
    places = [BACKEND_NAME] if BACKEND_NAME in fields else []
    unread = UNREAD if path == READS_SAMPLING else UNREAD | {SAMPLING: (FIELD, BACKEND_NAME)}
    for wrapper, names in unread.items():
        for one in objects_in(fields.get(wrapper)):
            places += [f"{wrapper}.{name}" for name in names if name in one]
    for wrapper in PASSED_ON:
        of_a_batch = objects_in(fields[wrapper]) if isinstance(fields.get(wrapper), list) else []
        places += [f"{wrapper}[].{BACKEND_NAME}" for one in of_a_batch if BACKEND_NAME in one]
    places += [
        f"{FIELD}.{name}"
        for holder in (fields, *objects_in(fields.get(SAMPLING)))
        for name in _loose(holder)
        if not fields.get(PROCESSOR)
    ]
    if places:
        raise ValueError(
            f"{places[0]} stands where nobody reads it: write {SPELLING} at the top of the body, or in "
            "sampling_params where the endpoint has them"
        )


def _loose(holder: Fields) -> list[str]:
    """Names of ours right in ``custom_params``, without the object that they belong into."""
    custom = holder.get(FIELD)
    if not isinstance(custom, dict) or BACKEND_NAME in custom:
        return []
    return [as_name(name) for name in custom if name in WINDOW_FIELDS or name.casefold() == BACKEND_NAME]


def refuse_impossible(fields: Fields) -> None:
    """Refuse what SGLang 0.5.23 does not check, and ends at.

    Raises:
        ValueError: naming the field and what it may be.
    """
    if is_enabled() and fields.get(EMBEDDINGS) is not None:
        raise ValueError(NO_EMBEDDINGS)
    if fields.get(NO_JSON) is not None:
        raise ValueError(f"{NO_JSON} cannot be sent as JSON; leave it out")
    ids = fields.get("input_ids")
    are_several = isinstance(fields.get("text"), list) or (
        isinstance(ids, list) and list in map(type, ids)
    )
    for name in () if are_several else OF_ONE_PROMPT:
        if isinstance(fields.get(name), list):
            raise ValueError(f"{name}={quoted(fields[name])} of one prompt must be one value, no list")
