"""What documents show of the results is what the files have, and each file has a writer."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmark.harness import provenance, tables
from benchmark.harness.tables import MARKED, TABLES, renewed
from benchmark.report import documents, main

WRITERS = {
    "accuracy.": "benchmark.accuracy",
    "calibrated_variants.json": "benchmark.studies.calibrated_variants",
    "capacity": "benchmark.capacity",
    "drafts.json": "benchmark.drafts",
    "families.json": "benchmark.ledgers.evaluate",
    "gpu": "benchmark.gpu.report",
    "head_sets.json": "benchmark.head_sets",
    "iteration_cost.": "benchmark.iteration_cost",
    "likelihood.": "benchmark.likelihood",
    "predict.json": "benchmark.predict",
    "predictor_gap.json": "benchmark.studies.predictor_gap",
    "soaks.json": "tests.e2e.endurance",
    "target_memory.": "benchmark.target_memory",
    "trace-": "benchmark.pictures",
    "transfer.json": "benchmark.studies.transfer",
    "wrong_traces.json": "benchmark.studies.wrong_traces",
    "whole_pool.json": "benchmark.gpu.whole_pool",
}
"""The module that writes each file of results, by what the file's name begins with."""
OLD_NAMES = {"benchmark.studies": "benchmark", "benchmark.ledgers": "sgl_dynts.demo"}


@pytest.mark.parametrize(
    "document", list(documents()), ids=lambda path: str(path.relative_to(provenance.ROOT))
)
def test_the_tables_of_a_document_are_those_of_the_results(document):
    text, differing = renewed(document.read_text())
    assert not differing, "python -m benchmark.report writes them anew"
    assert text == document.read_text()


def test_every_table_is_in_a_document():
    shown = {name for path in documents() for _, name, _ in MARKED.findall(path.read_text())}
    assert shown == set(TABLES)


def test_a_table_that_is_not_as_the_results_are_is_said_and_written_anew(tmp_path, monkeypatch, capsys):
    (tmp_path / "README.md").write_text("a\n  <!-- generated: one -->\n  old\n  <!-- end -->\nb\n")
    monkeypatch.setattr("benchmark.report.ROOT", tmp_path)
    monkeypatch.setitem(TABLES, "one", lambda: tables.table(("x", "y"), [[1, 2]]))
    assert main(["--check"]) == 1
    assert capsys.readouterr().out == "README.md: one differs\n"
    assert main([]) == 0
    assert (tmp_path / "README.md").read_text() == (
        "a\n  <!-- generated: one -->\n  | x | y |\n  |---|---|\n  | 1 | 2 |\n  <!-- end -->\nb\n"
    )
    assert main(["--check"]) == 0


@pytest.mark.parametrize("file", sorted(provenance.RESULTS.iterdir()), ids=lambda path: path.name)
def test_every_file_of_results_has_a_writer(file):
    (writer,) = (module for start, module in WRITERS.items() if file.name.startswith(start))
    spec = find_spec(writer)
    assert spec is not None
    assert spec.origin is not None
    stem = re.split(r"[-.]", file.name)[0]
    assert stem in Path(spec.origin).read_text(), f"{writer} does not write {file.name}"
    rows = json.loads(file.read_text()) if file.suffix == ".json" else []
    package, _, name = writer.rpartition(".")
    known = [writer, f"{OLD_NAMES.get(package)}.{name}"]
    for row in rows:
        program = row["command"].split()[2]
        assert program in known or program.startswith("benchmark.gpu."), row["command"]
        assert row["commit"]
