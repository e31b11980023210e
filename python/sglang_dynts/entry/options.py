"""What one request may ask of DynTS: ``custom_params: {"dynts": {...}}``."""

from dataclasses import replace
from typing import Any

from sgl_dynts.config import WINDOW_FIELDS, DynTSConfig
from sgl_dynts.policies import FULL, policies
from sglang_dynts.boot.configuration import arguments, server_config
from sglang_dynts.boot.predictor_files import find_served_predictor
from sglang_dynts.names import BACKEND_NAME

SWITCHES = ("enabled", "return_compactions", "return_tokens")
FIELDS = (*SWITCHES, *WINDOW_FIELDS, "policy")


def verify_request(_result, sampling_params, *_args, **_kwargs) -> None:
    """AFTER SamplingParams.verify: refuse a bad ``dynts`` field, which the client gets as HTTP 400.

    Raises:
        ValueError: naming the field, its value and what it may be.
    """
    options = _options_of(sampling_params)
    bag = arguments()
    if options is None:
        return
    if not bag.enable_dynts:
        raise ValueError(
            "custom_params.dynts: this server runs without DynTS; start it with "
            f"--attention-backend {BACKEND_NAME}, or leave the field out"
        )
    request_config(options, server_config(), bag.dynts_min_selection)
    if policies()[options.get("policy", FULL)].needs_queries and not bag.dynts_observe_queries:
        raise ValueError(
            f"custom_params.dynts.policy={options['policy']!r} needs a server that was started with "
            "--dynts-observe-queries; choose another policy"
        )
    _check_predictor(options.get("policy", bag.dynts_policy), bag.dynts_policy)


def config_of_request(sampling_params, default: DynTSConfig) -> DynTSConfig | None:
    """The windows of a request that was verified, None where it is switched off."""
    if policy_of_request(sampling_params) == FULL:
        return None
    options = _options_of(sampling_params)
    return default if options is None else request_config(options, default, default.min_selection)


def policy_of_request(sampling_params) -> str:
    """The name of a verified request's policy."""
    server = arguments().dynts_policy
    options = _options_of(sampling_params)
    return server if options is None else options.get("policy", server)


def wants_compactions(sampling_params) -> bool:
    """Whether a verified request asked where it was compacted."""
    options = _options_of(sampling_params)
    return options is not None and options.get("return_compactions", False)


def wants_tokens(sampling_params) -> bool:
    """Whether a verified request asked for the scores and fates of its tokens."""
    options = _options_of(sampling_params)
    return options is not None and options.get("return_tokens", False)


def request_config(options: Any, default: DynTSConfig, min_selection: int | None) -> DynTSConfig | None:
    """Read one request's options.

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
        raise ValueError(f"custom_params.dynts={options!r} must be an object with {_known()}")
    for name in options:
        if name not in FIELDS:
            raise ValueError(f"custom_params.dynts.{name} is not known; it takes {_known()}")
    for name in SWITCHES:
        if not isinstance(options.get(name, True), bool):
            raise ValueError(f"custom_params.dynts.{name}={options[name]!r} must be true or false")
    if options.get("policy", FULL) not in tuple(policies()):
        raise ValueError(
            f"custom_params.dynts.policy={options['policy']!r} must be one of {', '.join(policies())}"
        )
    given = {name: options[name] for name in WINDOW_FIELDS if name in options}
    config = _checked(default, given, min_selection) if given else default
    return config if options.get("enabled", True) else None


def _check_predictor(policy: str, server_policy: str) -> None:
    """Refuse a policy that needs a predictor on a server that was started without one."""
    if not policies()[policy].needs_predictor or policies()[server_policy].needs_predictor:
        return
    if find_served_predictor() is None:
        raise ValueError(
            f"custom_params.dynts.policy={policy!r} needs a predictor, and this server was started "
            "without one; choose another policy"
        )


def _checked(default: DynTSConfig, given: dict[str, Any], min_selection: int | None) -> DynTSConfig:
    try:
        config = replace(default, **given, min_selection=None)  # a null is no number, and refused
    except ValueError as error:
        raise ValueError(f"custom_params.dynts.{error}") from error
    if min_selection is None:
        return config
    return replace(config, min_selection=min(min_selection, config.keep_len))


def _options_of(sampling_params) -> Any:
    custom = sampling_params.custom_params
    return custom.get(BACKEND_NAME) if isinstance(custom, dict) else None


def _known() -> str:
    return ", ".join(FIELDS)
