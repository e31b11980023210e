"""The whole way from a model and its traces, or texts, to a predictor, and what became of the fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from sgl_dynts.checkpoint import PredictorHeader, save_predictor
from sgl_dynts.config import PAPER_CONFIG, DynTSConfig, Windows
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.training.collect import (
    Model,
    Target,
    collect,
    trace_key,
    usable_texts,
    usable_traces,
)
from sgl_dynts.training.comparison import Comparison, compare
from sgl_dynts.training.fit import Epoch, Split, fit_predictor, kept_epoch
from sgl_dynts.training.metrics import Ranking
from sgl_dynts.training.picture import draw_fit
from sgl_dynts.training.recipe import FitRecipe, expectation, recipe_for
from sgl_dynts.training.states import StateStore
from sgl_dynts.training.targets import WITH_DISTANCE
from sgl_dynts.training.texts import TextCut, Texts, default_length
from sgl_dynts.training.trace_file import Trace
from sgl_dynts.training.whole_file import write_whole

NOT_ASKED = "it was not asked for"
HEAD = (
    f"{'epoch':>5}{'loss':>11}{'held out':>11}{'tau':>8}{'top 20 %':>10}{'top 30 %':>10}"
    f"{'critical in 20 %':>18}{'in 30 %':>9}"
)


@dataclass(frozen=True)
class TrainingReport:
    """What became of a fit; as text, the table of its epochs.

    ``header`` is the predictor file's. ``num_fitted``, ``num_held_out`` and ``num_short`` count traces:
    fitted to, measured only, left out since they are too short for the target; of texts, windows.
    ``comparison`` says whether it is worse than a policy without training; where that cannot be found out
    it is None, and ``not_compared`` says why.
    """

    header: PredictorHeader
    recipe: FitRecipe
    num_fitted: int
    num_held_out: int
    num_short: int
    epochs: tuple[Epoch, ...]
    comparison: Comparison | None = None
    not_compared: str = ""

    @property
    def kept(self) -> Epoch:
        """The epoch whose weights the predictor has."""
        return kept_epoch(self.recipe, self.epochs)

    @property
    def held_out(self) -> Ranking:
        """How the predictor orders the tokens of held-out traces, the mean over these."""
        return self.kept.held_out

    @property
    def beside(self) -> str:
        """How it does beside a policy without training, in two lines, or why that is not known."""
        return str(self.comparison or f"not compared with `calibrated`: {self.not_compared}")

    def __str__(self) -> str:
        return "\n".join([HEAD, *map(epoch_row, self.epochs), self.beside])


class Trained(NamedTuple):
    """A predictor, float32 on the CPU and frozen, and the report of its fit."""

    predictor: ImportancePredictor
    report: TrainingReport

    def save(self, path: Path | str) -> None:
        """Write the file that a server loads; beside it epochs (.fit.json) and picture (.fit.png)."""
        path, report = Path(path), self.report
        save_predictor(path, self.predictor, report.header)
        kept = asdict(report) | {"header": report.header.flat()}
        del kept["num_short"]
        write_whole(path.with_suffix(".fit.json"), json.dumps(kept, indent=1) + "\n")
        title = f"{report.header.base_model}, target {report.header.target}"
        draw_fit(path.with_suffix(".fit.png"), report.epochs, title)


def train(
    model: Path | str | PreTrainedModel,
    traces: Path | str | Iterable[Trace] | None = None,
    windows: Windows | None = None,
    *,
    texts: Texts | None = None,
    text_len: int | None = None,
    question_len: int = 32,
    per_text: int | None = None,
    target: str = "future",
    distance: int | None = None,
    held_out: float = 0.1,
    recipe: FitRecipe | Mapping[str, Any] | None = None,
    compared: bool = True,
    work: Path | str | None = None,
    base_model: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Compute states and targets of traces or texts, fit a predictor, and measure it on held-out ones.

    An interrupted call goes on where it was if it is given once more with the same `work`. Either
    `traces` or `texts` are given.

    Args:
        model: that wrote the traces and is to be served: a folder in Hugging Face's format, or a causal
            LM that is loaded (Llama, Qwen2, Qwen3); the latter is put into evaluation mode.
        traces: a file (`trace_file.py`) or traces at hand; of both only right ones are used.
        windows: recommended to servers in the header, in tokens; what is not given is the paper's.
        texts: a file or a folder of `*.txt`, by path; or a sequence of such Paths and of texts, each a
            str. They need no answer, so the target must be ``future`` or ``deletion``.
        text_len: tokens of the windows that texts are cut into; default: two budgets, at most what the
            model takes.
        question_len: tokens that begin a window and are its question.
        per_text: windows of a text at most, the first ones; default: all.
        target: ``future``, ``answer``, ``gradient`` or ``deletion``.
        distance: of the targets ``future`` and ``deletion``, in tokens; default: the local window.
        held_out: share of the questions, or of the texts, 0 to 1, that are measured and not fitted to; at
            least one.
        recipe: of the fit, whole or those fields that are not to be chosen; default: as it suits the
            number of traces (`recipe_for`). ``FitRecipe()`` is the paper's.
        compared: also measure whether the predictor is worse than the policy `calibrated`
            (`comparison.py`); with 8 texts that takes as long as some dozens of traces.
        work: folder for states (2 bytes * hidden size per token in bfloat16) and for progress; default:
            a temporary one, so that nothing is left to go on from.
        base_model: name of the model in the header; default: its folder's.
        dtype: to compute states in; default: the model's own.
        device: to compute on; default: a loaded model's, else a GPU where there is one.
        progress: draw bars with tqdm, on stderr or in the notebook.
        tell: called with each line that the command prints.

    Returns:
        The predictor, [n, hidden size] states -> [n] float32 scores, and the report.

    Raises:
        ValueError: a trace, a text, the model, a value or what stands in `work` cannot be used; says what
            to do.
        OSError: a file cannot be read or written.
    """
    config = (windows or Windows()).over(PAPER_CONFIG).complete()
    wanted = Target(target, _distance(target, distance, config))
    opened = Model.open(Path(model) if isinstance(model, str) else model, dtype)
    if traces is not None and texts is None:
        data = _Data.of_traces(traces, opened, wanted, held_out)
    elif texts is not None and traces is None:
        cut = TextCut(text_len or default_length(config, opened.max_len), question_len, per_text)
        data = _Data.of_texts(texts, cut, opened, wanted, held_out)
    else:
        raise ValueError("give either traces or texts, and not both")
    recipe = _whole_recipe(recipe, data, target)
    device = device or _device_of(opened)
    load = cache(partial(opened.load, device))
    with ExitStack() as stack:
        folder = Path(work or stack.enter_context(TemporaryDirectory()))
        store = StateStore(folder / "states", opened.settings(wanted))
        _fill(store, data.traces, load, wanted, progress, tell)
        _say_before(store, data, recipe, wanted, tell)
        note = stack.enter_context(_noted_epochs(recipe.epochs, progress, tell))
        fitted = fit_predictor(store, data.split, recipe, folder=folder, device=device, report=note)
    header = PredictorHeader(fitted[0].hidden_size, base_model or opened.name, wanted.name, config)
    beside = _compare(load, fitted[0], data, config) if compared else (None, NOT_ASKED)
    return Trained(fitted[0], _report(header, recipe, data, fitted[1], beside, tell))


