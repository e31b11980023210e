"""DynTS on one model runner: the predictor, the score pool and the per-row counters on its device."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from sgl_dynts.checkpoint import PredictorHeader, PredictorSource, digest
from sgl_dynts.compaction import warm_up
from sgl_dynts.head_scores import HeadScores
from sgl_dynts.head_sets import HeadBuffers, HeadMoves
from sgl_dynts.policies import Sets, policies
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.score_pool import ScorePool
from sgl_dynts.transfer import to_device
from sglang_dynts.boot.configuration import arguments, governs
from sglang_dynts.boot.sliding_window import attention_layers
from sglang_dynts.forward.head_moves import PendingMoves, movable_tensors
from sglang_dynts.forward.kv_pools import is_compacted, num_slots, refuse_unknown_pool
from sglang_dynts.forward.query_recorder import QueryRecorder, create_recorder
from sglang_dynts.forward.received_attention import ReceivedAttention
from sglang_dynts.seams import Process, check


@dataclass(frozen=True)
class LoadedPredictor:
    """The predictor of one model runner, where it came from, and the digest that identifies it."""

    predictor: ImportancePredictor
    header: PredictorHeader
    path: str
    sha256: str

    def facts(self) -> dict[str, Any]:
        """Return what a server tells about its predictor."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "inner_sizes": list(self.predictor.inner_sizes),
            **self.header.flat(),
        }


def loaded_from(source: PredictorSource, predictor: ImportancePredictor) -> LoadedPredictor:
    """Describe a predictor that holds the weights of a file."""
    return LoadedPredictor(predictor, source.header, str(source.path), digest(source))


class DeviceState:
    """Device state that a forward and a compaction share.

    ``table`` is [rows, max_len] int32, SGLang's slots of each request. ``dropped`` is [rows] int64, the
    tokens dropped by the request of each row, 0 for the padding row. ``rows_with_drops`` names on the
    host the rows where it may be other than 0. ``resumed`` maps requests whose KV came back from a host
    copy to what they had dropped, until their first forward. ``question_lens`` says of requests how many
    tokens their question has.
    """

    def __init__(self, num_slots: int, table: torch.Tensor) -> None:
        self.table = table
        self.scores = ScorePool(num_slots, table.device)
        self.dropped = torch.zeros(len(table), dtype=torch.int64, device=table.device)
        self.rows_with_drops: set[int] = set()
        self._looked_up: tuple[torch.Tensor, torch.Tensor] | None = None
        """Rows that were asked for last, and what their requests have dropped."""
        self.resumed: dict[object, int] = {}
        self.question_lens: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self.hears_of_new_rows: list[Callable[[list[int]], None]] = []
        self.draft_pool: Any = None
        """SGLang's pool of a draft's own K and V, by the same slots."""
        self.recorder: QueryRecorder | None = None
        """The newest queries, where the server records them."""
        self.received: ReceivedAttention | None = None
        """The attention of all queries, where the server records the newest."""
        self.head_scores: HeadScores | None = None
        """What the predictor said, by head, where a policy may want it."""
        self.attention: list[RadixAttention] = []
        """The model's attention layers that compactions reach, in order."""
        self.moves: PendingMoves | None = None
        """What compactions with sets per head move, where the pool allows it."""

    @property
    def own_moves(self) -> PendingMoves:
        """The moves of a server whose requests may have a set of tokens per head."""
        assert self.moves is not None, "a policy with a set per head was accepted where none can be moved"
        return self.moves

    @property
    def own_head_scores(self) -> HeadScores:
        """The predictor's scores by head of a server whose requests may ask for them."""
        assert self.head_scores is not None, "a policy was accepted by a server without what it needs"
        return self.head_scores

    def moves_of(self, req) -> HeadMoves | None:
        """Return what this iteration's compaction of a request moves, None for one set of tokens."""
        return self.moves.of(req) if self.moves is not None else None

    def forget_moves(self, req) -> None:
        """Move nothing for a request: its compaction is undone."""
        if self.moves is not None:
            self.moves.forget(req)

    def settle_moves(self) -> None:
        """Have K and V in their places for whoever reads or writes them beside the forwards."""
        if self.moves is not None:
            self.moves.settle()

    def finish_moves(self) -> None:
        """Wait until nothing is moved any more: another machine is about to write freed slots."""
        if self.moves is not None:
            self.moves.finish()

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
        """Forget the earlier owners of newly allocated rows; others that keep something by row do too."""
        for forget in self.hears_of_new_rows:
            forget(rows)
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


