"""What can happen to a request: each ends well, harms no other, and leaves no slot behind."""

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmark.harness.tiny_models import END_THINK, THINK
from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.hf_reference import Windows
from tests.e2e.server import Server
from tests.e2e.servers import served_by

pytestmark = served_by("overlap")

DEFAULT = Windows(96, 16, 0.4)
BAD_FIELDS = [
    ([], "custom_params.dynts=[] must be an object with enabled, return_compactions, return_tokens"),
    ({"budgett": 9}, "custom_params.dynts.budgett is not known"),
    ({"enabled": "no"}, "custom_params.dynts.enabled='no' must be true or false"),
    ({"budget": 0}, "custom_params.dynts.budget=0 must lie between 2 and"),
    ({"budget": 1.5}, "custom_params.dynts.budget=1.5 must be an integer"),
    ({"budget": 10**30}, " must lie between 2 and"),  # written out or as 1e+30, as the endpoint reads it
    ({"budget": 2**40}, "custom_params.dynts.budget=1099511627776 must lie between 2 and"),
    ({"budget": 16}, "custom_params.dynts.budget=16 must be larger than local_window=16"),
    ({"local_window": 0}, "custom_params.dynts.local_window=0 must lie between 1 and"),
    ({"local_window": True}, "custom_params.dynts.local_window=True must be an integer"),
    ({"keep_ratio": 1}, "custom_params.dynts.keep_ratio=1 must lie between 0 and 1"),
    ({"keep_ratio": "half"}, "custom_params.dynts.keep_ratio='half' must be a number"),
    (
        {"policy": "best"},
        "custom_params.dynts.policy='best' must be one of predictor, calibrated, hybrid,",
    ),
    ({"enabled": False, "budget": -5}, "custom_params.dynts.budget=-5 must lie between 2 and"),
]


@pytest.fixture(scope="module")
def reference(reference_of):
    return reference_of("qwen3")


def wait_until(happened) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def stream(server: Server, tokens: list[int], length: int, until: int | None = None, **extra) -> dict:
    """Read a streamed reply to its end, or close the connection after ``until`` tokens."""
    custom = {"dynts": {"return_compactions": True}}
    params = {"max_new_tokens": length, "temperature": 0, "ignore_eos": True, "custom_params": custom}
    body = {"input_ids": tokens, "sampling_params": params, "stream": True, **extra}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    connection.request("POST", "/generate", json.dumps(body), server.client.headers)
    last: dict = {}
    for raw in connection.getresponse():
        line = raw.decode().strip()
        if line.startswith("data: {"):
            last = json.loads(line.removeprefix("data: "))
            if until is not None and len(last["output_ids"]) >= until:
                break
    connection.close()
    return last


@pytest.mark.parametrize(("options", "message"), BAD_FIELDS)
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_a_bad_field_gets_http_400_with_its_name(server, path, options, message):
    custom = {"custom_params": {"dynts": options}}
    if path == "/generate":
        body = {"input_ids": prompt(9, 1), "sampling_params": {"max_new_tokens": 4, **custom}}
    else:
        body = {"model": "m", "prompt": prompt(9, 1), "max_tokens": 4, **custom}
    status, text = server.error(path, body)
    assert status == 400
    assert message in text
    assert server.generate(prompt(9, 1), 4)["meta_info"]["completion_tokens"] == 4


@pytest.mark.parametrize("prompt_field", [{"text": ""}, {"input_ids": []}], ids=["text", "ids"])
def test_a_prompt_without_tokens_gets_http_400_and_the_server_lives_on(server, prompt_field):
    status, _text = server.error("/generate", prompt_field | {"sampling_params": {"max_new_tokens": 2}})
    assert status == 400
    server.assert_nothing_leaked()


def test_meta_info_tells_the_windows_and_what_was_dropped(server, reference):
    expected = reference.generate(prompt(20, 7), 200, DEFAULT)
    numbers = server.generate(prompt(20, 7), 200)["meta_info"]["dynts"]
    assert numbers | {"window_len": 0} == {
        "enabled": True,
        "policy": "predictor",
        "question_len": 20,
        "compactions": expected.num_compactions,
        "early_compactions": 0,
        "resumptions": 0,
        "compacted_at": numbers["compacted_at"],
        "dropped_then": numbers["dropped_then"],
        "dropped_tokens": expected.num_dropped,
        "window_len": 0,
        "peak_window_len": 96,
        "budget": 96,
        "local_window": 16,
        "keep_ratio": 0.4,
    }
    assert numbers["window_len"] - len(expected.kept) in (0, 1)