@dataclass(frozen=True)
class _Data:
    """What a predictor is fitted to and measured on; ``num_short`` were left out."""

    traces: list[Trace]
    num_short: int
    split: Split

    @classmethod
    def of_traces(
        cls, traces: Path | str | Iterable[Trace], model: Model, target: Target, held_out: float
    ) -> _Data:
        source = Path(traces) if isinstance(traces, str) else traces
        usable, num_short = usable_traces(source, model, target)
        return cls(usable, num_short, split_by_question(usable, held_out))

    @classmethod
    def of_texts(cls, texts: Texts, cut: TextCut, model: Model, target: Target, held_out: float) -> _Data:
        usable, num_short = usable_texts(texts, cut, model, target)
        return cls(usable, num_short, split_by_text(usable, held_out))

    def sides(self) -> tuple[list[Trace], list[Trace]]:
        """Return the traces that are fitted to, and those held out."""
        by_key = {trace_key(trace): trace for trace in self.traces}
        return [by_key[key] for key in self.split.fitted], [by_key[key] for key in self.split.held_out]


def _whole_recipe(recipe: FitRecipe | Mapping[str, Any] | None, data: _Data, target: str) -> FitRecipe:
    if isinstance(recipe, FitRecipe):
        return recipe
    return recipe_for(len(data.split.fitted), target, recipe)


