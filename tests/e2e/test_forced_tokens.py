"""Tokens that are forced through a server cost what the simulation of `benchmark.likelihood` says."""

import random

import pytest
import torch

from benchmark.forced.served import forced_nll, largest_difference
from benchmark.harness.tiny_models import FIRST_WORD
from sgl_dynts.calibration import CALIBRATION_FILE, load_calibration
from sgl_dynts.checkpoint import find_predictor, load_predictor
from sgl_dynts.config import DynTSConfig
from sgl_dynts.policies import ModelFacts, policies
from sgl_dynts.training.forced.full_cache import FullCache, Text
from sgl_dynts.training.forced.measures import likelihood
from sgl_dynts.training.forced.reader import Reader
from tests.e2e.hf_reference import NUM_QUERIES
from tests.e2e.models import VOCAB_SIZE
from tests.e2e.servers import SERVERS, served_by

WINDOWS = DynTSConfig(96, 16, 0.4)
SETTLED = 1e-3
"""Nats; float32 of two programs."""
JUDGED = (
    *("window", "streaming", "random", "predictor", "random_per_head", "snapkv", "snapkv_per_head"),
    *("rkv_per_head", "h2o", "h2o_per_head", "calibrated", "triattention_per_head"),
)


@pytest.fixture(scope="session")
def folder(model_of):
    return model_of(SERVERS["forced"].model)


@pytest.fixture(scope="session")
def full(folder) -> FullCache:
    draw = random.Random(5)
    tokens = [draw.randrange(FIRST_WORD, VOCAB_SIZE) for _ in range(330)]
    torch.set_num_threads(1)
    predictor = load_predictor(find_predictor(folder)).float()
    return FullCache(Reader.load(folder, NUM_QUERIES), Text(tokens, 20), predictor)


def simulated(full: FullCache, folder, name: str) -> list[float]:
    """What every token costs that was computed after the first compaction."""
    reader, path, queries = full.reader, folder / CALIBRATION_FILE, ()
    if path.exists():
        queries = reader.layer_queries(load_calibration(path).layers, 4096)
    facts = ModelFacts(
        num_layers=reader.num_layers,
        num_kv_heads=reader.num_kv_heads,
        queries=queries,
        period=WINDOWS.period,
    )
    states = full.read_under({name: policies()[name].build(facts)}, WINDOWS)
    assert states is not None
    logits = reader.logits(states[0])
    return likelihood(logits, logits, torch.tensor(full.text.tokens[-len(logits) :])).nll.tolist()


@pytest.mark.parametrize("name", JUDGED)
@served_by("forced")
def test_a_server_gives_forced_tokens_what_the_simulation_says(server, full, folder, name):
    wanted = simulated(full, folder, name)
    served = forced_nll(server.client, full.text, name, WINDOWS)
    assert len(wanted) == 330 - 1 - 96
    assert largest_difference(served, wanted) < SETTLED
    if name != "window":
        assert largest_difference(served, simulated(full, folder, "window")) > 100 * SETTLED
