"""One simulation: SGLang's own event loop between a stand-in model and stand-in clients."""

import time
from array import array
from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, cast

import torch
from sglang.srt.managers.io_struct import BatchTokenIDOutput, TokenizedGenerateReqInput
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.mem_cache.allocator.base import BaseTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import HybridReqToTokenPool
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.sampling.sampling_params import SamplingParams

from benchmark.harness.shapes import roofline_shape
from benchmark.simulation.clock import VirtualClock
from benchmark.simulation.hook_clock import CLOCK
from benchmark.simulation.job import Job, PlannedRequest, Workload, plan_requests
from benchmark.simulation.record import Finished, Load, Recorder
from benchmark.simulation.server import build_scheduler
from benchmark.simulation.stand_in import Forward, StandIn
from benchmark.simulation.tiny_model import WORDS
from benchmark.simulation.turns import Turns
from sgl_dynts.compaction import apply_compaction
from sgl_dynts.roofline import COMPACTION_LAUNCH_SECONDS, GPUS
from sglang_dynts.scheduling.governor import DeviceWork, governor_of
from sglang_dynts.scheduling.slots.pools import pools_of

MOST_IDLE_ITERATIONS = 1000
"""So many iterations in a row without a forward, requests waiting, and the scheduler is stuck."""


class StuckError(RuntimeError):
    """The simulation cannot go on: nothing is scheduled, or its real time is over."""


def simulate(job: Job, side: str, folder: Path) -> dict[str, Any]:
    """Run a job to its end in this process, which holds no other scheduler; returns the measures.

    Args:
        job: what to simulate.
        side: ``stock`` or ``dynts``; the plug-ins of this process must fit.
        folder: an empty folder for the model.
    """
    torch.set_num_threads(1)
    turns = Turns(Path(job.turns), side, job.max_wall_seconds) if job.turns else None
    simulation = Simulation(job, build_scheduler(job.server, side, folder), turns)
    simulation.run()
    return simulation.result()


class OnDevice(DeviceWork):
    """Stands in for the device: work on tensors as long as windows or the pool is not the host's.

    Launching it is; of a whole compaction round it counts as the roofline has it, with the rewriting.
    """

    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in

    def run(self, work: Callable[..., Any], *args: Any) -> Any:
        """Do it, and count it for the device."""
        started = time.thread_time()
        result = work(*args)
        launch = COMPACTION_LAUNCH_SECONDS if work is apply_compaction else 0.0
        self._stand_in.seconds += time.thread_time() - started - launch
        return result


