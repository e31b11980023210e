"""``custom_params.dynts``: what a request may ask for, and what it is told otherwise."""

import re
from math import inf, nan
from typing import Any

import pytest
from sglang.srt.sampling.sampling_params import SamplingParams

from sgl_dynts.config import DynTSConfig
from sglang_dynts.entry.options import config_of_request, policy_of_request, request_config

SERVER = DynTSConfig(96, 16, 0.4)
SWITCHES = "enabled, return_compactions, return_tokens, return_meta_info"
KNOWN = f"{SWITCHES}, budget, local_window, keep_ratio, policy"
BAD = [
    (7, f"custom_params.dynts=7 must be an object with {KNOWN}"),
    ([], f"custom_params.dynts=[] must be an object with {KNOWN}"),
    ({"budgets": 1}, f"custom_params.dynts.budgets is not known; it takes {KNOWN}"),
    ({"min_selection": 1}, f"custom_params.dynts.min_selection is not known; it takes {KNOWN}"),
    ({"return_tokens": "yes"}, "custom_params.dynts.return_tokens='yes' must be true or false"),
    ({"return_compactions": 0}, "custom_params.dynts.return_compactions=0 must be true or false"),
    ({"enabled": "yes"}, "custom_params.dynts.enabled='yes' must be true or false"),
    ({"enabled": 1}, "custom_params.dynts.enabled=1 must be true or false"),
    ({"budget": "50"}, "custom_params.dynts.budget='50' must be an integer of at least 2"),
    ({"budget": True}, "custom_params.dynts.budget=True must be an integer of at least 2"),
    ({"budget": 308.5}, "custom_params.dynts.budget=308.5 must be an integer of at least 2"),
    ({"budget": 1e30}, "custom_params.dynts.budget=1e+30 must lie between 2 and 2147483648"),
    ({"budget": inf}, "custom_params.dynts.budget=inf must be an integer of at least 2"),
    ({"budget": nan}, "custom_params.dynts.budget=nan must be an integer of at least 2"),
    (
        {"budget": 10**5000},
        "custom_params.dynts.budget=(int, too large to show) must lie between 2 and 2147483648",
    ),
    (
        {"budget": "9" * 3000},
        f"custom_params.dynts.budget='{'9' * 196}... must be an integer of at least 2",
    ),
    ({"b" * 3000: 1}, f"custom_params.dynts.{'b' * 197}... is not known; it takes {KNOWN}"),
    (["x" * 3000], f"custom_params.dynts=['{'x' * 195}... must be an object with {KNOWN}"),
    (
        {"keep_ratio": "0.4"},
        "custom_params.dynts.keep_ratio='0.4' must be a number between 0 and 1, both excluded",
    ),
    (
        {"keep_ratio": nan},
        "custom_params.dynts.keep_ratio=nan must lie between 0 and 1, both excluded",
    ),
    ({"budget": 1}, "custom_params.dynts.budget=1 must lie between 2 and 2147483648"),
    (
        {"budget": 16},
        "custom_params.dynts.budget=16 must be larger than local_window=16: raise the budget or "
        "shorten the local window",
    ),
    ({"local_window": 0}, "custom_params.dynts.local_window=0 must lie between 1 and 2147483648"),
    ({"local_window": 1.5}, "custom_params.dynts.local_window=1.5 must be an integer of at least 1"),
    (
        {"keep_ratio": 1.5},
        "custom_params.dynts.keep_ratio=1.5 must lie between 0 and 1, both excluded",
    ),
    (
        {"keep_ratio": True},
        "custom_params.dynts.keep_ratio=True must be a number between 0 and 1, both excluded",
    ),
    (
        {"policy": "best"},
        "custom_params.dynts.policy='best' must be one of predictor, calibrated, hybrid, "
        "random, random_per_head, window, streaming, sepllm, bottom, h2o, h2o_per_head, snapkv, "
        "snapkv_per_head, rkv, rkv_per_head, triattention_per_head, full",
    ),
    (
        {"enabled": False, "keep_ratio": 9},
        "custom_params.dynts.keep_ratio=9 must lie between 0 and 1, both excluded",
    ),
]
BAD_IDS = [message[:90] for _, message in BAD]
GOOD = [
    ({}, SERVER),
    ({"enabled": True}, SERVER),
    ({"enabled": False}, None),
    ({"budget": 50}, DynTSConfig(50, 16, 0.4)),
    ({"budget": 50.0, "local_window": 8.0}, DynTSConfig(50, 8, 0.4)),
    (
        {"budget": None, "keep_ratio": None, "enabled": None, "policy": None, "return_tokens": None},
        SERVER,
    ),
    ({"budget": 50, "local_window": None}, DynTSConfig(50, 16, 0.4)),
    ({"budget": 50, "local_window": 8, "keep_ratio": 0.25}, DynTSConfig(50, 8, 0.25)),
    ({"enabled": False, "budget": 50}, None),
    ({"policy": "window"}, SERVER),
    ({"policy": "random", "budget": 50}, DynTSConfig(50, 16, 0.4)),
    ({"policy": "full"}, None),
]


