"""Prompts computed by one server, thoughts generated and compacted by another: Hugging Face's tokens."""

import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Timer

import pytest

from benchmark.harness.tiny_models import THINK
from sgl_dynts.harness.server import free_port
from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.head_reference import HeadReference
from tests.e2e.hf_reference import Windows
from tests.e2e.routers import ROUTERS, needs_routers, router
from tests.e2e.server import Server, WarmServer, abort
from tests.e2e.servers import SERVERS, served_by
from tests.e2e.soak import FINISH, HANG_UP, Life, draw_lives
from tests.e2e.test_equality_by_head import assert_equal_by_head
from tests.e2e.test_retraction import num_resumed
from tests.e2e.two_sides import TwoSides, as_prefill

WINDOWS = Windows(96, 16, 0.4)
RETRACTING = ("decode_side", "decode_side_latents", "decode_side_drafts")
OTHERS = ("decode_side_in_turns", "decode_side_sliding")


@pytest.fixture(scope="module")
def prefill_of(model_of, warm, tmp_path_factory) -> Iterator[Callable[[str], tuple[Server, int]]]:
    """The side that computes prompts for a shared server, and where they meet; started once."""
    started: dict[str, tuple[Server, int]] = {}
    logs = tmp_path_factory.mktemp("prefill")

    def get(name: str) -> tuple[Server, int]:
        if name not in started:
            spec, port = SERVERS[name], free_port()
            flags, more = as_prefill(spec.flags_of(model_of), port)
            server = WarmServer(warm, model_of(spec.model), logs / f"{name}.log", *flags, **more)
            started[name] = server.wait_ready(), port
        return started[name]

    yield get
    for server, _ in started.values():
        server.assert_nothing_leaked()
        server.stop()


@pytest.fixture
def sides(request, server, prefill_of) -> TwoSides:
    prefill, port = prefill_of(request.node.callspec.params["server"])
    return TwoSides(prefill, port, server)


def cases(first_seed: int, length: int, count: int = 8, **more) -> list[dict]:
    return [
        {"prompt": prompt(20 + 9 * i, first_seed + i), "length": length, **more} for i in range(count)
    ]


@served_by(*RETRACTING, *OTHERS)
def test_the_tokens_are_those_of_hugging_face(sides, kind, windows, reference_of):
    jobs = cases(100, 170)
    replies = sides.generate_all(jobs)
    for job, reply in zip(jobs, replies, strict=True):
        expected = assert_equal(reply, reference_of(kind), job, windows, late=1)
        assert expected.num_compactions >= 2
        more = reply["meta_info"]["dynts"]["compactions"] - expected.num_compactions
        assert more in (0, 1)  # the last token may be due, too


@served_by(*RETRACTING)
def test_a_retracted_request_goes_on_from_its_copy(sides, kind, windows, reference_of):
    jobs = cases(200, 720, count=3)
    replies = sides.generate_all(jobs)
    for job, reply in zip(jobs, replies, strict=True):
        assert_equal(reply, reference_of(kind), job, windows, late=1)
        assert reply["meta_info"]["finish_reason"] == {"type": "length", "length": 720}
    assert num_resumed(replies) >= 3


@pytest.mark.parametrize("policy", ["random_per_head", "calibrated", "hybrid"])
@served_by("decode_side")
def test_a_set_of_tokens_per_head_is_kept(sides, kind, windows, model_of, policy):
    reference = HeadReference(model_of(kind), attention="eager")
    assert_sets_per_head(sides, windows, reference, policy, late=1)


@pytest.mark.parametrize("policy", ["snapkv_per_head", "random_per_head"])
@served_by("decode_side_in_turns")
def test_queries_are_recorded_from_the_first_answer_on(sides, kind, windows, model_of, policy):
    reference = HeadReference(model_of(kind), attention="eager")
    assert_sets_per_head(sides, windows, reference, policy, late=0)


def assert_sets_per_head(
    sides: TwoSides, windows: Windows, reference: HeadReference, policy: str, late: int
) -> None:
    jobs = cases(300, 150, dynts={"policy": policy})
    for job, reply in zip(jobs, sides.generate_all(jobs), strict=True):
        found = assert_equal_by_head(reply, reference, job, windows=windows, late=late)
        assert found.num_compactions >= 2


@served_by("decode_side")
def test_a_prompt_stays_whole_with_what_it_thought(sides):
    """Its thoughts have no scores here: nobody sent them."""
    job = {"prompt": [*prompt(20, 400), THINK, *prompt(40, 401)[1:]], "length": 150}
    numbers = sides.generate(**job)["meta_info"]["dynts"]
    assert numbers["question_len"] == len(job["prompt"]) == 60
    assert numbers["compactions"] >= 1