def _say_before(
    store: StateStore, data: _Data, recipe: FitRecipe, target: Target, tell: Callable[[str], None]
) -> None:
    fitted, held_out = data.split.fitted, data.split.held_out
    if data.num_short:
        tell(f"{data.num_short} traces are too short for the target {target.name} and are left out")
    tell(f"{len(fitted)} traces to fit, {len(held_out)} held out, {recipe}")
    num_tokens = sum(map(store.length, fitted))
    tell(expectation(recipe, len(fitted), len(held_out), num_tokens, store.hidden_size))
    tell(HEAD)


Beside = tuple[Comparison | None, str]
"""A comparison, or why there is none."""


def _compare(
    load: Callable[[], PreTrainedModel],
    predictor: ImportancePredictor,
    data: _Data,
    windows: DynTSConfig,
) -> Beside:
    try:
        return compare(load(), predictor, *data.sides(), windows), ""
    except ValueError as error:
        return None, str(error)


def _report(
    header: PredictorHeader,
    recipe: FitRecipe,
    data: _Data,
    epochs: Sequence[Epoch],
    beside: Beside,
    tell: Callable[[str], None],
) -> TrainingReport:
    counts = len(data.split.fitted), len(data.split.held_out), data.num_short
    report = TrainingReport(header, recipe, *counts, tuple(epochs), *beside)
    tell(f"epoch {report.kept.epoch} is kept")
    tell(report.beside)
    return report


def split_by_question(traces: Sequence[Trace], share: float) -> Split:
    """Hold out the traces of a share of the questions, at least one, the same whatever the seed.

    Raises:
        ValueError: no question is left on one side.
    """
    return _split({trace_key(trace): _rank(trace.prompt_ids) for trace in traces}, share)


def split_by_text(traces: Sequence[Trace], share: float) -> Split:
    """Hold out the windows of a share of the texts, as :func:`split_by_question` does with questions."""
    return _split({trace_key(trace): _rank(trace.problem) for trace in traces}, share)


def _split(ranks: Mapping[str, str], share: float) -> Split:
    """Hold out a share of the ranks, the lowest ones, at least one; ``ranks`` by key of the trace."""
    once = sorted(set(ranks.values()))
    held_out = set(once[: max(1, round(share * len(once)))])
    return Split(
        tuple(key for key, rank in ranks.items() if rank not in held_out),
        tuple(key for key, rank in ranks.items() if rank in held_out),
    )


def epoch_row(epoch: Epoch) -> str:
    """Return one row of the table that `HEAD` begins."""
    held_out = epoch.held_out
    recalls = [held_out.recall_20, held_out.recall_30]
    known = ["unknown" if recall is None else f"{recall:.3f}" for recall in recalls]
    return (
        f"{epoch.epoch:>5}{epoch.loss:>11.5g}{epoch.held_out_loss:>11.5g}{held_out.tau:>8.3f}"
        f"{held_out.overlap_20:>10.3f}{held_out.overlap_30:>10.3f}{known[0]:>18}{known[1]:>9}"
    )


def _fill(
    store: StateStore,
    traces: list[Trace],
    load: Callable[[], PreTrainedModel],
    target: Target,
    progress: bool,
    tell: Callable[[str], None],
) -> None:
    missing = [trace for trace in traces if trace_key(trace) not in store.places]
    if not missing:
        return
    # Closed whatever happens, so that what is computed is stored.
    with closing(collect(store, missing, load(), target)) as computed:
        bar = tqdm(computed, total=len(missing), desc="states", unit="trace", disable=not progress)
        for number, _ in enumerate(bar, start=1):
            if number % 50 == 0 or number == len(missing):
                tell(f"states of {number} of {len(missing)} traces")


@contextmanager
def _noted_epochs(
    num_epochs: int, progress: bool, tell: Callable[[str], None]
) -> Iterator[Callable[[Epoch], None]]:
    with tqdm(total=num_epochs, desc="fit", unit="epoch", disable=not progress) as bar:

        def note(epoch: Epoch) -> None:
            bar.set_postfix(held_out_loss=epoch.held_out_loss, tau=epoch.held_out.tau, refresh=False)
            bar.update(epoch.epoch - bar.n)
            tell(epoch_row(epoch))

        yield note


def _rank(what: list[int] | str) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _distance(target: str, given: int | None, windows: DynTSConfig) -> int:
    if target not in WITH_DISTANCE:
        return 0
    return windows.local_window if given is None else given


def _device_of(model: Model) -> torch.device | str:
    if not isinstance(model.source, Path):
        return model.source.device
    return "cuda" if torch.cuda.is_available() else "cpu"