def test_a_question_three_times_the_budget_is_kept_whole(server, reference):
    question = prompt(300, 11)
    expected = reference.generate(question, 150, DEFAULT)
    reply = server.generate(question, 150)
    assert expected.num_compactions >= 2
    assert expected.kept[:300] == list(range(300))
    assert reply["output_ids"] == expected.tokens


def test_a_question_is_shared_by_those_who_continue_its_thinking_and_what_they_thought_is_not(
    server, reference
):
    """The thoughts of one may be dropped, and none of another's may be read in their place."""
    question = [*prompt(40, 1400), THINK]
    first = [*question, *prompt(120, 1401)[1:]]
    shared: list[int] = []
    for tokens in (first, [*question, *prompt(90, 1402)[1:]], first, [*first, 50, 51]):
        reply = server.generate(tokens, 150)
        assert_equal(reply, reference, {"prompt": tokens, "length": 150}, DEFAULT)
        assert reply["meta_info"]["dynts"]["question_len"] == 41
        assert reply["meta_info"]["dynts"]["peak_window_len"] <= len(tokens) + 2
        shared.append(reply["meta_info"]["cached_tokens"])
    assert shared[0] in (0, 1)  # the first token is that of other tests' prompts
    assert shared[1:] == [41, 41, 41]


def test_compaction_after_compaction_drops_of_the_thinking_that_a_prompt_continues(server, reference):
    windows = {"budget": 160, "local_window": 16, "keep_ratio": 0.8}
    tokens = [*prompt(40, 1410), THINK, *prompt(150, 1411)[1:]]
    reply = server.generate(tokens, 250, windows | {"return_tokens": True})
    case = {"prompt": tokens, "length": 250}
    expected = assert_equal(reply, reference, case, Windows(**windows))
    numbers = reply["meta_info"]["dynts"]
    assert (numbers["question_len"], numbers["budget"]) == (41, 160)
    dropped = [set(drop["positions"]) for drop in numbers["tokens"]["dropped"]]
    assert sorted(set().union(*dropped, expected.kept)) == list(range(len(tokens) + 249))
    assert not set().union(*dropped) & set(expected.kept)
    thought = set(range(41, len(tokens)))
    assert sum(bool(thought & one) for one in dropped) >= 3


def test_thinking_closed_in_the_prompt_is_never_compacted(server, reference):
    question = [*prompt(20, 12), THINK, END_THINK]
    reply = server.generate(question, 200)
    assert reply["meta_info"]["dynts"]["compactions"] == 0
    assert reply["output_ids"] == reference.generate(question, 200, None).tokens


def test_thinking_opened_in_the_prompt_is_compacted(server, reference):
    question = [*prompt(20, 13), END_THINK, *prompt(5, 14), THINK]
    expected = reference.generate(question, 200, DEFAULT)
    assert expected.num_compactions >= 3
    assert server.generate(question, 200)["output_ids"] == expected.tokens


def test_a_follow_up_never_reads_a_compacted_row(server, reference):
    """Fails without the clamp: the follow-up then matches rows whose slots belong to other tokens."""
    question = prompt(40, 15)
    first = server.generate(question, 200)
    assert first["meta_info"]["dynts"]["compactions"] >= 3
    follow_up = question + first["output_ids"][:150]
    reply = server.generate(follow_up, 60)
    assert reply["meta_info"]["cached_tokens"] == 40
    assert reply["output_ids"] == reference.generate(follow_up, 60, DEFAULT).tokens


def test_what_was_never_compacted_is_shared_as_in_stock_sglang(server):
    for seed, options in ((16, None), (17, {"enabled": False})):
        question = prompt(30, seed)
        first = server.generate(question, 40, options)
        assert first["meta_info"]["dynts"]["compactions"] == 0
        follow_up = [*question, *first["output_ids"], 50]
        assert server.generate(follow_up, 5)["meta_info"]["cached_tokens"] >= 68


def test_abort_in_mid_thought_frees_everything(server):
    worker = threading.Thread(target=stream, args=(server, prompt(30, 18), 3000), kwargs={"rid": "gone"})
    worker.start()
    wait_until(lambda: server.used_tokens() > 60)
    server.request("/abort_request", {"rid": "gone"})
    worker.join(60)
    assert not worker.is_alive()
    wait_until(lambda: server.used_tokens() == 0)


