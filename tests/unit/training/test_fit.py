"""A fit learns, is the same every time, and goes on from where it was interrupted."""

import math
from dataclasses import replace

import pytest
import torch

from sgl_dynts.training.fit import Split, fit_predictor, kept_epoch, learning_rate_share, measure
from sgl_dynts.training.losses import LOSSES, SCALES_BY_MEAN
from sgl_dynts.training.recipe import FitRecipe, expectation, recipe_for
from sgl_dynts.training.states import StateSettings, StateStore, TraceStates

WIDTH, LENGTH = 8, 60
KEYS = tuple(f"trace-{number}" for number in range(12))
SPLIT = Split(KEYS[:9], KEYS[9:])
RECIPE = FitRecipe(
    epochs=6, batch_size=2, learning_rate=0.02, scale="mean", loss="mse-emphasis", scale_inputs=True
)


def learnable(number):
    """Tokens that matter where their state points one way."""
    hidden = torch.randn(LENGTH, WIDTH, generator=torch.Generator().manual_seed(number))
    targets = (hidden @ torch.linspace(-1, 1, WIDTH)).exp() * 1e-3
    return TraceStates(hidden, targets, targets > targets.quantile(0.95))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = StateStore(tmp_path_factory.mktemp("states"), StateSettings("model", "float32", "answer", 0))
    list(store.add((key, lambda number=number: learnable(number)) for number, key in enumerate(KEYS)))
    return store


class Noise:
    """States whose targets follow from nothing."""

    def __init__(self, store):
        draw = torch.Generator().manual_seed(5)
        self.states = {
            key: replace(store.read(key), targets=torch.rand(LENGTH, generator=draw)) for key in KEYS
        }

    def read(self, key):
        return self.states[key]

    def length(self, key):
        return LENGTH


def weights(predictor):
    return torch.cat([parameter.flatten() for parameter in predictor.parameters()])


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_which_held_out_tokens_matter(store, loss):
    scale = "power" if loss == "mse-band" else "mean"
    _, history = fit_predictor(store, SPLIT, replace(RECIPE, loss=loss, scale=scale, epochs=12))
    assert history[-1].held_out.overlap_20 > 0.75
    assert history[-1].held_out.recall_20 == 1
    assert history[-1].held_out_loss < history[0].held_out_loss


def test_an_interrupted_fit_ends_as_an_uninterrupted_one(store, tmp_path):
    class InterruptedError(Exception):
        pass

    def interrupt(epoch):
        if epoch.epoch == 3:
            raise InterruptedError

    whole, history = fit_predictor(store, SPLIT, RECIPE)
    with pytest.raises(InterruptedError):
        fit_predictor(store, SPLIT, RECIPE, folder=tmp_path, report=interrupt)
    seen = []
    resumed, resumed_history = fit_predictor(
        store, SPLIT, RECIPE, folder=tmp_path, report=lambda epoch: seen.append(epoch.epoch)
    )
    assert seen == [4, 5, 6]
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed_history == history


def test_a_fit_is_the_same_every_time_and_another_with_another_seed(store):
    recipe = replace(RECIPE, epochs=2)
    first, second = (weights(fit_predictor(store, SPLIT, recipe)[0]) for _ in range(2))
    other = weights(fit_predictor(store, SPLIT, replace(recipe, seed=2))[0])
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_held_out_traces_do_not_change_the_fit(store):
    recipe = replace(RECIPE, epochs=1)
    fewer = replace(SPLIT, held_out=KEYS[-1:])
    pair = [weights(fit_predictor(store, split, recipe)[0]) for split in (SPLIT, fewer)]
    assert torch.equal(*pair)


def test_a_folder_with_another_fit_is_refused(store, tmp_path):
    recipe = replace(RECIPE, epochs=1)
    fit_predictor(store, SPLIT, recipe, folder=tmp_path)
    with pytest.raises(ValueError, match="another recipe"):
        fit_predictor(store, SPLIT, replace(recipe, seed=5), folder=tmp_path)
    with pytest.raises(ValueError, match="another traces"):
        fit_predictor(store, Split(KEYS[:3], KEYS[3:]), recipe, folder=tmp_path)