@dataclass
class OnRunner:
    """What is ours on one model runner; ``state`` exists once the pools do.

    ``kept`` says why the predictor is older than the model's weights, None where they belong together;
    ``arrived`` holds what a weight update in progress has brought for it. ``weights_updated`` says
    whether the model's weights were replaced since the start.
    """

    predictor: LoadedPredictor | None = None
    state: DeviceState | None = None
    kept: str | None = None
    weights_updated: bool = False
    arrived: dict[str, torch.Tensor] = field(default_factory=dict)


_RUNNERS: "WeakKeyDictionary[object, OnRunner]" = WeakKeyDictionary()
"""Of this process. A hook inside a forward is given nothing but its runner, which is SGLang's: what is
ours cannot be put there. An entry goes with its runner."""


def on_runner(model_runner) -> OnRunner:
    """Return what is ours on a model runner, made at the first call."""
    return _RUNNERS.setdefault(model_runner, OnRunner())


def state_of(model_runner) -> DeviceState | None:
    """Return the state of a model runner, None where DynTS is off or the pools do not exist yet."""
    ours = _RUNNERS.get(model_runner)
    return None if ours is None else ours.state


def allocate(_result, model_runner) -> None:
    """AFTER ModelRunner._init_post_memory_pool_components: allocate before graphs are captured.

    Raises:
        ValueError: the model's tokens lie in a pool that single ones cannot be freed of.
    """
    if not governs():
        return
    check(Process.SCHEDULER)
    refuse_unknown_pool(model_runner.token_to_kv_pool)
    rows = model_runner.req_to_token_pool
    if model_runner.is_draft_worker:
        on_runner(model_runner).state = _state_of_rows(rows)
        return
    places = num_slots(model_runner.token_to_kv_pool_allocator) + 1
    state = DeviceState(places, rows.req_to_token)
    pool = model_runner.token_to_kv_pool
    state.attention = [one for one in attention_layers(model_runner) if is_compacted(one, pool)]
    state.recorder = create_recorder(model_runner, len(state.table))
    if state.recorder is not None:
        layers = state.attention
        by_head = policies()[arguments().dynts_policy].sets is Sets.PER_HEAD
        state.received = ReceivedAttention(layers, places, pool, state.table, by_head=by_head)
    sums = state.received.by_head if state.received is not None else ()
    if arguments().dynts_calibrates and on_runner(model_runner).predictor is not None:
        heads = [layer.tp_k_head_num for layer in state.attention]
        state.head_scores = HeadScores(places, heads, state.table.device)
    scores = state.head_scores.layers if state.head_scores is not None else ()
    movable = movable_tensors(pool, sums, scores)
    if movable is not None:
        state.moves = PendingMoves(HeadBuffers.of(movable))
        state.moves.warm_up()
    rows.register_on_alloc_rows(state.reset_rows)
    warm_up(model_runner.device)
    on_runner(model_runner).state = state


def _state_of_rows(rows) -> DeviceState:
    """Return the state of the runner that a draft drafts for: they have rows and slots in common."""
    states = (ours.state for ours in _RUNNERS.values() if ours.state is not None)
    return next(state for state in states if state.table is rows.req_to_token)


def carry_out_moves(_forward_batch, cls, batch, model_runner, **_kwargs) -> None:
    """AFTER ForwardBatch.init_new: before this forward writes anything, on its stream."""
    state = state_of(model_runner)
    if state is not None and state.moves is not None:
        state.moves.carry_out()
