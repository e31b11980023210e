"""The prefix cache that owns every request's windows and keeps compacted rows out of the tree."""

from collections.abc import Callable
from dataclasses import replace
from weakref import WeakKeyDictionary

from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.registry import create_unified_radix_cache
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from sgl_dynts.window import RequestWindow
from sglang_dynts.request_report import RequestReport, Totals


def build_radix_cache(context):
    """Build the cache for SGLang's registry; also used, disabled, under ``--disable-radix-cache``."""
    return create_unified_radix_cache(context, cache_class=DynTSRadixCache)


class DynTSRadixCache(UnifiedRadixCache):
    """A radix cache whose requests may be compacted.

    The tree pairs the n-th token of a request with the n-th slot of its row. A compaction breaks that
    pairing beyond the prompt, so of a request that may be compacted the tree takes and gives the
    prompt alone: :meth:`checkpoint` clamps what goes in, :meth:`match_prefix` what a retracted
    request gets back.
    """

    def __init__(self, params) -> None:
        super().__init__(params)
        self.totals = Totals()
        self._reports: WeakKeyDictionary[object, RequestReport] = WeakKeyDictionary()
        self._new_window: Callable[[object], RequestWindow | None] | None = None

    def govern(self, new_window: Callable[[object], RequestWindow | None]) -> None:
        """Start owning windows; ``new_window(req)`` makes one, or None for a switched-off request."""
        self._new_window = new_window

    def report_of(self, req) -> RequestReport:
        """Return what is known of a request, its window included."""
        report = self._reports.get(req)
        if report is None:
            assert self._new_window is not None, "the cache is asked for windows before govern()"
            report = RequestReport(self._new_window(req), len(req.origin_input_ids))
            self._reports[req] = report
        return report

    def window_of(self, req) -> RequestWindow | None:
        """Return a request's window, None where DynTS is switched off for it."""
        return self.report_of(req).window

    def checkpoint(self, req, *, up_to: int, **kwargs) -> None:
        """Insert a request's row into the tree up to what may be shared."""
        super().checkpoint(req, up_to=min(up_to, self._shareable_len(req)), **kwargs)

    def match_prefix(self, params):
        """Match a request no further than its prompt, so that its thinking tokens stay its own."""
        if params.req is not None and self.window_of(params.req) is not None:
            params = replace(params, key=_limited(params.key, len(params.req.origin_input_ids)))
        return super().match_prefix(params)

    def on_release(self, req, *, checkpointed: bool) -> None:
        """Close a request's window when its row is given back; a retracted one starts anew."""
        self.report_of(req).close(req.kv.kv_allocated_len)
        super().on_release(req, checkpointed=checkpointed)

    def _shareable_len(self, req) -> int:
        window = self.window_of(req)
        whole = window is None or (req.finished() and window.dropped == 0)
        return len(req.full_untruncated_fill_ids) if whole else len(req.origin_input_ids)


def _limited(key: RadixKey, most: int) -> RadixKey:
    limit = most if key.limit is None else min(most, key.limit)
    return RadixKey(key.token_ids, key.extra_key, key.is_bigram, limit=limit, cache_salt=key.cache_salt)
