"""Models with other attention than full attention: tokens of Hugging Face, however they are scheduled."""

from base64 import b64encode
from io import BytesIO

import pytest
from PIL import Image

from benchmark.harness.tiny_models import THINK
from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.head_reference import HeadReference
from tests.e2e.hf_reference import Reference, Windows
from tests.e2e.models import IMAGE_WORDS, MODEL_WINDOW, WITH_TWO_POOLS, has_states
from tests.e2e.server import Server
from tests.e2e.servers import served_by
from tests.e2e.test_equality_by_head import assert_equal_by_head

LENGTHS = (5, 12, 20, 31, 40, 47, 60, 75, 90, 110, 130, 150)
SERVED = (
    *("gemma2", "gemma3_tensor_parallel", "mistral", "phi3"),
    *("deepseek", "deepseek_tensor_parallel", "qwen3_vl"),
    *("gemma2_ngram", "gpt_oss", "gpt_oss_tensor_parallel"),
    *("mimo_v2", "mimo_v2_tensor_parallel", "step3p5", "step3p5_tensor_parallel"),
    *("qwen3_next", "qwen3_5_tensor_parallel"),
)
RETRACTING = (
    *("olmo3_retracting", "deepseek_dense_retracting", "qwen3_vl_retracting"),
    *("gpt_oss_retracting", "mimo_v2_retracting", "step3p5_retracting"),
)
WITHOUT_COPIES = (
    *("exaone4_without_copies", "glm_without_copies", "gpt_oss_without_copies"),
    *("qwen3_5_without_copies", "qwen3_next_mtp", "mimo_v2_without_copies", "step3p5_without_copies"),
)
SLIDING = (
    *("gemma2", "gemma3_tensor_parallel", "olmo3_retracting", "exaone4_without_copies", "gpt_oss"),
    *("mimo_v2", "step3p5"),
)
KEPT_AFTER = 64
"""Tokens after which a prefill keeps a recurrent state that others may go on from."""


def jobs(length: int = 150, first_seed: int = 0) -> list[dict]:
    return [{"prompt": prompt(n, first_seed + n), "length": length} for n in LENGTHS]


@served_by(*SERVED)
def test_twelve_requests_compacted_several_times(server, kind, windows, reference_of):
    for job, reply in zip(jobs(), server.generate_all(jobs()), strict=True):
        assert assert_equal(reply, reference_of(kind), job, windows).num_compactions >= 2


@served_by(*SERVED)
def test_a_second_round_hits_the_prompts_and_gives_the_tokens(server, kind, windows, reference_of):
    server.generate_all(jobs(length=120))
    for job, reply in zip(jobs(120), server.generate_all(jobs(120)), strict=True):
        assert_equal(reply, reference_of(kind), job, windows)
        assert reply["meta_info"]["cached_tokens"] in hits(server, kind, len(job["prompt"]))


def hits(server: Server, kind: str, prompt_len: int) -> range:
    """Prompt tokens that a second round may find: all but the last, where there is room for all."""
    if "--disable-radix-cache" in server.command:
        return range(1)
    if has_states(kind):
        kept = (prompt_len - 1) // KEPT_AFTER * KEPT_AFTER
        return range(kept, kept + 1)
    if "900" in server.command:
        return range(prompt_len)
    return range(prompt_len - 1, prompt_len)


@served_by(*RETRACTING)
def test_forced_retractions_change_no_token(server, kind, windows, reference_of):
    replies = server.generate_all(jobs(200, first_seed=700))
    for job, reply in zip(jobs(200, first_seed=700), replies, strict=True):
        assert assert_equal(reply, reference_of(kind), job, windows, late=1).num_compactions >= 2
    assert sum(reply["meta_info"]["dynts"]["resumptions"] for reply in replies) >= 3


@served_by(*WITHOUT_COPIES)
def test_without_copies_retracted_requests_end_and_others_change_no_token(
    server, kind, windows, reference_of
):
    replies = server.generate_all(jobs(200, first_seed=700))
    for job, reply in zip(jobs(200, first_seed=700), replies, strict=True):
        assert len(reply["output_ids"]) == job["length"]
        assert_equal_or_again(reply, reference_of(kind), job, windows)
    retracted = [reply for reply in replies if reply["meta_info"]["num_retractions"]]
    assert 3 <= len(retracted) < len(replies)


def assert_equal_or_again(reply: dict, reference: Reference, job: dict, windows: Windows) -> None:
    """A request that was computed again is, from its first compaction, one that came with its tokens."""
    if not reply["meta_info"]["num_retractions"]:
        assert_equal(reply, reference, job, windows)
        return
    at, served = reply["meta_info"]["dynts"]["compacted_at"], reply["output_ids"]
    expected = reference.generate(
        job["prompt"], job["length"], windows, None, at, late=job["length"], served=served
    )
    since = at[0] - len(job["prompt"]) if at else job["length"]
    assert served[since:] == expected.tokens[since:]


