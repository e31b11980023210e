"""What every command makes of its numbers: cells, printed, kept, and drawn."""

import argparse
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmark.gpu.servers import Setup
from benchmark.gpu.targets import is_standard, judged, verdict
from benchmark.harness.provenance import RESULTS, commit, parser_of, processor, publish
from benchmark.harness.provenance import command as command_line
from benchmark.harness.shapes import gpu_named, roofline_shape
from benchmark.predict import Outlook
from benchmark.simulation.job import DYNTS, STOCK

SETTINGS = ("bench", "shape", "batch", "output_len", "unit", "device", "command")
"""What tells one cell from another; the command, since it names windows, pool and flags."""
PACKAGES = ("sglang", "torch", "flashinfer-python", "transformers", "sgl-dynts")


@dataclass(frozen=True)
class Cell:
    """One number of both sides, in ``unit``; None where a side has none."""

    bench: str
    shape: str
    batch: int
    output_len: int
    stock: float | None
    dynts: float | None
    unit: str
    prediction: Mapping[str, float] | None = None
    """The same number as predicted, by side; None on a device that the roofline does not know."""


@dataclass(frozen=True)
class Case:
    """What the numbers of one measurement have in common."""

    bench: str
    shape: str
    batch: int
    output_len: int

    def cell(
        self, unit: str, measured: Mapping[str, float], prediction: Mapping[str, float] | None = None
    ) -> Cell:
        """Return one number as a cell; ``measured`` and ``prediction`` by side."""
        case = (self.bench, self.shape, self.batch, self.output_len)
        return Cell(*case, measured.get(STOCK), measured.get(DYNTS), unit, prediction)


def result_of(cell: Cell, args: argparse.Namespace, program: str) -> dict[str, Any]:
    """Return a cell as it is kept: with its target, and where it comes from."""
    result = {**asdict(cell), "ratio": ratio_of(cell.stock, cell.dynts)}
    return {
        **result,
        **judged(result, is_standard(vars(args))),
        "device": device_name(),
        "commit": args.commit,
        "command": command_line(program),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }


def ratio_of(stock: float | None, dynts: float | None) -> float | None:
    """Return DynTS's number over stock's, None where there is none."""
    return dynts / stock if stock and dynts is not None else None


def device_name() -> str:
    """Return the name of the GPU, or of the processor where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


def report(args: argparse.Namespace, cells: Sequence[Cell], program: str) -> None:
    """Print cells for people and for machines, and keep them.

    Args:
        args: of :func:`parser_with_out`: where the cells are kept, and of which commit they are.
        cells: of one run.
        program: such as ``gpu.kernels``.
    """
    results = [result_of(cell, args, program) for cell in cells]
    print_table(results)
    for result in results:
        publish(args.out, result, SETTINGS)


def print_table(results: Sequence[dict[str, Any]]) -> None:
    """Print results of one run for people."""
    print(f"\n{results[0]['shape']} on {results[0]['device']}")
    print(f"{'':52}{'batch':>6}{'length':>8}{'stock':>12}{'DynTS':>12}{'ratio':>8}")
    for result in results:
        print_cell(result)


def print_cell(result: dict[str, Any]) -> None:
    """Print one result, prediction and target below the measurement."""
    title = f"{result['bench']}, {result['unit']}"
    print(f"{title:52}{result['batch']:6}{result['output_len']:8}{numbers(result)}")
    if result["prediction"]:
        foreseen = {STOCK: None, DYNTS: None, **result["prediction"]}
        foreseen["ratio"] = ratio_of(foreseen[STOCK], foreseen[DYNTS])
        print(f"{'  predicted':66}{numbers(foreseen)}")
    if verdict(result):
        print(f"  {verdict(result)}")


def numbers(values: dict[str, Any]) -> str:
    """Return both sides' numbers and their ratio as columns."""
    columns = ((STOCK, 12), (DYNTS, 12), ("ratio", 8))
    return "".join(
        f"{'-':>{width}}" if values[name] is None else f"{values[name]:{width},.3f}"
        for name, width in columns
    )


def outlook_of(setup: Setup, question_len: int, output_len: int) -> Outlook | None:
    """Return the roofline's view of this device, None for one that it does not know."""
    gpu = gpu_named(device_name()) if setup.on_gpu else None
    if gpu is None:
        return None
    shape = roofline_shape(setup.shape)
    return Outlook(gpu, shape, setup.windows, question_len, output_len, setup.pool_tokens)


def parser_with_out(program: str, description: str | None) -> argparse.ArgumentParser:
    """Return a command's parser with the file that it keeps its cells in, and the commit they name."""
    parser = parser_of(program, description)
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "gpu.json", help="JSON list; charts go beside it"
    )
    found = commit()
    parser.add_argument(
        "--commit", default=found, required=found is None, help="of this code; default: what git says"
    )
    return parser
