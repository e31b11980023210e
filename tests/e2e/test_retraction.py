"""Retraction: a request that loses its KV computes it again and goes on under the same budget."""

import pytest

from tests.e2e.conftest import prompt
from tests.e2e.hf_reference import Windows


@pytest.fixture(scope="module")
def server(models, start):
    server = start(
        models["qwen3"],
        "--attention-backend",
        "dynts",
        "--max-total-tokens",
        "1200",
        SGLANG_TEST_RETRACT="1",
        SGLANG_TEST_RETRACT_INTERVAL="40",
    )
    yield server
    server.assert_nothing_leaked()


def test_forced_retractions_lose_nothing(server, reference_of):
    jobs = [{"prompt": prompt(20 + 5 * i, 700 + i), "length": 200} for i in range(12)]
    replies = server.generate_all(jobs)
    retracted = [reply for reply in replies if reply["meta_info"]["num_retractions"]]
    untouched = 0
    for job, reply in zip(jobs, replies, strict=True):
        assert len(reply["output_ids"]) == 200
        assert reply["meta_info"]["dynts"]["compactions"] >= 2
        if not reply["meta_info"]["num_retractions"]:
            untouched += 1
            expected = reference_of("qwen3").generate(job["prompt"], 200, Windows(96, 16, 0.4))
            assert reply["output_ids"] == expected.tokens
    assert len(retracted) >= 3
    assert untouched + len(retracted) == 12


def test_a_retracted_request_computes_everything_again_and_is_compacted_anew(server):
    jobs = [{"prompt": prompt(30, 800 + i), "length": 200} for i in range(12)]
    replies = server.generate_all(jobs)
    retracted = [r["meta_info"]["dynts"] for r in replies if r["meta_info"]["num_retractions"]]
    computed_again = [numbers for numbers in retracted if numbers["peak_window_len"] > 96]
    assert len(computed_again) >= 2
    assert min(numbers["window_len"] for numbers in computed_again) <= 97
    assert all(numbers["dropped_tokens"] > 0 for numbers in computed_again)
