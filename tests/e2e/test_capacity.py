"""What freed memory is worth: more requests at once than stock SGLang, on the same pool."""

import threading
import time

import pytest

from benchmark.ledgers import evaluate
from sgl_dynts import demo_model_path
from sgl_dynts.demo import ledger
from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.hf_reference import Reference, Windows
from tests.e2e.server import Server
from tests.e2e.servers import served_by

DEMO_WINDOWS = Windows(308, 96, 0.9)
PROBLEMS = evaluate.problems_of("test", 12, ledger.DEFAULT_STEPS)


@pytest.fixture(scope="session")
def questions() -> list[list[int]]:
    vocabulary = ledger.Vocabulary()
    return [vocabulary.encode(problem.prompt) for problem in PROBLEMS]


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def stock_load(stock, questions) -> Load:
    return Load(stock, questions)


@served_by("demo", "demo_retracting")
def test_twice_as_many_requests_at_once_as_stock(request, server, questions, reference, stock_load):
    retracting = request.node.callspec.params["server"] == "demo_retracting"
    ours = Load(server, questions)
    assert ours.mean_running >= 2 * stock_load.mean_running
    assert (ours.num_retractions > 0) == retracting
    assert stock_load.num_right == len(PROBLEMS)
    assert ours.num_right >= len(PROBLEMS) - 1
    for question, reply in zip(questions, ours.replies, strict=True):
        case = {"prompt": question, "length": len(reply["output_ids"])}
        assert_equal(reply, reference, case, DEMO_WINDOWS, late=retracting)
        assert reply["meta_info"]["dynts"]["compactions"] >= 10


HOSTILE = [
    {"prompt": prompt(650, 1), "length": 30},
    {"prompt": prompt(20, 2), "length": 500, "dynts": {"enabled": False}},
    *({"prompt": prompt(10 + i, 10 + i), "length": 60 + 7 * i} for i in range(12)),
    {"prompt": prompt(430, 3), "length": 200, "dynts": {"budget": 600, "local_window": 100}},
    {"prompt": prompt(790, 4), "length": 40},
    *({"prompt": prompt(15, 40 + i), "length": 150, "dynts": {"budget": 64}} for i in range(6)),
    {"prompt": prompt(40, 5), "length": 840, "dynts": {"enabled": False}},
    *({"prompt": prompt(30 + i, 70 + i), "length": 1200 // (1 + i)} for i in range(6)),
]


@served_by("mixed_chunk_and_queue", "longest_prefix_first")
def test_nothing_starves_in_a_small_pool(server):
    """Long prompts, switched-off requests, outputs longer than the pool, and new ones all along."""
    done: list[int] = []
    stop = threading.Event()

    def keep_arriving() -> None:
        seed = 1000
        while not stop.is_set():
            server.generate(prompt(12, seed), 40)
            done.append(seed)
            seed += 1

    arrivals = [threading.Thread(target=keep_arriving) for _ in range(3)]
    for thread in arrivals:
        thread.start()
    replies = server.generate_all(HOSTILE)
    stop.set()
    for thread in arrivals:
        thread.join()
    for job, reply in zip(HOSTILE, replies, strict=True):
        assert len(reply["output_ids"]) == job["length"]
    assert len(done) >= 10
    server.assert_nothing_leaked()
