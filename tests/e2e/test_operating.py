"""One server as it is operated: metrics, health and configuration behind an API key."""

import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from sgl_dynts.checkpoint import PREDICTOR_FILE, digest, find_predictor
from sglang_dynts.telling.metrics import COUNTER, METRICS
from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.hf_reference import Reference, Windows
from tests.e2e.models import HIDDEN_SIZE, write_predictor
from tests.e2e.server import Server
from tests.e2e.servers import served_by
from tests.fuzz import fuzz, options

pytestmark = served_by("overlap")

JOBS = [
    *({"prompt": prompt(20 + i, 500 + i), "length": 150 + 10 * i} for i in range(5)),
    {"prompt": prompt(60, 510), "length": 150},  # leaves less to thinking than the floor
    *({"prompt": prompt(20, 520 + i), "length": 60, "dynts": {"enabled": False}} for i in range(2)),
]


@pytest.fixture(scope="module")
def before(server) -> list[Sample]:
    """What was counted before the jobs: the server is shared."""
    return samples_of(server)


@pytest.fixture(scope="module")
def numbers(server, before) -> list[dict]:
    """What the replies of all jobs say."""
    return [reply["meta_info"]["dynts"] for reply in server.generate_all(JOBS)]


def samples_of(server: Server) -> list[Sample]:
    text = server.request("/metrics")
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def total(samples: list[Sample], name: str, labels: dict[str, str]) -> float | None:
    """The sum of a sample over the ranks that report it."""
    found = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
    return sum(found) if found else None


@pytest.fixture
def value(server) -> Callable[..., float]:
    samples = samples_of(server)

    def get(name: str, **labels: str) -> float:
        found = total(samples, name, labels)
        assert found is not None, f"{name} {labels} is not exposed"
        return found

    return get


@pytest.fixture
def grown(value, before) -> Callable[..., float]:
    """What the jobs added to a counter."""
    return lambda name, **labels: value(name, **labels) - (total(before, name, labels) or 0)


def test_counters_add_up_to_what_the_replies_say(numbers, grown):
    early = sum(one["early_compactions"] for one in numbers)
    compactions = sum(one["compactions"] for one in numbers)
    assert compactions >= 10
    assert grown("sglang:dynts_compactions_total", reason="early") == early
    assert grown("sglang:dynts_compactions_total", reason="due") == compactions - early
    dropped = sum(one["dropped_tokens"] for one in numbers)
    assert grown("sglang:dynts_dropped_tokens_total") == dropped
    assert grown("sglang:dynts_requests_total", mode="governed") == 6
    assert grown("sglang:dynts_requests_total", mode="opted_out") == 2
    raised = sum(one["enabled"] and one["budget"] > 96 for one in numbers)
    assert grown("sglang:dynts_long_questions_total") == raised == 1
    assert grown("sglang:dynts_window_len_count") == compactions
    assert grown("sglang:dynts_undone_compactions_total") == 0
    assert 1 <= grown("sglang:dynts_compaction_seconds_count") <= compactions


def test_every_metric_is_exposed_with_sglang_s_labels(server, numbers, value):
    for metric in METRICS:
        name = metric.name if metric.buckets == () else f"{metric.name}_count"
        value(name, engine_type="unified", tp_rank="0")
    assert metric_kinds(server)["sglang:dynts_compactions"] == COUNTER


def metric_kinds(server: Server) -> dict[str, str]:
    families = text_string_to_metric_families(server.request("/metrics"))
    return {family.name: family.type for family in families}


def test_the_predictor_in_use_is_the_one_on_disk(model_of, numbers, value):
    sha256 = digest(find_predictor(model_of("qwen3")))
    assert value("sglang:dynts_predictor_info", sha256=sha256, target="random") == 1
    assert value("sglang:dynts_scoring_seconds", batch_size="1") > 0


def test_gauges_return_to_nothing_when_the_server_is_idle(server, numbers):
    def held() -> float:
        return total(samples_of(server), "sglang:dynts_kv_tokens_held", {}) or 0

    deadline = time.monotonic() + 90  # SGLang refreshes idle gauges every 30 seconds at the latest
    while held() and time.monotonic() < deadline:
        time.sleep(1)
    assert held() == 0