def test_the_learning_rate_rises_and_falls_by_a_cosine():
    shares = [learning_rate_share(step, 20, 0.1) for step in range(20)]
    assert shares[:3] == [0.5, 1.0, 1.0]
    assert shares[11] == pytest.approx(0.5)
    assert shares[19] == pytest.approx(0.5 * (1 + math.cos(math.pi * 17 / 18)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "huber"}, "loss='huber' is unknown"),
        ({"scale": "rank"}, "scale='rank' is unknown"),
        ({"epochs": 0}, "epochs=0 must be above 0"),
        ({"patience": -1}, "patience=-1 must be 0 or above"),
        ({"warmup_share": 1.0}, "warmup_share=1.0 must lie between"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        FitRecipe(**values)


def test_the_defaults_are_the_papers():
    recipe = FitRecipe()
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (15, 256, 5e-4)
    assert (recipe.betas, recipe.weight_decay, recipe.warmup_share) == ((0.9, 0.95), 0.01, 0.1)
    assert (recipe.loss, recipe.widen * 3584, recipe.narrow * 3584) == ("mse", 7168, 1792)


@pytest.mark.parametrize(
    ("num_traces", "epochs", "batch_size"),
    [(7000, 15, 256), (20000, 15, 256), (1000, 15, 36), (100, 15, 3), (20, 21, 1), (2, 60, 1)],
)
def test_a_recipe_takes_as_many_steps_as_the_papers_where_it_can(num_traces, epochs, batch_size):
    recipe = recipe_for(num_traces, "future")
    assert (recipe.epochs, recipe.batch_size) == (epochs, batch_size)
    assert recipe.num_steps(num_traces) >= min(410, 60 * num_traces)
    assert recipe == replace(FitRecipe(), epochs=epochs, batch_size=batch_size, patience=epochs)


def test_what_is_given_of_a_recipe_stays():
    given = {"epochs": 3, "loss": "listwise", "patience": 0}
    assert recipe_for(410, "deletion", given) == FitRecipe(
        epochs=3, batch_size=3, loss="listwise", patience=0, scale="log"
    )
    assert recipe_for(100, "deletion", {"scale": "mean", "batch_size": 64}).scale == "mean"
    with pytest.raises(
        ValueError, match="recipe: batchsize is no field of FitRecipe; choose of seed, ep"
    ):
        recipe_for(100, "future", {"batchsize": 3})


def test_the_epoch_that_is_best_on_what_is_held_out_is_kept(store):
    """Fitted to noise, every epoch after the first ones does worse."""
    traces = Noise(store)
    recipe = replace(RECIPE, epochs=40, batch_size=1, patience=3)
    kept, history = fit_predictor(traces, SPLIT, recipe)
    best = kept_epoch(recipe, history)
    assert best.held_out_loss == min(epoch.held_out_loss for epoch in history)
    assert len(history) == best.epoch + 3 < 40
    targets = torch.cat([traces.read(key).targets for key in SPLIT.fitted])
    scale = SCALES_BY_MEAN["mean"](targets.mean().item())
    found, _ = measure(kept, traces, SPLIT.held_out, recipe, scale)
    assert found == pytest.approx(best.held_out_loss)


def test_an_interrupted_fit_still_knows_its_best_epoch(store, tmp_path):
    recipe = replace(RECIPE, epochs=8, learning_rate=0.5, patience=2)
    whole, history = fit_predictor(store, SPLIT, recipe)

    def interrupt(epoch):
        if epoch.epoch == len(history) - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_predictor(store, SPLIT, recipe, folder=tmp_path, report=interrupt)
    resumed, resumed_history = fit_predictor(store, SPLIT, recipe, folder=tmp_path)
    assert resumed_history == history
    assert torch.equal(weights(resumed), weights(whole))
    again, _ = fit_predictor(store, SPLIT, recipe, folder=tmp_path)  # nothing is left to do
    assert torch.equal(weights(again), weights(whole))


def test_what_is_expected_is_said_before():
    few = expectation(recipe_for(100, "future"), 100, 4, 30_000, 576)
    assert few.splitlines() == [
        "expected: up to 510 optimizer steps, 30,000 tokens for 995,616 weights",
        "  overfitting: fewer tokens than weights; the best epoch is kept; more traces would help most",
        "  chance: 4 held out, so that small differences below say nothing",
    ]
    papers = expectation(FitRecipe(), 100, 12, 30_000, 576)
    assert "underfitting: the paper's fit takes 410 steps; lower the batch (256)" in papers
    assert "fewer tokens than weights; the last epoch is kept: set patience; more" in papers
    assert expectation(FitRecipe(), 7000, 700, 28_000_000, 576).count("\n") == 0


def test_a_split_needs_both_sides():
    with pytest.raises(ValueError, match="no trace is held out"):
        Split(KEYS, ())
