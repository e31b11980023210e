"""The whole method for one request, slow and obvious: lists in, kept positions out."""

from collections.abc import Sequence
from fractions import Fraction
from math import floor

from sgl_dynts.config import DynTSConfig
from sgl_dynts.thinking import ThinkMarkers


def is_thinking(prompt: Sequence[int], output: Sequence[int], markers: ThinkMarkers) -> list[bool]:
    """For every generated token, whether it is thinking, rescanning everything at every token."""
    marks = [
        (start, marker)
        for marker in (markers.opening, markers.closing)
        for start in range(len(prompt))
        if tuple(prompt[start : start + len(marker)]) == marker
    ]
    thinks = not marks or max(marks, key=lambda mark: mark[0])[1] == markers.opening
    flags: list[bool] = []
    since = 0
    for end in range(1, len(output) + 1):
        flags.append(thinks)
        marker = markers.closing if thinks else markers.opening
        if end - since >= len(marker) and tuple(output[end - len(marker) : end]) == marker:
            flags[-1] = False
            thinks, since = not thinks, end
    return flags


def kept_positions(
    window: Sequence[int],
    scores: Sequence[float],
    thinking: Sequence[bool],
    question_len: int,
    config: DynTSConfig,
) -> list[int]:
    """Return the sequence positions a request holds after the compaction check of one step.

    Args:
        window: sequence positions held now, ascending.
        scores: score of every sequence position.
        thinking: for every generated token, whether it is thinking.
        question_len: q.
        config: B, W_l and r.
    """
    keep_len = floor(Fraction(str(config.keep_ratio)) * (config.budget - config.local_window))
    least = keep_len // 4 if config.min_selection is None else config.min_selection
    selection_len = max(keep_len - question_len, least)
    retained = question_len + selection_len + config.local_window
    budget = retained + config.budget - config.local_window - keep_len
    answers = [p for p in window if p >= question_len and not thinking[p - question_len]]
    if len(window) - len(answers) < budget:
        return list(window)
    local = set(window[-config.local_window :])
    always = set(window[:question_len]) | set(answers) | local
    rest = sorted((p for p in window if p not in always), key=lambda p: (-scores[p], p))
    return sorted(always | set(rest[:selection_len]))
