"""Served tokens equal an independent Hugging Face reference, however SGLang schedules them."""

import pytest

from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.hf_reference import Windows
from tests.e2e.server import Server

DYNTS = ("--attention-backend", "dynts")
DEFAULT = Windows(96, 16, 0.4)
LENGTHS = (5, 12, 20, 31, 40, 47, 60, 75, 90, 110, 130, 150)

SETTINGS = {
    "overlap": ("qwen2", (), {}),
    "no_overlap": ("llama", ("--disable-overlap-schedule",), {}),
    "mixed_chunk_and_queue": (
        "qwen3",
        ("--enable-mixed-chunk", "--chunked-prefill-size", "32", "--max-total-tokens", "900"),
        {},
    ),
    "tensor_parallel": (
        "qwen2",
        ("--tp-size", "2"),
        {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"},
    ),
    "no_radix_cache": ("qwen3_moe", ("--disable-radix-cache",), {}),
}


@pytest.fixture(scope="module", params=SETTINGS)
def served(request, models, start):
    kind, flags, environment = SETTINGS[request.param]
    server: Server = start(models[kind], *DYNTS, *flags, **environment)
    yield kind, server
    server.assert_nothing_leaked()
    server.stop()


def jobs(windows: dict | None = None, length: int = 240) -> list[dict]:
    return [{"prompt": prompt(n, seed=n), "length": length, "dynts": windows} for n in LENGTHS]


def test_twelve_requests_compacted_several_times(served, reference_of):
    kind, server = served
    replies = server.generate_all(jobs())
    for job, reply in zip(jobs(), replies, strict=True):
        expected = assert_equal(reply, reference_of(kind), job, DEFAULT)
        assert expected.num_compactions >= 3
        numbers = reply["meta_info"]["dynts"]
        assert numbers["compactions"] in (expected.num_compactions, expected.num_compactions + 1)
        assert numbers["question_len"] == len(job["prompt"])


def test_own_budgets_and_switched_off_requests_in_one_batch(served, reference_of):
    kind, server = served
    choices = [
        (None, DEFAULT),
        ({"enabled": False}, None),
        ({"budget": 128, "local_window": 24, "keep_ratio": 0.5}, Windows(128, 24, 0.5)),
        ({"budget": 64}, Windows(64, 16, 0.4)),
    ]
    mixed = jobs(length=150)
    for index, job in enumerate(mixed):
        job["dynts"] = choices[index % len(choices)][0]
    replies = server.generate_all(mixed)
    for index, (job, reply) in enumerate(zip(mixed, replies, strict=True)):
        assert_equal(reply, reference_of(kind), job, choices[index % len(choices)][1])
        assert reply["meta_info"]["dynts"]["enabled"] == (choices[index % len(choices)][1] is not None)


def test_a_second_round_hits_the_prompts_and_gives_the_tokens(served, reference_of):
    kind, server = served
    server.generate_all(jobs(length=120))
    second = server.generate_all(jobs(length=120))
    for two, job in zip(second, jobs(length=120), strict=True):
        assert_equal(two, reference_of(kind), job, DEFAULT)
        assert two["meta_info"]["cached_tokens"] in hits(kind, len(job["prompt"]))


def hits(kind: str, prompt_len: int) -> range:
    """Prompt tokens that a second round may find: all but the last, where there is room for all."""
    if kind == "qwen3_moe":  # served without a radix cache
        return range(1)
    if kind == "qwen3":  # the pool is smaller than the prompts and windows together
        return range(prompt_len)
    return range(prompt_len - 1, prompt_len)
