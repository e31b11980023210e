"""The picture of a fit: losses, and how held-out traces are ordered, over its epochs."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sgl_dynts.training.fit import Epoch

LOSSES = (("loss", "fitted", "#8a8d91"), ("held_out_loss", "held out", "#d1495b"))
RANKINGS = (
    ("tau", "Kendall's tau", "#30638e"),
    ("overlap_20", "of the top 20 %", "#d1495b"),
    ("overlap_30", "of the top 30 %", "#edae49"),
    ("recall_20", "critical tokens in 20 %", "#66a182"),
)


def draw_fit(path: Path, history: Sequence[Epoch], title: str) -> None:
    """Write a PNG with one panel of losses and one of shares found in held-out traces."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [epoch.epoch for epoch in history]
    for name, label, color in LOSSES:
        left.plot(epochs, [getattr(epoch, name) for epoch in history], color=color, label=label)
    for name, label, color in RANKINGS:
        values = [getattr(epoch.held_out, name) for epoch in history]
        if None not in values:
            right.plot(epochs, values, color=color, label=label)
    left.set_ylabel("loss per token")
    right.set_ylabel("held out, share or tau")
    right.set_ylim(top=1)
    for axis in (left, right):
        axis.set_xlabel("epoch")
        axis.legend(frameon=False)
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
