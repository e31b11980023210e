"""Served tokens equal an independent Hugging Face reference, however SGLang schedules them."""

from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.hf_reference import Windows
from tests.e2e.server import Server
from tests.e2e.servers import served_by

DEFAULT = Windows(96, 16, 0.4)
LENGTHS = (5, 12, 20, 31, 40, 47, 60, 75, 90, 110, 130, 150)

pytestmark = served_by(
    "overlap", "no_overlap", "mixed_chunk_and_queue", "tensor_parallel", "no_radix_cache"
)


def jobs(windows: dict | None = None, length: int = 160) -> list[dict]:
    return [{"prompt": prompt(n, seed=n), "length": length, "dynts": windows} for n in LENGTHS]


def test_twelve_requests_compacted_several_times(server, kind, reference_of):
    replies = server.generate_all(jobs())
    for job, reply in zip(jobs(), replies, strict=True):
        expected = assert_equal(reply, reference_of(kind), job, DEFAULT)
        assert expected.num_compactions >= 2
        numbers = reply["meta_info"]["dynts"]
        assert numbers["compactions"] in (expected.num_compactions, expected.num_compactions + 1)
        assert numbers["question_len"] == len(job["prompt"])


def test_own_budgets_and_switched_off_requests_in_one_batch(server, kind, reference_of):
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


def test_a_second_round_hits_the_prompts_and_gives_the_tokens(server, kind, reference_of):
    server.generate_all(jobs(length=120))
    second = server.generate_all(jobs(length=120))
    for two, job in zip(second, jobs(length=120), strict=True):
        assert_equal(two, reference_of(kind), job, DEFAULT)
        assert two["meta_info"]["cached_tokens"] in hits(server, len(job["prompt"]))


def hits(server: Server, prompt_len: int) -> range:
    """Prompt tokens that a second round may find: all but the last, where there is room for all."""
    if "--disable-radix-cache" in server.command:
        return range(1)
    if "900" in server.command:  # the pool is smaller than the prompts and windows together
        return range(prompt_len)
    return range(prompt_len - 1, prompt_len)
