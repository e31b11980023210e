"""Features of the server in pairs that no other test has together: the tokens of Hugging Face with each.

``tests/seam/test_together.py`` finds the pairs that are missing.
"""

from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.head_reference import HeadReference
from tests.e2e.servers import served_by
from tests.e2e.test_equality_by_head import assert_equal_by_head

RECORDING = ("all_schedules", "hierarchy_observing", "workers_observing")
OTHERS = (
    *("drafts_on_two_ranks", "latents_with_drafts", "latents_in_turns", "states_in_turns"),
    *("ranks_of_two", "sliding_in_turns", "sliding_hierarchy", "workers_two_pools"),
    *("workers_latents", "workers_hierarchy", "workers_states", "workers_with_drafts"),
)
LENGTHS = (5, 31, 60, 110)


def jobs(first_seed: int, **dynts: str) -> list[dict]:
    return [{"prompt": prompt(n, first_seed + n), "length": 110, "dynts": dynts} for n in LENGTHS]


@served_by(*RECORDING, *OTHERS)
def test_the_tokens_are_those_of_hugging_face(server, kind, windows, reference_of):
    for job, reply in zip(jobs(800), server.generate_all(jobs(800)), strict=True):
        assert assert_equal(reply, reference_of(kind), job, windows).num_compactions >= 1


@served_by(*RECORDING)
def test_a_policy_reads_the_queries(server, kind, windows, model_of):
    some = jobs(900, policy="snapkv_per_head")
    reference = HeadReference(model_of(kind), attention="eager")
    for job, reply in zip(some, server.generate_all(some), strict=True):
        assert_equal_by_head(reply, reference, job, windows=windows)
