"""What freed memory is worth: more requests at once than stock SGLang, on the same pool."""

import threading
import time
from collections.abc import Iterator

import pytest

from benchmark.ledgers import evaluate
from sgl_dynts import demo_model_path
from sgl_dynts.demo import ledger
from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.hf_reference import Reference, Windows
from tests.e2e.server import Server

DEMO_WINDOWS = Windows(308, 96, 0.9)
DYNTS = ("--attention-backend", "dynts")
FULL_TRACE = 690
POOL = ("--max-total-tokens", str(4 * FULL_TRACE))
PROBLEMS = evaluate.problems_of("test", 16, ledger.DEFAULT_STEPS)


@pytest.fixture(scope="module")
def questions() -> list[list[int]]:
    vocabulary = ledger.Vocabulary()
    return [vocabulary.encode(problem.prompt) for problem in PROBLEMS]


@pytest.fixture(scope="module")
def reference() -> Reference:
    vocabulary = ledger.Vocabulary()
    opening, closing = (vocabulary.encode(word)[0] for word in (ledger.THINK, ledger.END_THINK))
    return Reference(demo_model_path(), (opening, closing))


class Load:
    """All questions at once, and how many requests ran while others waited."""

    def __init__(self, server: Server, questions: list[list[int]]) -> None:
        self.running: list[int] = []
        self._server = server
        self._done = threading.Event()
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        jobs = [
            {"prompt": ids, "length": 800, "sampling_params": {"ignore_eos": False}} for ids in questions
        ]
        self.replies = server.generate_all(jobs)
        self._done.set()
        watcher.join()

    def _watch(self) -> None:
        while not self._done.is_set():
            loads = self._server.request("/v1/loads?include=all")["loads"]
            if any(load["num_waiting_reqs"] for load in loads):
                self.running.append(sum(load["num_running_reqs"] for load in loads))
            time.sleep(0.1)

    @property
    def mean_running(self) -> float:
        return sum(self.running) / len(self.running)

    @property
    def num_retractions(self) -> int:
        return sum(reply["meta_info"]["num_retractions"] for reply in self.replies)

    @property
    def num_right(self) -> int:
        texts = [reply["text"] for reply in self.replies]
        return sum(ledger.is_correct(*pair) for pair in zip(PROBLEMS, texts, strict=True))


@pytest.fixture(scope="module")
def stock(start, questions) -> Load:
    with start(demo_model_path(), "--attention-backend", "torch_native", *POOL) as server:
        return Load(server, questions)


@pytest.mark.parametrize("retracting", [False, True], ids=["", "forced_retraction"])
def test_twice_as_many_requests_at_once_as_stock(start, questions, reference, stock, retracting):
    forced = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "150"} if retracting else {}
    with start(demo_model_path(), *DYNTS, *POOL, **forced) as server:
        ours = Load(server, questions)
        server.assert_nothing_leaked()
    assert ours.mean_running >= 2 * stock.mean_running
    assert (ours.num_retractions > 0) == retracting
    assert stock.num_right == len(PROBLEMS)
    assert ours.num_right >= len(PROBLEMS) - 1
    for question, reply in zip(questions, ours.replies, strict=True):
        case = {"prompt": question, "length": len(reply["output_ids"])}
        assert_equal(reply, reference, case, DEMO_WINDOWS, late=retracting)
        assert reply["meta_info"]["dynts"]["compactions"] >= 10


HOSTILE = [
    {"prompt": prompt(500, 1), "length": 30},
    {"prompt": prompt(20, 2), "length": 400, "dynts": {"enabled": False}},
    *({"prompt": prompt(10 + i, 10 + i), "length": 60 + 7 * i} for i in range(12)),
    {"prompt": prompt(330, 3), "length": 200, "dynts": {"budget": 500, "local_window": 100}},
    {"prompt": prompt(600, 4), "length": 40},
    *({"prompt": prompt(15, 40 + i), "length": 150, "dynts": {"budget": 64}} for i in range(6)),
    {"prompt": prompt(40, 5), "length": 640, "dynts": {"enabled": False}},
    *({"prompt": prompt(30 + i, 70 + i), "length": 2000 // (1 + i)} for i in range(6)),
]


@pytest.fixture(params=["fcfs", "lpm"])
def small_pool(request, models, start) -> Iterator[Server]:
    policy = ("--schedule-policy", request.param, "--enable-mixed-chunk", "--chunked-prefill-size", "128")
    with start(models["llama"], *DYNTS, *policy, "--max-total-tokens", "700") as server:
        yield server


def test_nothing_starves_in_a_small_pool(small_pool):
    """Long prompts, switched-off requests, outputs longer than the pool, and new ones all along."""
    done: list[int] = []
    stop = threading.Event()

    def keep_arriving() -> None:
        seed = 1000
        while not stop.is_set():
            small_pool.generate(prompt(12, seed), 40)
            done.append(seed)
            seed += 1

    arrivals = [threading.Thread(target=keep_arriving) for _ in range(3)]
    for thread in arrivals:
        thread.start()
    replies = small_pool.generate_all(HOSTILE)
    stop.set()
    for thread in arrivals:
        thread.join()
    for job, reply in zip(HOSTILE, replies, strict=True):
        assert len(reply["output_ids"]) == job["length"]
    assert len(done) >= 10
    small_pool.assert_nothing_leaked()
