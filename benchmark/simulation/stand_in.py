"""What stands in for the model: drawn tokens and scores, and the roofline's time on a virtual clock."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

from benchmark.harness.tiny_models import END_THINK, EOS
from benchmark.simulation.job import PlannedRequest
from benchmark.simulation.tiny_model import WORDS
from sgl_dynts.roofline import (
    Gpu,
    ModelShape,
    causal_pairs,
    compaction_seconds,
    decode_seconds,
    prefill_seconds,
)
from sglang_dynts.forward.device_state import state_of

NEVER = -1


@dataclass(frozen=True, slots=True)
class Forward:
    """What one forward did.

    ``decoded`` requests each computed one token; ``kv_tokens`` were attended to; ``num_compacted``
    requests were compacted before it. A prefill computed ``new_tokens`` and gave each request in
    ``answered`` one token. ``seconds`` of virtual time.
    """

    seconds: float
    decoded: int = 0
    kv_tokens: int = 0
    num_compacted: int = 0
    new_tokens: int = 0
    answered: tuple[str, ...] = ()


class Script:
    """Which token each row of the request table generates next.

    All tensors are [num_rows] int64, indexed by row: ``made`` tokens generated, ``close_at`` and
    ``end_at`` the indices of the tokens that close thinking and end the output, or NEVER. ``held`` are
    the KV tokens that the row's last forward saw.
    """

    def __init__(self, num_rows: int, seed: int) -> None:
        self.made = torch.zeros(num_rows, dtype=torch.int64)
        self.close_at = torch.full((num_rows,), NEVER, dtype=torch.int64)
        self.end_at = torch.full((num_rows,), NEVER, dtype=torch.int64)
        self.held = torch.zeros(num_rows, dtype=torch.int64)
        self._generator = torch.Generator().manual_seed(seed)

    def begin(self, row: int, num_made: int, request: PlannedRequest) -> None:
        """A request is computed from its start in this row, with this many tokens behind it."""
        self.made[row] = num_made
        self.close_at[row] = request.close_at
        self.end_at[row] = request.output_len - 1

    def next_tokens(self, rows: torch.Tensor) -> torch.Tensor:
        """[len(rows)] int64, one token per row; a marker only where the workload says so."""
        index = self.made[rows]
        self.made[rows] = index + 1
        tokens = torch.randint(WORDS.start, WORDS.stop, (len(rows),), generator=self._generator)
        tokens[index == self.close_at[rows]] = END_THINK
        tokens[index == self.end_at[rows]] = EOS
        return tokens

    def compacted(self, rows: torch.Tensor, seq_lens: torch.Tensor) -> tuple[int, int]:
        """Rows compacted since their last forward, and the KV tokens that they held then."""
        held = self.held[rows]
        self.held[rows] = seq_lens
        before = held[seq_lens <= held]
        return len(before), int(before.sum())

    def scores(self, num_tokens: int) -> torch.Tensor:
        """[num_tokens] float32, as an importance predictor could give them."""
        return torch.rand(num_tokens, generator=self._generator)


class StandIn:
    """Takes the place of ``TpModelWorker.forward_batch_generation``.

    ``seconds`` counts its own processor time, which a GPU would not cost the host. Preparing the forward,
    where the plug-in's hook runs, is SGLang's and does not count.
    """

    def __init__(
        self,
        model_runner,
        gpu: Gpu,
        shape: ModelShape,
        stands_for: int,
        requests: Mapping[str, PlannedRequest],
        on_forward: Callable[["Forward"], None],
    ) -> None:
        """Stand in for the model of a runner.

        Args:
            model_runner: SGLang's, for the pools.
            gpu: whose time is told.
            shape: of the model whose time is told.
            stands_for: requests that each simulated one stands for.
            requests: all requests, by id.
            on_forward: told of every forward.
        """
        self.seconds = 0.0
        self._runner = model_runner
        self._gpu, self._shape, self._stands_for = gpu, shape, stands_for
        self._requests = requests
        self._on_forward = on_forward
        self._state = state_of(model_runner)
        self._script = Script(model_runner.req_to_token_pool.req_to_token.shape[0], seed=0)

    def forward(self, batch: ScheduleBatch, pp_proxy_tensors: None = None) -> GenerationBatchResult:
        """Prepare the forward as SGLang does, then stand in for it; no pipeline hands it tensors."""
        forward_batch = ForwardBatch.init_new(batch, self._runner, return_hidden_states_before_norm=False)
        started = time.thread_time()
        if batch.forward_mode.is_extend():
            self._prefill(batch)
        else:
            self._decode(batch)
        if self._state is not None:
            slots = forward_batch.out_cache_loc
            self._state.scores.write(slots, self._script.scores(len(slots)))
        result = GenerationBatchResult(
            logits_output=LogitsProcessorOutput(next_token_logits=None),
            next_token_ids=self._script.next_tokens(batch.req_pool_indices_cpu),
        )
        self.seconds += time.thread_time() - started
        return result

    def _decode(self, batch: ScheduleBatch) -> None:
        num_compacted, compacted = self._script.compacted(batch.req_pool_indices_cpu, batch.seq_lens_cpu)
        num_reqs, kv_tokens = batch.batch_size(), int(batch.seq_lens_cpu.sum())
        each = self._stands_for
        seconds = compaction_seconds(self._gpu, each * compacted) + decode_seconds(
            self._gpu, self._shape, each * num_reqs, each * kv_tokens, predictor=self._state is not None
        )
        self._on_forward(Forward(seconds, num_reqs, kv_tokens, num_compacted))

    def _prefill(self, batch: ScheduleBatch) -> None:
        lens = list(zip(batch.prefix_lens, batch.extend_lens, strict=True))
        new_tokens, each = sum(extend for _, extend in lens), self._stands_for
        seconds = prefill_seconds(
            self._gpu,
            self._shape,
            each * new_tokens,
            each * sum(causal_pairs(prefix, extend) for prefix, extend in lens),
            batch=each * len(lens),
            predictor=self._state is not None,
        )
        self._script.held[batch.req_pool_indices_cpu] = batch.seq_lens_cpu
        for row, req in zip(batch.req_pool_indices_cpu.tolist(), batch.reqs, strict=True):
            self._script.begin(row, len(req.output_ids), self._requests[req.rid])
        answered = tuple(req.rid for req in batch.reqs if req is not batch.chunked_req)
        self._on_forward(Forward(seconds, new_tokens=new_tokens, answered=answered))
