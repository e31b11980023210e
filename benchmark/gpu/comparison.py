"""The same loads on both sides' servers, reported and drawn."""

import argparse
from collections.abc import Callable, Sequence
from typing import TypeVar

from benchmark.gpu.plots import draw_kv
from benchmark.gpu.report import Cell, device_name, report
from benchmark.gpu.servers import RunningServer, Setup, Watch, run_sides, setup_of
from benchmark.gpu.serving import RandomLoad, Served, SharedPrefixLoad, run_load
from benchmark.simulation.job import SIDES

Load = TypeVar("Load", RandomLoad, SharedPrefixLoad)
Sides = dict[str, tuple[Served, Watch]]
"""What was measured of one load, by side."""


def compare(
    args: argparse.Namespace,
    program: str,
    draw_up: Callable[[RunningServer], Sequence[Load]],
    cells_of: Callable[[Setup, Load, Sides], list[Cell]],
) -> list[Cell]:
    """Run loads on stock, then on DynTS; report the cells, then draw the KV tokens of each load.

    Args:
        args: of ``add_server_arguments`` and ``parser_with_out``.
        program: such as ``gpu.fixed_batch``.
        draw_up: the loads; the server is the stock side's, which decides for both.
        cells_of: the cells of one load.
    """
    setup = setup_of(args)
    loads: list[Load] = []

    def measure(server: RunningServer) -> list[tuple[Served, Watch]]:
        loads.extend([] if loads else draw_up(server))
        return [run_load(server, load) for load in loads]

    sides = run_sides(setup, measure)
    both = [{side: sides[side][number] for side in SIDES} for number in range(len(loads))]
    cells = [
        cell
        for load, measured in zip(loads, both, strict=True)
        for cell in cells_of(setup, load, measured)
    ]
    report(args, cells, program)
    for load, measured in zip(loads, both, strict=True):
        draw(args, cells[0].bench, load, measured)
    return cells


def draw(args: argparse.Namespace, bench: str, load: RandomLoad | SharedPrefixLoad, sides: Sides) -> None:
    """Draw the KV tokens of one load over time, beside the results."""
    name = f"gpu-{bench}-{args.shape}-{load.num_prompts}x{load.output_len}.png"
    title = f"{args.shape} on {device_name()}: {load.num_prompts} x {load.output_len:,} tokens"
    draw_kv(args.out.parent / name, {side: watch for side, (_, watch) in sides.items()}, title)
