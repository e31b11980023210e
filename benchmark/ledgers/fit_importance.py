"""Fit the demo's predictor: the general training, on reference traces of the demo model's problems."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmark.ledgers.oracle import FAR_DISTANCE
from sgl_dynts.demo.ledger import END_THINK, Problem, Vocabulary, read_again
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.training.collect import Model, Target, collect, trace_key
from sgl_dynts.training.fit import Epoch, Split, fit_predictor
from sgl_dynts.training.recipe import FitRecipe
from sgl_dynts.training.states import StateStore
from sgl_dynts.training.trace_file import Trace

DEMO_TARGET = Target("future", FAR_DISTANCE)
DEMO_RECIPE = FitRecipe(
    epochs=27,
    batch_size=8,
    learning_rate=1e-2,
    betas=(0.9, 0.999),
    weight_decay=0.0,
    warmup_share=0.02,
    loss="mse-emphasis",
    scale="mean",
    scale_inputs=True,
)
"""Whether a token will be read cannot always be told when it is written, hence the emphasis on those
that are; the states of this model are small, hence the scaled first layer."""
NUM_HELD_OUT = 40


def train_predictor(
    folder: Path,
    problems: Sequence[Problem],
    recipe: FitRecipe = DEMO_RECIPE,
    target: Target = DEMO_TARGET,
    device: str = "cpu",
    report: Callable[[Epoch], None] = lambda epoch: None,
) -> ImportancePredictor:
    """Return a predictor fitted to all `problems` but the last 40, which are measured only.

    The traces are the references: the model's greedy traces are these very texts. `report` is called
    after every epoch.
    """
    traces = [as_trace(problem) for problem in problems]
    keys = [trace_key(trace) for trace in traces]
    model = Model.open(folder, torch.float32)
    with tempfile.TemporaryDirectory() as work:
        store = StateStore(Path(work), model.settings(target))
        for _ in collect(store, traces, model.load(device), target):
            pass
        split = Split(tuple(keys[:-NUM_HELD_OUT]), tuple(keys[-NUM_HELD_OUT:]))
        return fit_predictor(store, split, recipe, device=device, report=report)[0]


def as_trace(problem: Problem) -> Trace:
    """Return a problem with its reference solution as a trace that a predictor can be fitted to.

    Critical are the records that are read again, where they are written down.
    """
    vocabulary = Vocabulary()
    words = problem.completion.split()
    return Trace(
        problem=f"{problem.num_steps}-{problem.seed}",
        task=f"ledger-{problem.num_steps}",
        question=problem.question,
        prompt_ids=vocabulary.encode(problem.prompt),
        output_ids=vocabulary.encode(problem.completion),
        thinking=(0, words.index(END_THINK)),
        answer=problem.answer,
        correct=True,
        critical=[words.index(text) for text in read_again(problem)],
    )
