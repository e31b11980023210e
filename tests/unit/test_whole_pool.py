"""The whole-pool bench without a GPU: what it asks, how it counts, what a stuck server costs."""

import time

import pytest

from benchmark.gpu import whole_pool
from benchmark.gpu.serving import ServingError
from benchmark.gpu.whole_pool import JOBS, ClosedLoop
from benchmark.simulation.job import DYNTS, STOCK, Workload, plan_requests

QUICK = Workload(9, 4, question_len=3, clients=3, first_wave=2)


class StandIn:
    """A server that answers at once, with metrics of one more token for every token it made."""

    side = STOCK

    def __init__(self, made: int = 4) -> None:
        self.setup = type("Setup", (), {"shape": "tiny"})
        self.client = self
        self.calls: list[str] = []
        self._made = made

    def call(self, path: str, body: dict | None = None) -> object:
        self.calls.append(path)
        if path == "/metrics":
            return (
                'sglang:realtime_tokens_total{mode="decode",model="m"} 40.0\n'
                'sglang:realtime_tokens_total{mode="decode",model="n"} 2.0\n'
                'sglang:realtime_tokens_total{mode="prefill_compute",model="m"} 7.0\n'
                "sglang:realtime_tokens_total_created 5.0\n"
            )
        return {"meta_info": {"finish_reason": {"type": "length"}, "completion_tokens": self._made}}


def test_lengths_are_a_quarter_of_the_papers_and_the_pool_of_as_many_requests():
    job = JOBS["qwen-7b"]
    assert (job.question_len, job.output_len, job.clip) == (50, 4096, 1024)
    assert (job.windows.budget, job.windows.local_window, job.windows.keep_ratio) == (1250, 500, 0.4)
    assert job.fitting(STOCK) == 240_000 // (50 + 2048)
    assert job.workload(STOCK).num_requests == 114 + 171 + job.clients
    assert job.clients > job.fitting(DYNTS) > 2 * job.fitting(STOCK)


def test_the_first_wave_ends_evenly_spaced():
    planned = plan_requests(Workload(40, 1000, clients=25, first_wave=20), range(8, 100))
    lengths = [request.output_len for request in planned]
    assert sorted(lengths[:20]) == list(range(50, 1001, 50)) != lengths[:20]
    assert lengths[20:] == [1000] * 20


def test_a_first_wave_longer_than_its_output_has_no_empty_request():
    planned = plan_requests(Workload(40, 10, clients=40, first_wave=40), range(8, 100))
    assert min(request.output_len for request in planned) == 1


def test_every_client_sends_its_next_request_when_one_is_answered():
    server = StandIn()
    loop = ClosedLoop(server, Workload(9, 4, question_len=3, clients=3))  # pyright: ignore
    loop._to_send = type(loop._to_send)((question, 4) for question, _ in loop._to_send)
    with loop.running():
        assert whole_pool.wait_for(lambda: loop.answered == 9, loop, time.monotonic() + 10)
    assert server.calls.count("/generate") == 9
    assert server.calls[-1] == "/abort_request"


def test_an_answer_of_another_length_ends_the_measurement():
    loop = ClosedLoop(StandIn(made=3), Workload(2, 4, question_len=3, clients=1))  # pyright: ignore
    with loop.running(), pytest.raises(ServingError, match="3 tokens instead of"):
        whole_pool.wait_for(lambda: False, loop, time.monotonic() + 10)


def test_nobody_waits_beyond_the_moment_that_was_set():
    loop = ClosedLoop(StandIn(), QUICK)  # pyright: ignore
    assert not whole_pool.wait_for(lambda: False, loop, time.monotonic())


def test_a_counter_is_the_sum_of_its_lines_with_the_label():
    server = StandIn()
    assert whole_pool.counted(server) == 42  # pyright: ignore
    assert whole_pool.counter(server, "sglang:no_such_counter") == 0  # pyright: ignore
