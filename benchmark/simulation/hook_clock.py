"""Times the hooks that run in every iteration of the scheduler, where they run.

Two processes differ by more than what hooks take, on a machine that runs now faster and now slower; and
what the stand-in computes evicts the host's caches on one side more than on the other.
"""

import time
from collections.abc import Callable
from functools import wraps

from sglang_dynts.forward.counted_attention import count_attention
from sglang_dynts.forward.positions import restore_positions
from sglang_dynts.scheduling.round import compact_requests
from sglang_dynts.telling.reporting import choose_streamer

IN_EVERY_ITERATION = (compact_requests, restore_positions, count_attention)


class HookClock:
    """Processor seconds of the hooks, less what ``elsewhere`` counts meanwhile as not the host's."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.elsewhere: Callable[[], float] = lambda: 0.0

    def around(self, hook: Callable) -> Callable:
        """Return a hook with the clock around what of it runs in every iteration; for ``register``."""
        if hook is choose_streamer:
            return self._choose_timed_streamer
        return self._timed(hook) if hook in IN_EVERY_ITERATION else hook

    def _choose_timed_streamer(self, streamer_class, scheduler):
        """AFTER Scheduler.get_output_streamer_class: the streamer that reports, on the clock."""
        chosen = choose_streamer(streamer_class, scheduler)
        report = self._timed(chosen.build_additional_customized_info)
        return type(chosen.__name__, (chosen,), {"build_additional_customized_info": report})

    def _timed(self, hook: Callable) -> Callable:
        @wraps(hook)
        def run(*args, **kwargs):
            elsewhere, started = self.elsewhere(), time.thread_time()
            result = hook(*args, **kwargs)
            took = time.thread_time() - started
            self.seconds += took - (self.elsewhere() - elsewhere)
            return result

        return run


CLOCK = HookClock()
"""Of this process; stands still on the side without the plug-in."""
