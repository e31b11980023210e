"""Times the hooks that run in every iteration of the scheduler, where they run.

Two processes differ by more than what hooks take, on a machine that runs now faster and now slower; and
what the stand-in computes evicts the host's caches on one side more than on the other.
"""

import time
from collections.abc import Callable

from sglang_dynts.forward import positions
from sglang_dynts.scheduling import policy_scores
from sglang_dynts.scheduling import round as compaction_step
from sglang_dynts.telling import reporting

HOOKS: tuple[tuple[object, str], ...] = (
    (compaction_step, "compact_requests"),
    (positions, "restore_positions"),
    (policy_scores, "count_attention"),
    (reporting.DynTSOutputStreamer, "build_additional_customized_info"),
)


class HookClock:
    """Processor seconds of the hooks, less what ``elsewhere`` counts meanwhile as not the host's."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.elsewhere: Callable[[], float] = lambda: 0.0

    def install(self) -> None:
        """Put the clock around the hooks; before SGLang loads the plug-in and takes them as they are."""
        for owner, name in HOOKS:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, hook: Callable) -> Callable:
        def run(*args, **kwargs):
            elsewhere, started = self.elsewhere(), time.thread_time()
            result = hook(*args, **kwargs)
            took = time.thread_time() - started
            self.seconds += took - (self.elsewhere() - elsewhere)
            return result

        return run


CLOCK = HookClock()
"""Of this process; stands still on the side without the plug-in."""
