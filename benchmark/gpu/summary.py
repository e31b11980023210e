"""Every target beside what was measured, and which are still open.

    python -m benchmark.gpu.summary
    python -m benchmark.gpu.summary --add other/gpu.json      # cells of another run are kept with these

The targets are an H200's; a cell of another device is judged by the same numbers.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.gpu.report import SETTINGS, parser_with_out, print_cell
from benchmark.gpu.targets import BOTH, open_targets
from benchmark.harness.provenance import keep


def main() -> None:
    """Add what is to be added, then print."""
    args = parse()
    for path in args.add:
        for result in read(path):
            keep(args.out, result, SETTINGS)
    results = read(args.out) if args.out.exists() else []
    for shape in BOTH:
        print_shape(shape, results)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_with_out("gpu.summary", __doc__)
    parser.add_argument("--add", nargs="*", type=Path, default=[], help="files of cells to keep in --out")
    return parser.parse_args()


def read(path: Path) -> list[dict[str, Any]]:
    """Return the cells of a file."""
    return json.loads(path.read_text())


def print_shape(shape: str, results: Sequence[dict[str, Any]]) -> None:
    """Print the judged cells of a shape by device, then the targets that nothing was measured for."""
    judged = [result for result in results if result["shape"] == shape and result["target"]]
    for device in sorted({result["device"] for result in judged}):
        print(f"\n{shape} on {device}; targets are an H200's")
        for result in judged:
            if result["device"] == device:
                print_cell(result)
    for target in open_targets(judged, shape):
        where = "".join(
            f", {name} {value:,}"
            for name, value in (("batch", target.batch), ("output", target.output_len))
            if value is not None
        )
        print(f"{shape}: not measured: {target.bench}, {target.unit}{where}: {target.text}")


if __name__ == "__main__":
    main()
