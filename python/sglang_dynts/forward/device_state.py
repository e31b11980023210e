"""DynTS on one model runner: the score pool and the per-row counters on its device."""

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
from sglang.srt.runtime_context import get_context

from sgl_dynts.compaction import to_device, warm_up
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.score_pool import ScorePool
from sgl_dynts.scoring import write_scores
from sgl_dynts.window_table import WindowTable
from sglang_dynts.forward.query_recorder import QueryRecorder, attention_layers, create_recorder
from sglang_dynts.forward.received_attention import ReceivedAttention
from sglang_dynts.names import BACKEND_NAME

_RUNTIMES: "WeakKeyDictionary[object, DynTSRuntime]" = WeakKeyDictionary()


class DynTSRuntime:
    """Device state that a forward and a compaction share.

    ``dropped`` is [rows] int64, tokens dropped by the request of each request-to-token row, 0 for the
    padding row. ``rows_with_drops`` names on the host the rows where it may be other than 0, and
    ``windows`` holds on the host the lengths of the same rows. ``resumed`` maps requests whose KV came
    back from a host copy to what they had dropped, until their first forward.
    """

    def __init__(self, num_slots: int, num_rows: int, device: torch.device | str) -> None:
        self.scores = ScorePool(num_slots, device)
        self.dropped = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.rows_with_drops: set[int] = set()
        self._looked_up: tuple[torch.Tensor, torch.Tensor] | None = None
        """Rows that were asked for last, and what their requests have dropped."""
        self.windows = WindowTable(num_rows)
        self.resumed: dict[object, int] = {}
        self.recorder: QueryRecorder | None = None
        """The newest queries, where the server records them."""
        self.received: ReceivedAttention | None = None
        """The attention of all queries, where the server records the newest."""

    def dropped_of(self, rows: torch.Tensor) -> torch.Tensor:
        """Tokens dropped by each row's request; looked up once while the same batch decodes.

        Args:
            rows: [n] int64 on the device, bound anew by SGLang whenever its contents change.

        Returns:
            [n] int64, not to be written to.
        """
        if self._looked_up is None or self._looked_up[0] is not rows:
            self._looked_up = rows, self.dropped.index_select(0, rows)
        return self._looked_up[1]

    def note_drops(self, rows: Iterable[int]) -> None:
        """Take note that ``dropped`` was raised in these rows."""
        self.rows_with_drops.update(rows)
        self._looked_up = None

    def reset_rows(self, rows: list[int]) -> None:
        """Forget the earlier owners of newly allocated rows."""
        self.windows.forget(rows)
        stale = self.rows_with_drops.intersection(rows)
        if stale:
            indices = torch.tensor(sorted(stale), dtype=torch.int64)
            self.dropped.index_fill_(0, to_device(indices, self.dropped.device), 0)
            self.rows_with_drops -= stale
            self._looked_up = None

    def resume_rows(self, reqs: list) -> None:
        """Restore what resumed requests had dropped, now that they have rows."""
        back = [(req.kv.req_pool_idx, self.resumed.pop(req)) for req in reqs if req in self.resumed]
        rows, dropped = to_device(
            torch.tensor(back, dtype=torch.int64).view(-1, 2).T, self.dropped.device
        )
        self.dropped.index_copy_(0, rows, dropped)
        self.note_drops(row for row, _ in back)


def is_enabled() -> bool:
    """Whether this server was asked for DynTS."""
    return get_context().config_bag(BACKEND_NAME).enable_dynts


def runtime_of(model_runner) -> DynTSRuntime | None:
    """Return the state of a model runner, None where DynTS is off."""
    return _RUNTIMES.get(model_runner)


def allocate_runtime(_result, model_runner) -> None:
    """AFTER ModelRunner._init_post_memory_pool_components: allocate before graphs are captured."""
    if not is_enabled():
        return
    from sglang_dynts.seams import check_scheduler_seams

    check_scheduler_seams()
    rows = model_runner.req_to_token_pool
    runtime = DynTSRuntime(
        num_slots=model_runner.token_to_kv_pool_allocator.size + 1,
        num_rows=rows.req_to_token.shape[0],
        device=model_runner.device,
    )
    runtime.recorder = create_recorder(model_runner, rows.req_to_token.shape[0])
    if runtime.recorder is not None:
        runtime.received = ReceivedAttention(
            attention_layers(model_runner),
            num_slots=model_runner.token_to_kv_pool_allocator.size + 1,
            kv_pool=model_runner.token_to_kv_pool,
            req_to_token=rows.req_to_token,
        )
    rows.register_on_alloc_rows(runtime.reset_rows)
    warm_up(model_runner.device)
    _RUNTIMES[model_runner] = runtime


def score_tokens(
    model_runner, predictor: ImportancePredictor | None, hidden: torch.Tensor, slots: torch.Tensor
) -> None:
    """Write the scores of one forward's tokens; captured in CUDA graphs, never waits for the device.

    Args:
        model_runner: whose pool is written.
        predictor: on the runner's device; None scores every token 0.
        hidden: [num_tokens, hidden_size], after the final norm.
        slots: [num_tokens], KV slots of the same tokens.
    """
    runtime = runtime_of(model_runner)
    if runtime is None:  # a forward before the pools exist scores nothing that is kept
        return
    assert hidden.shape[0] == slots.shape[0], f"{hidden.shape=} {slots.shape=}"
    if predictor is None:
        runtime.scores.write(slots, torch.zeros(hidden.shape[0], device=hidden.device))
    else:
        write_scores(predictor, hidden, slots, runtime.scores)