class Simulation:
    """Wires a scheduler to the stand-ins; its loop calls :meth:`recv_requests` once per iteration."""

    def __init__(self, job: Job, scheduler: Scheduler, turns: Turns | None = None) -> None:
        self._job = job
        self._turns = turns
        self._scheduler = scheduler
        self._allocator = cast(BaseTokenToKVPoolAllocator, scheduler.token_to_kv_pool_allocator)
        self._cache = cast(UnifiedRadixCache, scheduler.tree_cache)
        shape = roofline_shape(job.server.shape)
        self._pools = pools_of(self._allocator, shape.sliding_window)
        plan = plan_requests(job.workload, WORDS)
        self._clock = VirtualClock(overlap=job.server.overlap)
        self._recorder = Recorder(self._clock, job.workload, plan)
        self._to_come = deque(plan)
        self._num_idle = 0
        self._num_next = 0
        self._num_iterations = 0
        self._decoded = 0
        self._began, self._resumed = time.perf_counter(), time.thread_time()
        self._not_host, self._hooks_before = 0.0, 0.0
        self._stand_in = StandIn(
            scheduler.tp_worker.model_runner,
            GPUS[job.server.gpu],
            shape,
            job.server.stands_for,
            {request.rid: request for request in plan},
            self._on_forward,
        )
        self._on_device = OnDevice(self._stand_in)
        CLOCK.elsewhere = lambda: self._stand_in.seconds
        self._plug_in()

    def _plug_in(self) -> None:
        """Take the places of the model, of the socket requests come from and of the one they go to."""
        scheduler = self._scheduler
        scheduler.tp_worker.forward_batch_generation = self._stand_in.forward  # pyright: ignore
        scheduler.request_receiver = self  # pyright: ignore  only recv_requests is asked of it
        scheduler.output_streamer.send_to_detokenizer = self  # pyright: ignore  only send_output
        self._allocator.free = partial(self._on_device.run, self._allocator.free)  # pyright: ignore
        if (governor := governor_of(scheduler.tree_cache)) is not None:
            governor.device_work = self._on_device

    def run(self) -> None:
        """Run SGLang's event loop until every request is answered."""
        self._began, self._resumed = time.perf_counter(), time.thread_time()
        try:
            self._scheduler.run_event_loop()
        finally:
            if self._turns is not None:
                self._turns.leave()

    def recv_requests(self, local_reqs=None) -> list[TokenizedGenerateReqInput]:
        """Stand in for ``SchedulerRequestReceiver``: what has arrived since the last iteration."""
        self._end_iteration(time.thread_time())
        self._check_progress()
        self._take_turns()
        due = self._arrived()
        self._clock.begin_iteration()
        self._decoded = 0
        requests = [_tokenized(request, self._job.workload) for request in due]
        self._not_host, self._hooks_before = self._stand_in.seconds, CLOCK.seconds
        self._resumed = time.thread_time()
        return requests

    def send_output(self, output) -> None:
        """Stand in for the socket to the detokenizer: what was generated."""
        started = time.thread_time()
        assert isinstance(output, BatchTokenIDOutput), type(output)
        assert output.rids is not None
        for index, rid in enumerate(output.rids):
            reason = output.finished_reasons[index]
            if reason is not None:
                assert reason["type"] in ("length", "stop"), reason
                self._recorder.finished[rid] = self._finished(output, index)
                self._num_next += self._job.workload.clients is not None
        self._stand_in.seconds += time.thread_time() - started

    def result(self) -> dict[str, Any]:
        """Return the measures, and whether every slot came back, unless requests were left unfinished."""
        return {
            **self._recorder.result(),
            "iterations": self._num_iterations,
            "wall_s": round(time.perf_counter() - self._began, 1),
            "pool_tokens": self._scheduler.max_total_num_tokens,
            "lost_slots": self._used_tokens(),
            "lost_sliding_slots": self._used_sliding_tokens(),
            "lost_states": self._used_states(),
        }

    def _on_forward(self, forward: Forward) -> None:
        self._clock.launch(forward.seconds)
        self._decoded = forward.decoded
        load = Load(len(self._scheduler.waiting_queue), self._used_tokens())
        self._recorder.forward(forward, load)

    def _used_tokens(self) -> int:
        """Slots that are neither free nor held by the tree alone; of two pools, the full layers'."""
        unused = self._pools.num_free() + self._pools.num_evictable(self._cache)
        return self._scheduler.max_total_num_tokens - unused

    def _used_sliding_tokens(self) -> int:
        """The same of the sliding layers' pool, 0 where there is none."""
        if not isinstance(self._allocator, SWATokenToKVPoolAllocator):
            return 0
        unused = self._allocator.swa_available_size() + self._cache.swa_evictable_size()
        return self._allocator.size_swa - unused

    def _used_states(self) -> int:
        """The same of recurrent states, 0 where there are none."""
        table = self._scheduler.req_to_token_pool
        if not isinstance(table, HybridReqToTokenPool):
            return 0
        unused = table.mamba_allocator.available_size()
        if isinstance(self._cache, UnifiedRadixCache):
            unused += self._cache.mamba_evictable_size()
        return table.mamba_pool.size - unused

    def _end_iteration(self, now: float) -> None:
        if self._decoded and self._num_iterations >= self._job.skip_iterations:
            elsewhere = self._stand_in.seconds - self._not_host
            hooks = CLOCK.seconds - self._hooks_before
            self._recorder.iteration(self._decoded, now - self._resumed - elsewhere, hooks)
        self._num_iterations += 1
        self._num_idle = 0 if self._clock.launched else self._num_idle + 1

    def _check_progress(self) -> None:
        if time.perf_counter() - self._began > self._job.max_wall_seconds:
            raise StuckError(f"not done after {self._job.max_wall_seconds} s: {self._state()}")
        if self._num_idle > MOST_IDLE_ITERATIONS:
            raise StuckError(f"nothing is scheduled: {self._state()}")
        is_counted = self._job.ends_with_window and not self._to_come
        if self._num_iterations == self._job.max_iterations or is_counted:
            self._scheduler.gracefully_exit = True

    def _take_turns(self) -> None:
        """Wait for the other side where a turn ends."""
        done = self._num_iterations - self._job.skip_iterations
        at_end = self._num_iterations == self._job.max_iterations
        if self._turns is not None and done >= 0 and done % self._job.turn_len == 0 and not at_end:
            self._recorder.begin_turn()
            self._turns.next()

    def _arrived(self) -> list[PlannedRequest]:
        """Requests that have arrived by now; while nothing runs, time passes until the next does."""
        if self._num_idle and self._scheduler.is_fully_idle():
            if not self._to_come:
                self._scheduler.gracefully_exit = True
                return []
            if self._to_come[0].arrival < inf:
                self._clock.skip_to(self._to_come[0].arrival)
        arrived = []
        now = self._clock.host
        while self._to_come and (self._to_come[0].arrival <= now or self._num_next):
            request = self._to_come.popleft()
            if request.arrival > now:
                self._num_next -= 1
            self._recorder.arrived(request.rid, min(request.arrival, now))
            arrived.append(request)
        return arrived

    def _finished(self, output: BatchTokenIDOutput, index: int) -> Finished:
        assert output.retraction_counts is not None
        return Finished(
            self._clock.host,
            output.completion_tokens[index],
            output.prompt_tokens[index],
            output.cached_tokens[index],
            output.retraction_counts[index],
        )

    def _state(self) -> str:
        total = self._job.workload.num_requests
        return (
            f"{len(self._recorder.finished)} of {total} requests finished, "
            f"{len(self._scheduler.waiting_queue)} waiting, "
            f"{len(self._scheduler.running_batch.reqs)} running, iteration {self._num_iterations}"
        )


def _tokenized(request: PlannedRequest, workload: Workload) -> TokenizedGenerateReqInput:
    """Build what SGLang's tokenizer process sends for a request."""
    fixed = workload.max_new_tokens is None
    params = SamplingParams(
        max_new_tokens=request.output_len if fixed else workload.max_new_tokens,
        ignore_eos=fixed,
    )
    params.normalize(None)
    return TokenizedGenerateReqInput(
        rid=request.rid,
        input_text="",
        input_ids=array("q", request.question),
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
        sampling_params=params,
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=workload.stream,
    )
