"""The requests that a workload draws."""

import json
from itertools import pairwise
from math import inf

from benchmark.simulation.job import Job, ServerSpec, Workload, plan_requests
from sgl_dynts.config import DynTSConfig

WORDS = range(8, 100)


def test_a_job_survives_its_json():
    job = Job(ServerSpec(windows=DynTSConfig(96, 16, 0.4), flags=("--a", "1")), Workload(3, 10), 60, 5)
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_without_a_rate_all_arrive_at_once_with_full_lengths():
    planned = plan_requests(Workload(5, 100, question_len=7), WORDS)
    assert [request.arrival for request in planned] == [0.0] * 5
    assert [request.output_len for request in planned] == [100] * 5
    assert [len(request.question) for request in planned] == [7] * 5
    assert len({request.question for request in planned}) == 5


def test_the_first_request_of_each_client_has_any_length():
    planned = plan_requests(Workload(2100, 100, clients=2000), WORDS)
    lengths = [request.output_len for request in planned]
    assert lengths[2000:] == [100] * 100
    assert min(lengths) == 1
    assert max(lengths) == 100
    assert 45 < sum(lengths[:2000]) / 2000 < 56


def test_the_next_request_of_a_client_waits_for_one_to_finish():
    planned = plan_requests(Workload(5, 100, clients=3), WORDS)
    assert [request.arrival for request in planned] == [0.0, 0.0, 0.0, inf, inf]


def test_a_rate_gives_poisson_arrivals():
    planned = plan_requests(Workload(4000, 10, rate=8.0), WORDS)
    gaps = [b.arrival - a.arrival for a, b in pairwise(planned)]
    assert 0.115 < sum(gaps) / len(gaps) < 0.135
    memoryless = sum(gap > 0.125 for gap in gaps) / len(gaps)
    assert 0.33 < memoryless < 0.41  # 1/e


def test_the_spread_wave_arrives_evenly():
    planned = plan_requests(Workload(6, 10, spread_wave=4, spread_seconds=2.0), WORDS)
    assert [request.arrival for request in planned] == [0.0, 0.5, 1.0, 1.5, 1.5, 1.5]


def test_a_shared_prefix_is_part_of_the_question():
    first, second = plan_requests(Workload(2, 10, question_len=9, shared_prefix_len=6), WORDS)
    assert first.question[:6] == second.question[:6]
    assert first.question[6:] != second.question[6:]
    assert len(first.question) == 9


def test_thinking_closes_so_that_the_answer_follows():
    answering, thinking = Workload(1, 100, answer_len=20), Workload(1, 100)
    assert plan_requests(answering, WORDS)[0].close_at == 79
    assert plan_requests(thinking, WORDS)[0].close_at == -1


def test_the_seed_decides():
    def plan(seed):
        return plan_requests(Workload(5, 100, rate=1.0, seed=seed), WORDS)

    assert plan(1) == plan(1)
    assert plan(1) != plan(2)
