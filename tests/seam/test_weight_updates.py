"""New weights for a running server: their predictor comes along, or the old one says that it is old."""

import logging
import pickle
from multiprocessing import AuthenticationError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sgl_dynts.checkpoint import (
    AUTHOR_LAYER_NAMES,
    PREDICTOR_FILE,
    digest,
    find_predictor,
)
from sglang_dynts.forward.device_state import LoadedPredictor, OnRunner, on_runner
from sglang_dynts.forward.predictor_runner import install_predictor
from sglang_dynts.forward.weight_updates import (
    refuse_unusable,
    settle_session,
    settle_shared,
    update_from_disk,
)
from tests.e2e.models import HIDDEN_SIZE, write_predictor
from tests.seam.test_predictor_runner import Runner


class Server:
    """A model runner that serves the tiny model, and what its updates do."""

    def __init__(self) -> None:
        self.runner = Runner()
        self.loaded: dict[str, torch.Tensor] = {}
        self.runner.model.load_weights = self.loaded.update
        install_predictor(None, self.runner)
        self.updater = SimpleNamespace(
            get_model_runner=lambda: self.runner,
            get_model=lambda: self.runner.model,
            model_config=SimpleNamespace(model_path=None),
        )
        self.succeeds = True

    @property
    def ours(self) -> OnRunner:
        return on_runner(self.runner)

    @property
    def predictor(self) -> LoadedPredictor:
        assert self.ours.predictor is not None
        return self.ours.predictor

    @property
    def weights(self) -> list[torch.Tensor]:
        return [weight.detach().clone() for weight in self.predictor.predictor.parameters()]

    def from_disk(self, folder: Path) -> tuple[bool, str]:
        def sglangs(_updater, model_path: str, _load_format: str, **_kwargs) -> tuple[bool, str]:
            return self.succeeds, f"asked for {model_path}"

        return update_from_disk(sglangs, self.updater, str(folder), "auto", recapture_cuda_graph=False)

    def from_tensors(self, *buckets: dict[str, torch.Tensor]) -> None:
        """A session of updates, as ``/begin_weight_update`` and ``/end_weight_update`` bound it."""
        self.load(*buckets)
        settle_session(None, self.updater, run_post_load=False)

    def load(self, *buckets: dict[str, torch.Tensor]) -> None:
        for bucket in buckets:
            self.runner.model.load_weights(list(bucket.items()))


@pytest.fixture
def server(serve) -> Server:
    serve("--attention-backend", "dynts")
    return Server()


@pytest.fixture
def other(tmp_path) -> Path:
    """A model's folder with a predictor of its own."""
    torch.manual_seed(99)
    write_predictor(tmp_path / "other" / PREDICTOR_FILE, HIDDEN_SIZE)
    return tmp_path / "other"


def assert_same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


def saved(folder: Path) -> list[torch.Tensor]:
    return list(load_file(folder / PREDICTOR_FILE).values())


def test_the_predictor_beside_new_weights_is_loaded_in_place(server, other):
    """Captured graphs read it where it is."""
    where = [weight.data_ptr() for weight in server.predictor.predictor.parameters()]
    assert server.from_disk(other) == (True, f"asked for {other}")
    assert_same(server.weights, saved(other))
    facts = server.predictor.facts()
    assert facts["path"] == str(other / PREDICTOR_FILE)
    assert facts["sha256"] == digest(find_predictor(other))
    assert server.ours.kept is None
    assert [weight.data_ptr() for weight in server.predictor.predictor.parameters()] == where


def test_where_weights_do_not_fit_sglang_rolls_back_to_the_served_folder(server, other, model):
    def does_not_fit(_weights) -> None:
        raise AssertionError("shapes")

    def sglangs(updater, model_path: str, *_args, **_kwargs) -> tuple[bool, str]:
        updater.model_config.model_path = model_path
        with pytest.raises(AssertionError, match="shapes"):
            server.runner.model.load_weights({})
        return False, f"rolled back to {updater.model_config.model_path}"

    before = server.weights
    server.runner.model.load_weights = does_not_fit
    reply = update_from_disk(sglangs, server.updater, str(other), "auto")
    assert reply == (False, f"rolled back to {model}")
    assert server.runner.model.load_weights is does_not_fit
    assert_same(server.weights, before)


def test_the_authors_tensors_among_new_weights_are_loaded(server, tmp_path):
    new = [torch.rand_like(one) for one in server.weights]
    save_file(dict(zip(AUTHOR_LAYER_NAMES, new, strict=True)), tmp_path / "model.safetensors")
    assert server.from_disk(tmp_path)[0]
    assert_same(server.weights, new)


def test_weights_that_bring_no_predictor_leave_a_warning(server, tmp_path, caplog):
    before = server.weights
    with caplog.at_level(logging.WARNING):
        assert server.from_disk(tmp_path)[0]
    assert_same(server.weights, before)
    assert server.ours.kept == f"weights came from {tmp_path}, which holds no predictor"
    assert server.ours.kept in caplog.text


def test_the_warning_ends_with_weights_that_bring_one(server, tmp_path, other, model):
    (empty := tmp_path / "empty").mkdir()
    server.from_disk(empty)
    assert server.ours.kept is not None
    server.from_disk(other)
    assert server.ours.kept is None
    server.from_disk(model)
    assert_same(server.weights, saved(model))


def test_a_predictor_named_by_its_flag_is_kept_with_a_warning(serve, model, other):
    serve("--attention-backend", "dynts", "--dynts-predictor", str(model))
    server = Server()
    assert server.from_disk(other)[0]
    assert server.ours.kept == f"weights came from {other}, and --dynts-predictor names another file"
    assert server.predictor.path == str(model / PREDICTOR_FILE)


