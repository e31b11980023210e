"""The whole way from a model and its traces to a predictor, and what became of the fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from sgl_dynts.checkpoint import PredictorHeader, save_predictor
from sgl_dynts.config import PAPER_CONFIG, DynTSConfig, Windows
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.training.collect import Model, Target, collect, trace_key, usable_traces
from sgl_dynts.training.fit import Epoch, Split, fit_predictor
from sgl_dynts.training.metrics import Ranking
from sgl_dynts.training.picture import draw_fit
from sgl_dynts.training.recipe import FitRecipe
from sgl_dynts.training.states import StateStore, write_whole
from sgl_dynts.training.targets import WITH_DISTANCE
from sgl_dynts.training.trace_file import Trace

HEAD = (
    f"{'epoch':>5}{'loss':>11}{'held out':>11}{'tau':>8}{'top 20 %':>10}{'top 30 %':>10}"
    f"{'critical in 20 %':>18}{'in 30 %':>9}"
)


@dataclass(frozen=True)
class TrainingReport:
    """What became of a fit; as text, the table of its epochs.

    ``header`` is the predictor file's. ``num_fitted``, ``num_held_out`` and ``num_short`` count traces:
    fitted to, measured only, left out since they are too short for the target.
    """

    header: PredictorHeader
    recipe: FitRecipe
    num_fitted: int
    num_held_out: int
    num_short: int
    epochs: tuple[Epoch, ...]

    @property
    def held_out(self) -> Ranking:
        """How the predictor orders the tokens of held-out traces, the mean over these."""
        return self.epochs[-1].held_out

    def __str__(self) -> str:
        return "\n".join([HEAD, *map(epoch_row, self.epochs)])


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
    traces: Path | str | Iterable[Trace],
    windows: Windows | None = None,
    *,
    target: str = "future",
    distance: int | None = None,
    held_out: float = 0.1,
    recipe: FitRecipe | None = None,
    work: Path | str | None = None,
    base_model: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Compute states and targets of traces, fit a predictor, and measure it on held-out questions.

    An interrupted call goes on where it was if it is given once more with the same `work`.

    Args:
        model: that wrote the traces and is to be served: a folder in Hugging Face's format, or a causal
            LM that is loaded (Llama, Qwen2, Qwen3); the latter is put into evaluation mode.
        traces: a file (`trace_file.py`) or traces at hand; of both only right ones are used.
        windows: recommended to servers in the header, in tokens; what is not given is the paper's.
        target: ``future``, ``answer`` or ``gradient``.
        distance: of the targets ``future`` and ``deletion``, in tokens; default: the local window.
        held_out: share of the questions, 0 to 1, that are measured and not fitted to; at least one.
        recipe: of the fit; default: the paper's.
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
        ValueError: a trace, the model, a value or what stands in `work` cannot be used; says what to do.
        OSError: a file cannot be read or written.
    """
    config, recipe = (windows or Windows()).over(PAPER_CONFIG).complete(), recipe or FitRecipe()
    wanted = Target(target, _distance(target, distance, config))
    opened = Model.open(Path(model) if isinstance(model, str) else model, dtype)
    usable, num_short = usable_traces(Path(traces) if isinstance(traces, str) else traces, opened, wanted)
    split = split_by_question(usable, held_out)
    device = device or _device_of(opened)
    with ExitStack() as stack:
        folder = Path(work or stack.enter_context(TemporaryDirectory()))
        store = StateStore(folder / "states", opened.settings(wanted))
        _fill(store, usable, opened.load, wanted, device, progress, tell)
        if num_short:
            tell(f"{num_short} traces are too short for the target {wanted.name} and are left out")
        tell(f"{len(split.fitted)} traces to fit, {len(split.held_out)} held out, {recipe}\n{HEAD}")
        note = stack.enter_context(_noted_epochs(recipe.epochs, progress, tell))
        predictor, epochs = fit_predictor(store, split, recipe, folder=folder, device=device, report=note)
    header = PredictorHeader(predictor.hidden_size, base_model or opened.name, wanted.name, config)
    counts = len(split.fitted), len(split.held_out), num_short
    return Trained(predictor, TrainingReport(header, recipe, *counts, tuple(epochs)))


def split_by_question(traces: Sequence[Trace], share: float) -> Split:
    """Hold out the traces of a share of the questions, at least one, the same whatever the seed.

    Raises:
        ValueError: no question is left on one side.
    """
    questions = {trace_key(trace): _rank_of_question(trace) for trace in traces}
    ranks = sorted(set(questions.values()))
    held_out = set(ranks[: max(1, round(share * len(ranks)))])
    return Split(
        tuple(key for key, rank in questions.items() if rank not in held_out),
        tuple(key for key, rank in questions.items() if rank in held_out),
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
    load: Callable[[torch.device | str], PreTrainedModel],
    target: Target,
    device: torch.device | str,
    progress: bool,
    tell: Callable[[str], None],
) -> None:
    missing = [trace for trace in traces if trace_key(trace) not in store.places]
    if not missing:
        return
    # Closed whatever happens, so that what is computed is stored.
    with closing(collect(store, missing, load(device), target)) as computed:
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


def _rank_of_question(trace: Trace) -> str:
    return hashlib.sha256(json.dumps(trace.prompt_ids).encode()).hexdigest()


def _distance(target: str, given: int | None, windows: DynTSConfig) -> int:
    if target not in WITH_DISTANCE:
        return 0
    return windows.local_window if given is None else given


def _device_of(model: Model) -> torch.device | str:
    if not isinstance(model.source, Path):
        return model.source.device
    return "cuda" if torch.cuda.is_available() else "cpu"