def test_health_proves_that_compactions_happened_and_every_seam_holds(server, before, numbers):
    health = server.request("/dynts/health")
    assert health["healthy"]
    assert health["missing"] == []
    assert len(health["seams"]) >= 14
    assert health["has_compacted"]
    compacted = total(before, "sglang:dynts_compactions_total", {}) or 0
    dropped = total(before, "sglang:dynts_dropped_tokens_total", {}) or 0
    assert health["num_compactions"] == compacted + sum(one["compactions"] for one in numbers)
    assert health["num_dropped"] == dropped + sum(one["dropped_tokens"] for one in numbers)
    assert health["windows"]["budget"] == 96


def test_server_info_shows_the_resolved_configuration(server, model_of, numbers):
    info = server.request("/server_info")
    assert (info["dynts_budget"], info["dynts_local_window"], info["dynts_keep_ratio"]) == (96, 16, 0.4)
    ours = info["internal_states"][0]["dynts"]
    assert ours["predictor"]["sha256"] == digest(find_predictor(model_of("qwen3")))
    assert ours["predictor"]["inner_sizes"] == [96, 32]
    assert ours["windows"]["period"] == 48


@pytest.mark.parametrize("path", ["/dynts/health", "/server_info"])
@pytest.mark.parametrize("key", [None, "wrong"])
def test_our_paths_want_the_api_key(server, path, key):
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(server.url(path), headers=headers), timeout=60)
    assert error.value.code == 401


def test_new_weights_bring_their_predictor_or_the_old_one_says_that_it_is_old(server, model_of, tmp_path):
    old, new, bare = model_of("qwen3"), tmp_path / "new", tmp_path / "bare"
    shutil.copytree(old, new)
    torch.manual_seed(77)
    write_predictor(new / PREDICTOR_FILE, HIDDEN_SIZE)
    shutil.copytree(old, bare, ignore=shutil.ignore_patterns("dynts"))
    case = {"prompt": prompt(20, 900), "length": 200}
    windows = Windows(96, 16, 0.4)
    assert update_weights(server, new)["predictor"]["sha256"] == digest(find_predictor(new))
    assert server.request("/dynts/health")["weights"]["path"] == str(new)
    assert_equal(server.generate(**case), Reference(new), case, windows)
    health = update_weights(server, bare)
    assert health["predictor_kept"] == f"weights came from {bare}, which holds no predictor"
    assert (health["weights"]["path"], health["predictor"]["path"]) == (
        str(bare),
        str(new / PREDICTOR_FILE),
    )
    assert_equal(
        server.generate(**case), Reference(new), case, windows
    )  # its gauges are set at the prefill
    assert "sglang:dynts_predictor_kept" in server.request("/metrics")
    assert kept(server) == 1
    (bare / "dynts").mkdir()
    (bare / PREDICTOR_FILE).write_bytes(b"none")
    status, text = server.error("/update_weights_from_disk", {"model_path": str(bare)})
    assert (status, "Weights were not updated" in text) == (400, True)
    assert update_weights(server, old)["predictor_kept"] is None
    assert_equal(server.generate(**case), Reference(old), case, windows)
    assert kept(server) == 0


def update_weights(server: Server, folder: Path) -> dict:
    """Load another model's weights; what the server then says of itself."""
    assert server.request("/update_weights_from_disk", {"model_path": str(folder)})["success"]
    return server.request("/dynts/health")


def kept(server: Server) -> float:
    return total(samples_of(server), "sglang:dynts_predictor_kept", {}) or 0


def test_the_decode_log_line_stays_readable(server, numbers):
    lines = [line for line in server.log.read_text().splitlines() if "Decode batch" in line]
    assert lines
    for line in lines:
        assert line.count("#compactions: ") == line.count("#dropped-token: ") == 1
        assert len(line) < 300


def test_hostile_options_over_http_get_200_or_400_and_harm_nobody(server, numbers):
    def act(asked) -> bool:
        params = {"max_new_tokens": 2, "custom_params": {"dynts": asked}}
        body = {"input_ids": prompt(5, 600), "sampling_params": params}
        try:
            server.request("/generate", body)
        except urllib.error.HTTPError as error:
            assert 400 <= error.code < 500, (asked, error.read())  # noqa: PT017
            return False
        return True

    logged = len(server.log.read_text())
    tally = fuzz("custom_params.dynts over HTTP", options, act, num_examples=150)
    assert tally.accepted > 0
    assert tally.refused > 0
    assert server.request("/dynts/health")["healthy"]
    assert "Traceback" not in server.log.read_text()[logged:]
