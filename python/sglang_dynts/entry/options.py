"""What one request may ask of DynTS: ``custom_params: {"dynts": {...}}``."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from sgl_dynts.config import MOST_TOKENS, WINDOW_FIELDS, DynTSConfig, as_name, quoted
from sgl_dynts.policies import FULL, policies
from sglang_dynts.boot.configuration import arguments, server_config
from sglang_dynts.names import BACKEND_NAME

REPORT = "return_meta_info"
"""SGLang's own field of a chat, for routers that drop it."""
SWITCHES = ("enabled", "return_compactions", "return_tokens", REPORT)
FIELDS = (*SWITCHES, *WINDOW_FIELDS, "policy")
NO_EMBEDDINGS = (
    "this server runs with DynTS, which takes no input_embeds: they hide whether the prompt leaves off "
    "in thinking, and SGLang ends where they meet another request in one forward, or a model that is not "
    "bfloat16; give text or input_ids, or ask a server without DynTS"
)
CARRIED: ContextVar[dict[str, Any] | None] = ContextVar("dynts_options", default=None)
"""Options of the HTTP request that is being served, where it says them outside of ``sampling_params``."""


def verify_request(_result, sampling_params, *_args, **_kwargs) -> None:
    """AFTER SamplingParams.verify: refuse a bad ``dynts`` field, which the client gets as HTTP 400.

    Options that SGLang does not take over from the rest of a request are put where they belong.

    Raises:
        ValueError: naming the field, its value and what it may be.
    """
    check_options(sampling_params.custom_params)
    carried = CARRIED.get()
    if carried is None:
        return
    custom = sampling_params.custom_params or {}
    own = {} if custom.get(BACKEND_NAME) is None else custom[BACKEND_NAME]
    options = combined({"sampling_params.custom_params": own, "the rest of the request": carried})
    sampling_params.custom_params = custom | {BACKEND_NAME: options}
    check_options(sampling_params.custom_params)


def combined(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Put together what several places of one request say; None where none says anything.

    Args:
        found: by place: its options.

    Raises:
        ValueError: one is no object, or two say different things of one field.
    """
    said: dict[str, tuple[str, Any]] = {}
    for place, options in found.items():
        if not isinstance(options, dict | None):
            raise ValueError(f"{place}={quoted(options)} must be an object with {_known()}")
        for name, value in _given(options or {}).items():
            before, other = said.setdefault(name, (place, value))
            if (isinstance(value, bool), value) != (isinstance(other, bool), other):
                raise ValueError(
                    f"{BACKEND_NAME}.{as_name(name)} is {quoted(other)} in {before} and "
                    f"{quoted(value)} in {place}; say one of them"
                )
    return {name: value for name, (_place, value) in said.items()} if found else None


def check_options(custom_params: Any) -> None:
    """Refuse what this server cannot do for a request.

    Raises:
        ValueError: naming the field, its value and what it may be.
    """
    bag = arguments()
    if bag.enable_dynts and not isinstance(custom_params, dict | None):
        raise ValueError(
            f"custom_params={quoted(custom_params)} must be an object, such as "
            f'{{"{BACKEND_NAME}": {{"budget": 2000}}}}'
        )
    options = _options_in(custom_params)
    if options is None:
        return
    if not bag.enable_dynts:
        raise ValueError(
            "custom_params.dynts: this server runs without DynTS; start it with "
            f"--attention-backend {BACKEND_NAME}, or leave the field out"
        )
    request_config(options, server_config(), bag.dynts_min_selection)
    policy = _given(options).get("policy", bag.dynts_policy)
    if policies()[policy].needs_queries and not bag.dynts_observe_queries:
        raise ValueError(
            f"custom_params.dynts.policy={policy!r} needs a server that was started with "
            "--dynts-observe-queries; choose another policy"
        )
    if reason := bag.dynts_unserved_policies.get(policy):
        raise ValueError(f"custom_params.dynts.policy={policy!r} cannot be served here: {reason}")
    if policies()[policy].needs_predictor and bag.dynts_predictor_path is None:
        raise ValueError(
            f"custom_params.dynts.policy={policy!r} needs a predictor, and this server was started "
            "without one; choose another policy"
        )


def config_of_request(sampling_params, default: DynTSConfig) -> DynTSConfig | None:
    """The windows of a request that was verified, None where it is switched off."""
    if policy_of_request(sampling_params) == FULL:
        return None
    options = _options_of(sampling_params)
    return default if options is None else request_config(options, default, default.min_selection)


def policy_of_request(sampling_params) -> str:
    """The name of a verified request's policy."""
    return _verified(sampling_params).get("policy", arguments().dynts_policy)


def wants_compactions(sampling_params) -> bool:
    """Whether a verified request asked where it was compacted."""
    return _verified(sampling_params).get("return_compactions", False)


def wants_tokens(sampling_params) -> bool:
    """Whether a verified request asked for the scores and fates of its tokens."""
    return _verified(sampling_params).get("return_tokens", False)


def request_config(options: Any, default: DynTSConfig, min_selection: int | None) -> DynTSConfig | None:
    """Read one request's options; null says that a field is not given.

    Args:
        options: what stands under ``dynts``.
        default: the server's windows, for the fields that are not given.
        min_selection: the server's flag; lowered to what the request's own windows allow.

    Returns:
        The request's windows, or None if it switches DynTS off.

    Raises:
        ValueError: naming the field.
    """
    if not isinstance(options, dict):
        raise ValueError(f"custom_params.dynts={quoted(options)} must be an object with {_known()}")
    for name in options:
        if name not in FIELDS:
            raise ValueError(
                f"custom_params.dynts.{as_name(str(name))} is not known; it takes {_known()}"
            )
    given = _given(options)
    for name in SWITCHES:
        if not isinstance(given.get(name, True), bool):
            raise ValueError(f"custom_params.dynts.{name}={quoted(given[name])} must be true or false")
    if given.get("policy", FULL) not in tuple(policies()):
        raise ValueError(
            f"custom_params.dynts.policy={quoted(given['policy'])} must be one of {', '.join(policies())}"
        )
    windows = {name: _number(given[name]) for name in WINDOW_FIELDS if name in given}
    config = _checked(default, windows, min_selection) if windows else default
    return config if given.get("enabled", True) else None


def _checked(default: DynTSConfig, given: dict[str, Any], min_selection: int | None) -> DynTSConfig:
    try:
        config = replace(default, **given, min_selection=None)
    except ValueError as error:
        raise ValueError(f"custom_params.dynts.{error}") from error
    if min_selection is None:
        return config
    return replace(config, min_selection=min(min_selection, config.keep_len))


def _number(value: Any) -> Any:
    """Return a whole number as an int: typed clients and gateways make 308 a 308.0."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= MOST_TOKENS
    return int(value) if is_whole else value


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The fields that say something: typed clients send null for what is not given."""
    return {name: value for name, value in options.items() if value is not None}


def _verified(sampling_params) -> dict[str, Any]:
    """What a verified request asks for; nothing where it does not name us."""
    return _given(_options_of(sampling_params) or {})


def _options_of(sampling_params) -> Any:
    return _options_in(sampling_params.custom_params)


def _options_in(custom_params: Any) -> Any:
    return custom_params.get(BACKEND_NAME) if isinstance(custom_params, dict) else None


def _known() -> str:
    return ", ".join(FIELDS)