def test_a_client_that_hangs_up_frees_everything(server):
    last = stream(server, prompt(30, 19), 3000, until=150)
    assert last["meta_info"]["dynts"]["compactions"] >= 1
    wait_until(lambda: server.used_tokens() == 0)


def test_flush_forgets_the_prompts_and_nothing_else(server):
    first = server.generate(prompt(30, 20), 150)
    assert server.generate(prompt(30, 20), 1)["meta_info"]["cached_tokens"] == 29
    server.assert_nothing_leaked()
    again = server.generate(prompt(30, 20), 150)
    assert again["meta_info"]["cached_tokens"] == 0
    assert again["output_ids"] == first["output_ids"]


def test_stop_string_and_stop_token_end_a_compacted_request(server):
    tokens = server.generate(prompt(30, 21), 250)["output_ids"]
    at = next(i for i in range(150, 250) if tokens.index(tokens[i]) == i)
    by_token = server.generate(
        prompt(30, 21),
        250,
        sampling_params={"stop_token_ids": [tokens[at]], "ignore_eos": False},
    )
    by_text = server.generate(prompt(30, 21), 250, sampling_params={"stop": [f"w{tokens[at]}"]})
    for reply in (by_token, by_text):
        assert reply["meta_info"]["finish_reason"]["type"] == "stop"
        assert reply["meta_info"]["dynts"]["compactions"] >= 1
    assert by_token["output_ids"][:at] == tokens[:at]
    assert f"w{tokens[at]}" not in by_text["text"].split()


def test_parallel_samples_are_compacted_each(server, reference):
    case = {"prompt": prompt(25, 22), "length": 200}
    replies = server.generate(**case, sampling_params={"n": 3})
    assert len(replies) == 3
    for reply in replies:
        expected = assert_equal(reply, reference, case, DEFAULT)
        assert reply["meta_info"]["dynts"]["compactions"] == expected.num_compactions >= 2


def test_logprobs_of_a_compacted_request_are_the_reference_s(server, reference):
    expected = reference.generate(prompt(25, 23), 200, DEFAULT)
    reply = server.generate(prompt(25, 23), 200, return_logprob=True, top_logprobs_num=2)
    found = reply["meta_info"]["output_token_logprobs"]
    assert [token for _, token, _ in found] == expected.tokens
    assert [value for value, _, _ in found] == pytest.approx(expected.logprobs, abs=1e-3)


def test_structured_output_holds_across_compactions(server, reference):
    expected = reference.generate(prompt(25, 24), 200, DEFAULT, allowed=range(10, 30))
    assert expected.num_compactions >= 3
    reply = server.generate(prompt(25, 24), 200, sampling_params={"regex": "(w1[0-9]|w2[0-9])+"})
    assert reply["output_ids"] == expected.tokens


def test_sixty_four_streams_of_mixed_length_all_equal_the_reference(server, reference):
    cases = [(prompt(5 + 2 * i, 100 + i), 20 + (37 * i) % 180) for i in range(64)]
    with ThreadPoolExecutor(64) as pool:
        replies = list(pool.map(lambda case: stream(server, *case), cases))
    for (question, length), reply in zip(cases, replies, strict=True):
        assert_equal(reply, reference, {"prompt": question, "length": length}, DEFAULT)
    assert sum(reply["meta_info"]["dynts"]["compactions"] for reply in replies) >= 64


def test_hostile_requests_side_by_side_with_good_ones(server, reference):
    good = [{"prompt": prompt(20 + i, 300 + i), "length": 120} for i in range(6)]
    bad = [{"budget": i} for i in range(6)]

    def refuse(options: dict) -> int:
        params = {"max_new_tokens": 4, "custom_params": {"dynts": options}}
        return server.error("/generate", {"input_ids": prompt(9, 1), "sampling_params": params})[0]

    with ThreadPoolExecutor(12) as pool:
        refused = [pool.submit(refuse, options) for options in bad]
        replies = list(pool.map(lambda job: server.generate(**job), good))
    assert [future.result() for future in refused] == [400] * 6
    for job, reply in zip(good, replies, strict=True):
        assert_equal(reply, reference, job, DEFAULT)