def refuses(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def params(options: Any) -> SamplingParams:
    return SamplingParams(custom_params={"dynts": options})


@pytest.mark.parametrize(("options", "message"), BAD, ids=BAD_IDS)
def test_a_bad_field_is_refused_by_name_value_and_what_it_may_be(options, message):
    with refuses(message):
        request_config(options, SERVER, None)


@pytest.mark.parametrize(("options", "message"), BAD, ids=BAD_IDS)
def test_sglang_refuses_the_request_with_the_same_words(serve, options, message):
    serve("--attention-backend", "dynts")
    with refuses(message):
        params(options).verify(256)


@pytest.mark.parametrize(("options", "config"), GOOD, ids=[str(options) for options, _ in GOOD])
def test_a_good_request_gets_its_windows(serve, options, config):
    serve("--attention-backend", "dynts")
    params(options).verify(256)
    assert config_of_request(params(options), SERVER) == config


@pytest.mark.parametrize("custom", [None, {}, {"other": 1}])
def test_a_request_that_says_nothing_gets_the_servers_windows(serve, custom):
    serve("--attention-backend", "dynts")
    SamplingParams(custom_params=custom).verify(256)
    assert config_of_request(SamplingParams(custom_params=custom), SERVER) == SERVER


def test_the_servers_least_selection_is_lowered_to_a_requests_own_windows():
    assert request_config({"budget": 96}, SERVER, 30) == DynTSConfig(96, 16, 0.4, 30)
    assert request_config({"budget": 36}, SERVER, 30) == DynTSConfig(36, 16, 0.4, 8)


def test_a_server_without_dynts_refuses_the_field(serve):
    serve("--attention-backend", "torch_native")
    with refuses(
        "custom_params.dynts: this server runs without DynTS; start it with --attention-backend "
        "dynts, or leave the field out"
    ):
        params({"enabled": False}).verify(256)


def test_a_server_without_dynts_serves_everything_else(serve):
    serve("--attention-backend", "torch_native")
    SamplingParams(custom_params={"other": 1}).verify(256)


def test_sglangs_own_checks_still_run(serve):
    serve("--attention-backend", "dynts")
    with pytest.raises(ValueError, match="temperature must be a non-negative finite number"):
        SamplingParams(temperature=-1.0).verify(256)


def test_a_request_follows_its_own_policy_or_the_servers(serve):
    serve("--attention-backend", "dynts", "--dynts-policy", "streaming")
    assert policy_of_request(SamplingParams()) == "streaming"
    assert policy_of_request(params({"budget": 50})) == "streaming"
    assert policy_of_request(params({"policy": "predictor"})) == "predictor"


def test_a_server_whose_policy_is_full_compacts_only_who_asks(serve):
    serve("--attention-backend", "dynts", "--dynts-policy", "full")
    assert config_of_request(SamplingParams(), SERVER) is None
    assert config_of_request(params({"policy": "window"}), SERVER) == SERVER


BARE = ("--dynts-budget", "80", "--dynts-local-window", "20", "--dynts-keep-ratio", "0.5")


@pytest.mark.parametrize("policy", ["predictor", "bottom"])
def test_a_server_without_a_predictor_refuses_what_needs_one(serve, bare, policy):
    serve("--attention-backend", "dynts", "--dynts-policy", "window", *BARE, folder=bare)
    params({"policy": "random"}).verify(256)
    with refuses(
        f"custom_params.dynts.policy={policy!r} needs a predictor, and this server was started without "
        "one; choose another policy"
    ):
        params({"policy": policy}).verify(256)


def test_a_predictor_that_is_there_serves_whatever_the_servers_policy(serve):
    serve("--attention-backend", "dynts", "--dynts-policy", "window")
    params({"policy": "predictor"}).verify(256)


@pytest.mark.parametrize("policy", ["h2o", "snapkv", "rkv"])
def test_a_server_that_keeps_no_queries_refuses_who_reads_attention(serve, policy):
    serve("--attention-backend", "dynts")
    with refuses(
        f"custom_params.dynts.policy={policy!r} needs a server that was started with "
        "--dynts-observe-queries; choose another policy"
    ):
        params({"policy": policy}).verify(256)


def test_a_policy_that_this_server_cannot_serve_is_refused_with_the_reason(serve):
    serve("--attention-backend", "dynts", "--dynts-observe-queries", "8", "--dynts-host-memory-gb", "0")
    with refuses(
        "custom_params.dynts.policy='h2o_per_head' cannot be served here: it counts attention by head, "
        "for the server's own policy alone; give --dynts-policy h2o_per_head"
    ):
        params({"policy": "h2o_per_head"}).verify(256)


@pytest.mark.parametrize("policy", ["h2o", "snapkv", "rkv", "snapkv_per_head", "rkv_per_head"])
def test_a_server_that_keeps_queries_accepts_who_reads_attention(serve, policy):
    serve("--attention-backend", "dynts", "--dynts-observe-queries", "8", "--dynts-host-memory-gb", "0")
    params({"policy": policy}).verify(256)
