"""Pictures of what DynTS keeps: a trace as a heat strip, its sawtooth, predicted against true importance.

The demo's model reads reference traces of its task once, with the full cache; the predictor scores them,
and the slow reference of the method decides what stays. No server runs.

    python -m benchmark.pictures --steps 14
"""

import argparse
from pathlib import Path

import torch

from benchmark.harness.provenance import RESULTS, parser_of
from benchmark.harness.trace_charts import TracePicture, draw_heat_strip, draw_importance, draw_sawtooth
from benchmark.ledgers.evaluate import problems_of
from benchmark.ledgers.export import load_model_folder
from benchmark.ledgers.model import DemoModel
from benchmark.ledgers.oracle import FAR_DISTANCE, trace_targets
from sgl_dynts import demo_model_path
from sgl_dynts.checkpoint import find_predictor, load_predictor
from sgl_dynts.config import DynTSConfig
from sgl_dynts.demo.ledger import END_THINK, Problem, Vocabulary, read_again
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.reference import kept_positions

NOT_KNOWN = float("nan")


class Painter:
    """The demo's model with its predictor and windows; turns problems into what is drawn."""

    def __init__(self, model: DemoModel, predictor: ImportancePredictor, config: DynTSConfig) -> None:
        self.model = model
        self.predictor = predictor
        self.config = config
        self.vocabulary = Vocabulary()

    @torch.no_grad()
    def picture(self, problem: Problem) -> TracePicture:
        """Return what is drawn of one problem's reference trace."""
        words = f"{problem.prompt} {problem.completion}".split()
        question_len = len(problem.prompt.split())
        end = words.index(END_THINK)
        hidden, _ = self.model.mean_attention(torch.tensor([self.vocabulary.encode(" ".join(words))]))
        targets = trace_targets(self.model, self.vocabulary, problem)
        scores: list[float] = self.predictor(hidden[0].float()).flatten().tolist()
        at, held, lengths = self._compactions(scores, question_len, end)
        thinks = [question_len <= position < end for position in range(len(words))]
        too_young = len(words) - FAR_DISTANCE - 1
        return TracePicture(
            title=f"A ledger of {problem.num_steps} entries",
            question_len=question_len,
            predicted=[s if t else NOT_KNOWN for s, t in zip(scores, thinks, strict=True)],
            true=[
                target if thinks[position] and position < too_young else NOT_KNOWN
                for position, target in enumerate(targets.tolist())
            ],
            at=at,
            held=held,
            lengths=lengths,
            critical=frozenset(words.index(text) for text in read_again(problem)),
            budget=self.config.budget_for(question_len),
        )

    def _compactions(
        self, scores: list[float], question_len: int, end: int
    ) -> tuple[list[int], list[frozenset[int]], list[int]]:
        """Let the reference follow the trace: when it compacts, what it holds then, how much always."""
        thinking = [question_len + i < end for i in range(len(scores) - question_len)]
        window = list(range(question_len))
        at, held, lengths = [], [], []
        for position in range(question_len, len(scores)):
            window.append(position)
            kept = kept_positions(window, scores, thinking, question_len, self.config)
            if len(kept) < len(window):
                at.append(position + 1)
                held.append(frozenset(kept))
            window = kept
            lengths.append(len(window))
        return at, held, lengths


def main(arguments: list[str] | None = None) -> None:
    """Draw the pictures."""
    args = parse(arguments)
    torch.set_num_threads(1)
    source = find_predictor(args.model)
    model, predictor = load_model_folder(args.model, torch.float32), load_predictor(source).float()
    painter = Painter(model, predictor, source.header.windows)
    pictures = [
        painter.picture(problem) for problem in problems_of("test", args.num_problems, args.steps)
    ]
    draw_heat_strip(args.out / "trace-heat-strip.png", pictures[0])
    draw_sawtooth(args.out / "trace-sawtooth.png", pictures[0])
    draw_importance(args.out / "trace-importance.png", pictures)
    kept = [share_of_critical_held(picture) for picture in pictures if picture.held]
    print(f"{len(pictures)} traces drawn into {args.out}")
    print(f"read again later and still held at the last compaction: {100 * sum(kept) / len(kept):.1f} %")


def share_of_critical_held(picture: TracePicture) -> float:
    """Return how many of the critical tokens seen by the last compaction are held after it."""
    seen = {position for position in picture.critical if position < picture.at[-1]}
    return len(seen & picture.held[-1]) / max(1, len(seen))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("pictures", __doc__)
    add = parser.add_argument
    add("--model", type=Path, default=demo_model_path(), help="a demo model's folder, predictor in it")
    add("--steps", type=int, default=14, help="ledger entries")
    add("--num-problems", type=int, default=20, help="traces of the last picture")
    add("--out", type=Path, default=RESULTS, help="folder for three PNG files")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
