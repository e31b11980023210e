"""Sliding layers: a compaction may drop only what they see no more.

Such layers attend to the newest tokens of the row that a compaction packs. These must be the newest of
the text, so the local window must be as long as theirs. Where they have a KV pool of their own, it must
be longer by one: a dropped token has no slot there, and the token in computation still sees one more.
"""

from weakref import WeakKeyDictionary

from sglang.srt.layers.radix_attention import RadixAttention

from sgl_dynts.config import DynTSConfig
from sglang_dynts.boot.configuration import governs, server_config
from sglang_dynts.names import FLAG_PREFIX

_KNOWN: "WeakKeyDictionary[object, int]" = WeakKeyDictionary()


def attention_layers(model_runner) -> list[RadixAttention]:
    """Every attention layer of a model runner's model."""
    return [module for module in model_runner.model.modules() if isinstance(module, RadixAttention)]


def least_local_window(model_runner) -> int:
    """Least local window that serves a loaded model, in tokens; 0 where no layer slides.

    The model is asked and not its configuration: many configurations name a window that no layer of
    SGLang's uses. The number is of tokens before a query, itself not counted.

    Args:
        model_runner: SGLang's, its model loaded.
    """
    if model_runner not in _KNOWN:
        layers = attention_layers(model_runner)
        longest = max((layer.sliding_window_size for layer in layers), default=0)
        told = model_runner.sliding_window_size or 0
        in_flight = int(model_runner.model_config.is_hybrid_swa)
        _KNOWN[model_runner] = max(longest, told) + in_flight if longest > 0 else 0
    return _KNOWN[model_runner]


def check_server_window(_result, model_runner) -> None:
    """AFTER ModelRunner.load_model: refuse a local window that is shorter than the model's own.

    Raises:
        ValueError: naming the flag and the number that would do.
    """
    if not governs() or model_runner.is_draft_worker:
        return
    least, config = least_local_window(model_runner), server_config()
    if config.local_window < least:
        raise ValueError(
            f"{FLAG_PREFIX}local-window {config.local_window}, given or recommended by the predictor: "
            f"sliding layers of this model see {least} tokens back, and those may not be dropped; give "
            f"{FLAG_PREFIX}local-window {least} or more, and a {FLAG_PREFIX}budget above it"
        )


def refuse_short_window(config: DynTSConfig | None, model_runner) -> None:
    """Refuse a request's local window that is shorter than the model's own.

    Args:
        config: the request's windows, None where DynTS is off for it.
        model_runner: SGLang's, its model loaded.

    Raises:
        ValueError: naming the field and the number that would do.
    """
    least = least_local_window(model_runner)
    if config is not None and config.local_window < least:
        raise ValueError(
            f"custom_params.dynts.local_window={config.local_window}: sliding layers of this model see "
            f"{least} tokens back, and those may not be dropped; give {least} or more"
        )
