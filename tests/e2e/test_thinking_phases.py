"""Answers and second thoughts: a model that closes and opens its thinking at will."""

import pytest

from benchmark.harness.tiny_models import END_THINK, THINK
from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.hf_reference import Windows, thinking
from tests.e2e.models import CHANGES_ITS_MIND
from tests.e2e.servers import served_by

DEFAULT = Windows(96, 16, 0.4)
CASES = [prompt(10 + 7 * i, 500 + i) for i in range(12)]


pytestmark = served_by("changes_its_mind")


@pytest.fixture(scope="module")
def replies(server) -> list[dict]:
    return server.generate_all([{"prompt": case, "length": 400} for case in CASES])


def test_answers_are_kept_and_second_thoughts_compacted(replies, reference_of):
    reference = reference_of(CHANGES_ITS_MIND)
    compacted_after_answering = 0
    for case, reply in zip(CASES, replies, strict=True):
        expected = assert_equal(reply, reference, {"prompt": case, "length": 400}, DEFAULT)
        answers = [
            len(case) + i for i, thinks in enumerate(thinking(case, expected.tokens[:-1])) if not thinks
        ]
        assert set(answers) <= set(expected.kept)
        numbers = reply["meta_info"]["dynts"]
        assert numbers["dropped_tokens"] >= expected.num_dropped
        answered_long = len(answers) > DEFAULT.local_window
        compacted_after_answering += answered_long and expected.num_dropped > 0
    assert compacted_after_answering >= 3


def test_the_model_did_change_its_mind(replies):
    """The data of the test above: outputs with an answer longer than the window and new thinking."""
    outputs = [reply["output_ids"] for reply in replies]
    reopened = [out for out in outputs if END_THINK in out and THINK in out[out.index(END_THINK) :]]
    assert len(reopened) >= 6
