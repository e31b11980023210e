"""A request that nobody verified reaches the scheduler: it ends there, alone, with its message."""

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.sampling.sampling_params import SamplingParams


class FullAttention:
    """A model runner whose model has no sliding layer."""

    model = SimpleNamespace(modules=list)
    sliding_window_size = None
    model_config = SimpleNamespace(is_hybrid_swa=False)


class Books:
    """As much of a scheduler as a request meets at first."""

    handle_generate_request: Any = Scheduler.handle_generate_request
    handle_embedding_request: Any = Scheduler.handle_embedding_request
    handle_batch_generate_request: Any = Scheduler.handle_batch_generate_request
    handle_batch_embedding_request: Any = Scheduler.handle_batch_embedding_request

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.model_config = SimpleNamespace(vocab_size=100)
        self.tp_worker = SimpleNamespace(model_runner=FullAttention())
        self.ended: list[Any] = []

    def _handle_generate_request(self, recv_req, _cleanup, **_kwargs) -> None:
        self.taken.append(recv_req.rid)

    def _handle_embedding_request(self, recv_req, _cleanup, **_kwargs) -> None:
        self.taken.append(recv_req.rid)

    def send_abort_output(self, abort, _recv_req) -> None:
        self.ended.append(abort)

    @property
    def messages(self) -> dict[str, str]:
        """What each request that was ended is told."""
        reasons = [abort.finished_reason for abort in self.ended]
        assert all((one["type"], one["status_code"]) == ("abort", 400) for one in reasons)
        return {abort.rid: abort.finished_reason["message"] for abort in self.ended}


@pytest.fixture
def books(serve) -> Books:
    serve("--attention-backend", "dynts")
    return Books()


def arrived(rid: str, custom: Any, input_embeds: list[list[float]] | None = None) -> Any:
    """What a front end without checks sends."""
    params = SamplingParams(custom_params=custom)
    facts = {"sampling_params": params, "mm_inputs": None, "input_embeds": input_embeds}
    asked = {"top_logprobs_num": 0, "logprob_start_len": -1, "token_ids_logprob": None}
    return SimpleNamespace(rid=rid, input_ids=[1], **facts, **asked)


BAD = [
    ({"dynts": {"bugdet": 300.0}}, "custom_params.dynts.bugdet is not known"),
    ({"dynts": {"budget": 300.5}}, "custom_params.dynts.budget=300.5 must be an integer"),
    ({"dynts": {"policy": ["window"]}}, "custom_params.dynts.policy=['window'] must be one of"),
    ({"dynts": "on"}, "custom_params.dynts='on' must be an object"),
    ({"dynts": {"policy": "snapkv"}}, "needs a server that was started with --dynts-observe-queries"),
]


@pytest.mark.parametrize(("custom", "message"), BAD)
@pytest.mark.parametrize("kind", ["generate", "embedding"])
def test_a_bad_request_ends_alone_and_is_not_made(books, kind, custom, message):
    handle = getattr(books, f"handle_{kind}_request")
    handle(arrived("good", None))
    handle(arrived("bad", custom))
    handle(arrived("good too", {"dynts": {"budget": 300.0, "enabled": None}}))
    assert books.taken == ["good", "good too"]
    assert list(books.messages) == ["bad"]
    assert message in books.messages["bad"]


@pytest.mark.parametrize("kind", ["generate", "embedding"])
def test_each_request_of_a_batch_is_looked_at(books, kind):
    batch = [arrived("a", None), arrived("b", {"dynts": {"budget": "x"}}), arrived("c", {})]
    getattr(books, f"handle_batch_{kind}_request")(batch)
    assert books.taken == ["a", "c"]
    assert list(books.messages) == ["b"]


def test_a_request_with_an_image_ends_alone(books):
    image = arrived("image", {"dynts": {"enabled": False}})
    image.mm_inputs = object()
    books.handle_generate_request(image)
    books.handle_generate_request(arrived("text", None))
    assert books.taken == ["text"]
    assert "serves text alone" in books.messages["image"]


@pytest.mark.parametrize("kind", ["generate", "embedding"])
def test_a_prompt_without_tokens_ends_alone(books, kind):
    handle, empty = getattr(books, f"handle_{kind}_request"), arrived("empty", None)
    empty.input_ids = []
    handle(empty)
    handle(arrived("text", None))
    assert books.taken == ["text"]
    assert "has no tokens" in books.messages["empty"]


IMPOSSIBLE = [
    ({"input_ids": [-1, 5]}, "token ids that the model lacks; it has 0 to 99"),
    ({"input_ids": [5, 100]}, "token ids that the model lacks"),
    ({"top_logprobs_num": 101}, "top_logprobs_num=101 must be an integer, 0 to 100"),
    ({"top_logprobs_num": [1]}, "top_logprobs_num=[1] must be an integer"),
    ({"top_logprobs_num": True}, "top_logprobs_num=True must be an integer"),
    ({"logprob_start_len": -5}, "logprob_start_len=-5 must be an integer, -1 to"),
    ({"logprob_start_len": [0, 1]}, "logprob_start_len=[0, 1] must be an integer"),
    ({"token_ids_logprob": [1, 10**9]}, "token_ids_logprob=[1, 1000000000] must be token ids, 0 to 99"),
    ({"token_ids_logprob": ["x"]}, "token_ids_logprob=['x'] must be token ids"),
]


@pytest.mark.parametrize(("fields", "message"), IMPOSSIBLE)
def test_what_the_scheduler_would_look_up_in_vain_ends_alone(books, fields, message):
    bad = arrived("bad", None)
    for name, value in fields.items():
        setattr(bad, name, value)
    books.handle_generate_request(bad)
    books.handle_generate_request(arrived("good", None))
    assert books.taken == ["good"]
    assert message in books.messages["bad"]


def test_images_are_none_of_our_business_without_dynts(serve):
    serve("--attention-backend", "torch_native")
    books, image = Books(), arrived("image", None)
    image.mm_inputs = object()
    books.handle_generate_request(image)
    assert books.taken == ["image"]


@pytest.mark.parametrize("flags", [(), ("--dynts-policy", "full")])
@pytest.mark.parametrize("custom", [None, {"dynts": {"enabled": False}}, {"dynts": {"policy": "full"}}])
def test_embeddings_end_alone(serve, flags, custom):
    serve("--attention-backend", "dynts", *flags)
    books = Books()
    books.handle_generate_request(arrived("hidden", custom, [[0.5]]))
    books.handle_generate_request(arrived("text", None))
    assert books.taken == ["text"]
    assert "which takes no input_embeds" in books.messages["hidden"]


def test_embeddings_are_none_of_our_business_without_dynts(serve):
    serve("--attention-backend", "torch_native")
    books = Books()
    books.handle_generate_request(arrived("bare", None, [[0.5]]))
    assert books.taken == ["bare"]


def test_a_server_without_dynts_ends_who_asks_for_it(serve):
    serve("--attention-backend", "torch_native")
    books = Books()
    books.handle_generate_request(arrived("asks", {"dynts": {"enabled": False}}))
    books.handle_generate_request(arrived("other", {"other": 1}))
    assert books.taken == ["other"]
    assert "this server runs without DynTS" in books.messages["asks"]