@served_by("qwen3_5_tensor_parallel")
def test_of_thinking_that_a_prompt_continues_no_recurrent_state_is_shared(
    server, kind, windows, reference_of
):
    """The kept state is of 128 tokens: of a short question and of thoughts, or of a long question."""
    for question_len, seed, found in ((80, 1, 0), (80, 2, 0), (140, 3, 0), (140, 4, 2 * KEPT_AFTER)):
        question = [*prompt(question_len - 1, question_len), THINK]
        job = {"prompt": [*question, *prompt(160 - question_len, seed)[1:]], "length": 120}
        reply = server.generate(**job)
        assert assert_equal(reply, reference_of(kind), job, windows, late=1).num_compactions >= 2
        assert reply["meta_info"]["cached_tokens"] == found


@served_by("gpt_oss_little_sliding_pool")
def test_a_sliding_pool_that_is_short_takes_turns_and_changes_no_token(
    server, kind, windows, reference_of
):
    for _ in range(2):
        for job, reply in zip(jobs(), server.generate_all(jobs()), strict=True):
            expected = assert_equal(reply, reference_of(kind), job, windows, late=1)
            assert expected.num_compactions >= 2


@pytest.mark.parametrize("policy", ["random_per_head", "calibrated", "hybrid"])
@served_by(
    *("gpt_oss_tensor_parallel", "gpt_oss_retracting", "qwen3_5_tensor_parallel"),
    *("mimo_v2_tensor_parallel", "mimo_v2_retracting"),
    *("step3p5_tensor_parallel", "step3p5_retracting"),
)
def test_full_layers_keep_a_set_per_head(server, kind, windows, model_of, policy):
    """The K and V of sliding layers stay where they are, and so do recurrent states."""
    assert_full_layers_keep_a_set_per_head(server, kind, windows, model_of, policy)


@served_by(
    *("gpt_oss_tensor_parallel", "qwen3_5_tensor_parallel"),
    *("mimo_v2_tensor_parallel", "step3p5_tensor_parallel"),
)
def test_distances_are_those_of_scaled_and_of_partial_rotations(server, kind, windows, model_of):
    """YaRN with its attention factor, and a rotation that turns a quarter of each head."""
    assert_full_layers_keep_a_set_per_head(server, kind, windows, model_of, "triattention_per_head")


def assert_full_layers_keep_a_set_per_head(server, kind, windows, model_of, policy) -> None:
    reference = HeadReference(model_of(kind), attention="eager")
    if kind in WITH_TWO_POOLS:
        reference.server_period = 44  # by the server's own windows: 96 - 24 - floor(0.4 * 72)
    some = [job | {"dynts": {"policy": policy}} for job in jobs(first_seed=820)]
    for job, reply in zip(some, server.generate_all(some), strict=True):
        assert assert_equal_by_head(reply, reference, job, late=1, windows=windows).num_compactions >= 2


@served_by(*SLIDING)
def test_a_request_cannot_ask_for_a_window_that_is_shorter_than_the_models(server, kind):
    """With two pools a dropped token is gone for a token in computation, which sees one more."""
    least, tokens = MODEL_WINDOW - (kind not in WITH_TWO_POOLS), [1, 20, 21]
    short = {"dynts": {"local_window": least - 1}}
    said = f"local_window={least - 1}: sliding layers of this model see {least} tokens back"
    bodies = {
        "/generate": {"input_ids": tokens, "custom_params": short},
        "/v1/completions": {"model": "m", "prompt": tokens, "custom_params": short},
    }
    for path, body in bodies.items():
        status, text = server.error(path, body)
        assert (status, said in text) == (400, True)
    for accepted in ({"local_window": least}, {"local_window": least - 1, "enabled": False}):
        assert len(server.generate(tokens, 4, accepted)["output_ids"]) == 4


@served_by("olmo3_unguarded")
def test_without_the_guard_a_window_of_one_less_gives_other_tokens(server, reference_of):
    """The guard is taken out of this server; what it lets pass is right, what it refuses is wrong."""
    reference, least = reference_of("olmo3"), MODEL_WINDOW - 1
    right = [job | {"dynts": {"local_window": least}} for job in jobs()]
    for job, reply in zip(right, server.generate_all(right), strict=True):
        assert_equal(reply, reference, job, Windows(96, least, 0.4))
    wrong = [job | {"dynts": {"local_window": least - 1}} for job in jobs()]
    found = [
        equals(reply, reference, job)
        for job, reply in zip(wrong, server.generate_all(wrong), strict=True)
    ]
    assert not all(found)


def equals(reply: dict, reference, job: dict) -> bool:
    """Whether a reply holds the tokens of its windows."""
    at, served = reply["meta_info"]["dynts"]["compacted_at"], reply["output_ids"]
    windows = Windows(96, job["dynts"]["local_window"], 0.4)
    return (
        served
        == reference.generate(job["prompt"], job["length"], windows, None, at, served=served).tokens
    )


@served_by("qwen3_vl", "qwen3_5_without_copies")
def test_a_request_with_an_image_is_refused_and_text_after_it_is_served(server, kind, reference_of):
    assert server.request("/model_info")["has_image_understanding"] is False
    picture = BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    text = f"w20 {''.join(IMAGE_WORDS[i] for i in (246, 244, 247))} w21"
    asked = {"text": text, "image_data": b64encode(picture.getvalue()).decode()}
    status, said = server.error("/generate", asked)
    assert (status, "serves text alone" in said) == (400, True), said
    job = jobs(40)[0]
    assert_equal(server.generate(**job), reference_of(kind), job, Windows(96, 16, 0.4))
