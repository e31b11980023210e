"""Write the tables of the documents anew from the files of results.

    python -m benchmark.report
    python -m benchmark.report --check

A table stands between the lines ``<!-- generated: NAME -->`` and ``<!-- end -->``; the names are in
`benchmark/harness/tables.py`. ``--check`` writes nothing and ends with 1 if any differs.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmark.harness.provenance import ROOT, parser_of
from benchmark.harness.tables import renewed

PLACES = ("*.md", "python/**/*.md", "sgl_dynts/**/*.md", "benchmark/**/*.md")


def documents() -> Iterator[Path]:
    """Yield the documents."""
    for place in PLACES:
        yield from sorted(ROOT.glob(place))


def main(arguments: list[str] | None = None) -> int:
    """Write or check every table."""
    parser = parser_of("report", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, say which tables differ")
    args = parser.parse_args(arguments)
    num_differing = 0
    for path in documents():
        text, differing = renewed(path.read_text())
        num_differing += len(differing)
        for name in differing:
            print(f"{path.relative_to(ROOT)}: {name} {'differs' if args.check else 'is written anew'}")
        if differing and not args.check:
            path.write_text(text)
    return int(args.check and num_differing > 0)


if __name__ == "__main__":
    sys.exit(main())
