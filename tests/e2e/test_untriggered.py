"""DynTS loaded but never due: the same bits as stock SGLang, measured against it side by side."""

import pytest

from tests.e2e.conftest import prompt
from tests.e2e.servers import served_by

LENGTHS = (3, 17, 40, 77, 120, 200)


pytestmark = served_by("demo")  # whose budget is 308


@pytest.fixture
def pair(server, stock):
    for one in (server, stock):
        one.assert_nothing_leaked()  # flushes what other tests left in the tree
    return server, stock


def runs(server):
    jobs = [{"prompt": prompt(n, n), "length": 60, "return_logprob": True} for n in LENGTHS]
    return [server.generate(**job) for job in jobs]


def test_tokens_and_logprobs_are_bit_identical_to_stock(pair):
    ours, stock = (runs(server) for server in pair)
    for mine, theirs in zip(ours, stock, strict=True):
        assert mine["output_ids"] == theirs["output_ids"]
        key = "output_token_logprobs"
        assert mine["meta_info"][key] == theirs["meta_info"][key]
        assert mine["meta_info"]["dynts"]["compactions"] == 0


def test_prefix_hits_are_those_of_stock(pair):
    question = prompt(90, 900)
    follow = [
        [*question[:50], *prompt(20, 901)],
        [*question, *prompt(30, 902)],
        question,
        question[:30],
    ]
    hits = []
    for server in pair:
        server.generate(question, 20)
        hits.append([server.generate(case, 5)["meta_info"]["cached_tokens"] for case in follow])
    assert hits[0] == hits[1]
    assert min(hits[0]) >= 29


def test_stock_refuses_our_field_by_name_of_the_flag(pair):
    params = {"max_new_tokens": 4, "custom_params": {"dynts": {"budget": 64}}}
    status, text = pair[1].error("/generate", {"input_ids": [5, 6], "sampling_params": params})
    assert status == 400
    assert "this server runs without DynTS; start it with --attention-backend dynts" in text