@served_by("decode_side")
def test_tokens_that_came_with_their_k_and_v_have_no_score(sides):
    job = {"prompt": prompt(20, 410), "length": 150, "dynts": {"return_tokens": True}}
    scores = sides.generate(**job)["meta_info"]["dynts"]["tokens"]["scores"]
    assert scores[:20] == [None] * 20
    assert None not in scores[20:]


@served_by("decode_side")
def test_a_stretch_of_unordered_life_loses_nothing(sides, server):
    """Arrivals, own budgets and aborts; both sides check their books, and that nothing is left."""
    lives = [life for life in draw_lives(25, 100, seed=900) if life.fate != HANG_UP]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda life: live(sides, life), lives))
    ended = [reply for reply in replies if reply is not None]
    assert len(ended) >= sum(life.fate == FINISH for life in lives)
    for life, reply in zip(lives, replies, strict=True):
        if reply is not None:
            assert reply["meta_info"]["dynts"]["enabled"] == (life.windows is not None)
            assert len(reply["output_ids"]) == life.case["length"]
    server.assert_nothing_leaked()


def live(sides: TwoSides, life: Life) -> dict | None:
    """The reply of a request that ran to its end; an abort is told to both sides."""
    time.sleep(life.patience)
    if life.fate == FINISH:
        return sides.generate(**life.case)
    name = f"life-{life.number}-"
    killer = Timer(life.patience, abort, ((sides.prefill, sides.decode), name))
    killer.start()
    try:
        reply = sides.generate(**life.case, rid=name)
    except urllib.error.HTTPError:  # aborted while it waited
        return None
    finally:
        killer.join()
    return reply if reply["meta_info"]["finish_reason"]["type"] == "length" else None


@served_by("decode_side")
def test_requests_without_dynts_and_with_own_windows_run_side_by_side(sides, reference_of):
    whole, own = {"enabled": False}, {"budget": 140, "local_window": 20, "keep_ratio": 0.5}
    jobs = [
        {"prompt": prompt(30, 500 + i), "length": 200, "dynts": dynts}
        for i in range(3)
        for dynts in (whole, own)
    ]
    for job, reply in zip(jobs, sides.generate_all(jobs), strict=True):
        windows = Windows(140, 20, 0.5) if job["dynts"] is own else None
        expected = reference_of("qwen3").generate(
            job["prompt"],
            job["length"],
            windows,
            None,
            reply["meta_info"]["dynts"].get("compacted_at"),
            1,
            served=reply["output_ids"],
        )
        assert reply["output_ids"] == expected.tokens


@served_by("decode_side")
def test_both_sides_refuse_a_bad_option_and_live_on(sides, server):
    body = server.body(prompt(20, 600), 10, {"budgte": 5}, {})
    for side in (server, sides.prefill):
        status, text = side.error("/generate", body)
        assert status == 400
        assert "budgte" in text
    assert len(sides.generate(prompt(20, 601), 30)["output_ids"]) == 30


@served_by("decode_side")
def test_health_tells_the_sides_apart(sides, server):
    assert server.request("/dynts/health")["disaggregation"] == "decode"
    prefill = sides.prefill.request("/dynts/health")
    assert prefill["healthy"]
    assert prefill["disaggregation"] == "prefill"
    assert "nothing to compact" in sides.prefill.log.read_text()


@served_by("decode_side")
def test_a_pause_that_would_lose_thoughts_is_refused(sides, server):
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(sides.generate, prompt(20, 700), 200)
        status, text = server.error("/pause_generation", {"mode": "retract"})
        assert status == 400
        assert "in_place" in text
        server.request("/pause_generation", {"mode": "in_place"})
        server.request("/continue_generation", {})
        assert len(job.result()["output_ids"]) == 200


@needs_routers
@served_by("decode_side")
def test_sglangs_router_serves_both_as_one(sides, server, reference_of, tmp_path):
    words = ["--pd-disaggregation", "--prefill", sides.prefill.url(""), str(sides.port)]
    words += ["--decode", server.url("")]
    job = {"prompt": prompt(20, 800), "length": 200}
    with router(ROUTERS[0], words, 2, tmp_path / "router.log") as client:
        body = server.body(job["prompt"], job["length"], None, {})
        options = body["sampling_params"].pop("custom_params")
        reply = client.call("/generate", body | {"session_params": options}, timeout=300)
        assert assert_equal(reply, reference_of("qwen3"), job, WINDOWS, late=1).num_compactions >= 2
        with pytest.raises(urllib.error.HTTPError, match="400"):
            client.call("/generate", body | {"session_params": {"dynts": {"budgte": 5}}}, timeout=300)
