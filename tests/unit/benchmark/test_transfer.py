"""The transfer matrix: what is judged where, at a size that takes seconds."""

import json

import torch

from benchmark.ledgers.forced import Reading
from benchmark.studies import transfer
from benchmark.studies.gap_ways import Batch


def test_every_kind_is_judged_on_every_kind(monkeypatch, tmp_path, capsys):
    out = tmp_path / "transfer.json"
    line = f"transfer --num-training 4 --num-test 2 --epochs 1 --out {out}"
    kinds = {name: transfer.KINDS[name] for name in ("ledger-10", "ledger-14-brief")}
    monkeypatch.setattr("sys.argv", line.split())
    monkeypatch.setattr(transfer, "KINDS", kinds)
    transfer.main()
    rows = json.loads(out.read_text())
    assert [(row["fitted_to"], row["used_on"]) for row in rows] == [
        (fitted_to, used_on) for fitted_to in (*kinds, transfer.ALL, transfer.ORACLE) for used_on in kinds
    ]
    assert all(0 <= row["right"] <= row["n"] == 2 for row in rows)
    assert "oracle           on ledger-10" in capsys.readouterr().out


def test_windows_hold_the_question_and_a_share_of_the_trace():
    nothing = torch.zeros(0)
    batch = Batch([], nothing, 50, 250, Reading([], nothing, nothing))
    windows = transfer.windows_of(batch, 0.3)
    assert (windows.budget, windows.local_window, windows.keep_ratio) == (110, 24, 0.95)
    assert transfer.distance_of(batch) == 40