@pytest.mark.parametrize("damage", ["width", "inner", "nan", "file"])
def test_a_predictor_that_cannot_be_used_refuses_the_update_before_a_weight_is_touched(
    server, other, damage
):
    change(other / PREDICTOR_FILE, damage)
    before = server.weights
    success, message = server.from_disk(other)
    assert not success
    assert message.startswith("Weights were not updated, for the predictor that comes with them: ")
    assert_same(server.weights, before)
    assert server.ours.kept is None


def change(path: Path, how: str) -> None:
    if how == "width":
        write_predictor(path, hidden_size=32)
        return
    if how == "file":
        path.write_bytes(b"no predictor")
        return
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    if how == "nan":
        tensors["layers.0.weight"][0, 0] = float("nan")
    else:
        tensors["layers.0.weight"] = tensors["layers.0.weight"][:90].contiguous()
        tensors["layers.1.weight"] = tensors["layers.1.weight"][:, :90].contiguous()
    save_file(tensors, path, metadata=header)


def test_a_folder_that_is_not_there_is_an_answer_and_no_exception(server):
    success, message = server.from_disk(Path("/no/such/model"))
    assert not success
    assert "Weights were not updated" in message


def test_a_failed_update_changes_nothing(server, other):
    before = server.weights
    server.succeeds = False
    assert not server.from_disk(other)[0]
    assert_same(server.weights, before)
    assert server.ours.kept is None


def test_tensors_of_a_session_bring_their_predictor_in_any_bucket(server):
    new = [torch.rand_like(one) for one in server.weights]
    named = list(zip(AUTHOR_LAYER_NAMES, new, strict=True))
    server.from_tensors(
        {"model.a": torch.ones(1)} | dict(named[:2]), {"model.b": torch.ones(1)} | dict(named[2:])
    )
    assert list(server.loaded) == ["model.a", "model.b"]
    assert_same(server.weights, new)
    assert server.predictor.path == "is_head.* of a weight update"
    assert (server.ours.kept, server.ours.arrived) == (None, {})


def test_tensors_by_handle_are_complete_at_once(server):
    new = [torch.rand_like(one) for one in server.weights]
    server.load(dict(zip(AUTHOR_LAYER_NAMES, new, strict=True)))
    settle_shared((True, "done"), server.updater, "recv_req")
    assert_same(server.weights, new)
    settle_shared((True, "done"), server.updater, "recv_req")
    assert server.ours.kept == "weights were updated without is_head.* tensors"


def test_tensors_without_a_predictor_leave_a_warning(server):
    before = server.weights
    server.from_tensors({"model.a": torch.ones(1)})
    assert_same(server.weights, before)
    assert server.ours.kept == "weights were updated without is_head.* tensors"


@pytest.mark.parametrize("damage", ["missing", "shape", "nan"])
def test_tensors_that_are_no_predictor_of_this_server_are_not_loaded(server, damage):
    named = dict(zip(AUTHOR_LAYER_NAMES, server.weights, strict=True))
    second = AUTHOR_LAYER_NAMES[1]
    if damage == "missing":
        del named[second]
    elif damage == "shape":
        named[second] = torch.ones(3, 5)
    else:
        named[second][0, 0] = float("nan")
    before = server.weights
    server.from_tensors(named)
    assert_same(server.weights, before)
    assert server.ours.kept is not None
    assert server.ours.kept.startswith("is_head.* came as [[")


def test_a_server_without_a_predictor_takes_none(serve, bare, other):
    flags = ("--dynts-budget", "80", "--dynts-local-window", "20", "--dynts-keep-ratio", "0.5")
    serve("--attention-backend", "dynts", "--dynts-policy", "window", *flags, folder=bare)
    server = Server()
    assert server.from_disk(other)[0]
    server.from_tensors({"model.a": torch.ones(1)})
    assert (server.ours.predictor, server.ours.kept) == (None, None)


def test_an_update_over_ipc_that_failed_changes_nothing(server):
    before = server.weights
    settle_shared((False, "no such handle"), server.updater, "recv_req")
    assert_same(server.weights, before)
    assert server.ours.kept is None
    assert not server.ours.weights_updated


class Manager:
    """SGLang's manager of weight updates, as far as the hook needs it."""

    tp_cpu_group = "the ranks"


@pytest.fixture
def waited(monkeypatch) -> list[str]:
    """For which groups this rank waited."""
    groups: list[str] = []
    monkeypatch.setattr(torch.distributed, "barrier", lambda group: groups.append(group))
    return groups


@pytest.mark.parametrize(
    "error",
    [
        pickle.UnpicklingError("bad"),
        AuthenticationError("bad"),
        KeyError("x" * 9999),
        NotImplementedError("x"),
    ],
)
def test_tensors_that_cannot_be_used_are_refused_with_the_other_ranks(server, waited, error):
    def fails(_manager, _request):
        raise error

    reply = refuse_unusable(fails, Manager(), "recv_req")
    assert (reply.success, type(error).__name__ in reply.message) == (False, True)
    assert len(reply.message) < 400
    assert waited == [Manager.tp_cpu_group]


def test_tensors_that_can_be_used_are_left_to_sglang(server, waited):
    assert refuse_unusable(lambda _manager, request: request, Manager(), "recv_req") == "recv_req"
    assert waited == []


def test_without_dynts_unusable_tensors_are_sglang_s_own_matter(serve, waited):
    serve("--attention-backend", "torch_native")

    def fails(_manager, _request):
        raise EOFError

    with pytest.raises(EOFError):
        refuse_unusable(fails, Manager(), "recv_req")
    assert waited == []
