"""Charts of what was measured on a GPU."""

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path

import matplotlib.pyplot as plt

from benchmark.gpu.report import Cell
from benchmark.gpu.servers import Load, Watch
from benchmark.harness.charts import COLORS, NAMES, save, tidy
from benchmark.simulation.job import DYNTS, STOCK

DASHES = ("-", "--", ":", "-.")


def draw_throughput(path: Path, cells: Sequence[Cell], device: str) -> None:
    """Draw one number against the batch, a line for each side and output length.

    Args:
        path: of the PNG.
        cells: of one bench and one unit.
        device: for the title.
    """
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    lengths = sorted({cell.output_len for cell in cells})
    for dash, length in zip(DASHES * len(lengths), lengths, strict=False):
        chosen = sorted(
            (cell for cell in cells if cell.output_len == length), key=lambda cell: cell.batch
        )
        batches = [cell.batch for cell in chosen]
        for side, values in (
            (STOCK, [nan_if_none(cell.stock) for cell in chosen]),
            (DYNTS, [nan_if_none(cell.dynts) for cell in chosen]),
        ):
            label = f"{NAMES[side]}, {length:,} tokens"
            axis.plot(batches, values, dash, marker="o", color=COLORS[side], label=label)
    axis.set_xlabel("batch")
    tidy(axis, cells[0].unit)
    axis.legend(frameon=False)
    figure.suptitle(f"{cells[0].shape} on {device}", fontsize=12)
    save(figure, path)


def nan_if_none(value: float | None) -> float:
    """Return what leaves a gap in a line for a number that there is not."""
    return nan if value is None else value


def draw_kv(path: Path, watches: Mapping[str, Watch], title: str) -> None:
    """Draw KV tokens held and running requests over time, both sides from their first request on.

    What comes before is the load generator's: on the side that is asked first it is imported then.

    Args:
        path: of the PNG.
        watches: by side.
        title: of the chart.
    """
    figure, axes = plt.subplots(2, 1, figsize=(9, 5.5), sharex=True, layout="constrained")
    for side, watch in watches.items():
        seconds = seconds_since_first(watch.loads)
        for axis, values in (
            (axes[0], [load.used_tokens for load in watch.loads]),
            (axes[1], [load.running for load in watch.loads]),
        ):
            axis.plot(seconds, values, color=COLORS[side], linewidth=1.2, label=NAMES[side])
    tidy(axes[0], "KV tokens held")
    tidy(axes[1], "running requests")
    axes[0].legend(frameon=False)
    axes[1].set_xlabel("seconds")
    axes[1].set_xlim(left=0)
    figure.suptitle(title, fontsize=12)
    save(figure, path)


def seconds_since_first(loads: Sequence[Load]) -> list[float]:
    """Return when each sample was taken, counted from the last one before a request ran."""
    first = next((number for number, load in enumerate(loads) if load.running), 0)
    start = loads[max(0, first - 1)].seconds if loads else 0.0
    return [load.seconds - start for load in loads]
