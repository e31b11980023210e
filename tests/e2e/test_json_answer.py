"""An answer by a JSON schema after free thinking, told apart from it by the reasoning parser."""

import re

import pytest

from benchmark.harness.tiny_models import END_THINK
from tests.e2e.servers import served_by
from tests.e2e.test_front_ends import run_example

QUESTIONS = [f"What is {number} * 7?" for number in range(1, 13)]
LENGTH = 1000


@pytest.fixture(scope="module")
def question(server) -> str:
    """One whose thinking is compacted and closed; the model is a random one."""
    for text in QUESTIONS:
        params = {"max_new_tokens": LENGTH, "temperature": 0, "stop_token_ids": [END_THINK]}
        body = {"text": f"<bos>{text}<think>", "sampling_params": params}
        numbers = server.request("/generate", body)["meta_info"]
        if numbers["finish_reason"]["type"] == "stop" and numbers["dynts"]["compactions"] >= 1:
            return text
    raise AssertionError("the random model never closes its thinking: take another seed")


@served_by("speller")
def test_the_schema_binds_the_answer_and_leaves_the_thinking_free(server, question):
    arguments = ("--url", server.url(""), "--question", question, "--max-tokens", str(LENGTH + 50))
    printed = run_example("json_after_thinking.py", *arguments)
    thinking, rest = printed.removeprefix("thinking:").split("\nanswer: ")
    assert len(thinking) > 50
    assert re.fullmatch(r"[0-9]{1,4}\ncompactions: [0-9]+\n", rest)
    assert int(rest.split()[-1]) >= 1
