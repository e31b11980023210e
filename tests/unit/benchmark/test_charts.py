"""What the accuracy chart draws apart, and what it calls it."""

from matplotlib import pyplot as plt

from benchmark.harness import charts

CELL = {
    **{"task": "ledger-14", "model": "demo", "seed": 1, "policy": "predictor", "target": "future_128"},
    **{"budget_fraction": 0.5, "local_share": 0.31, "keep_ratio": 0.9, "n": 500, "split": "test"},
    **{"correct": 480, "wilson_low": 0.94, "wilson_high": 0.97},
}
CELLS = [
    CELL,
    {**CELL, "local_share": 0.22},
    {**CELL, "target": "answer"},
    {**CELL, "seed": 2},
    {**CELL, "task": "ledger-10", "policy": "random", "target": None},
    {**CELL, "policy": "random", "split": "validation"},
]


def draw(monkeypatch, tmp_path, cells):
    figures = []
    monkeypatch.setattr(charts, "save", lambda figure, _path: figures.append(figure))
    charts.draw_accuracy(tmp_path / "accuracy.png", cells)
    (figure,) = figures
    found = {
        axis.get_title(): [str(label) for label in axis.get_legend_handles_labels()[1]]
        for axis in figure.axes
    }
    plt.close(figure)
    return found


def test_seeds_have_panels_and_targets_and_proportions_have_lines(monkeypatch, tmp_path):
    assert draw(monkeypatch, tmp_path, CELLS) == {
        "ledger-10, seed 1, n = 500": ["random"],
        "ledger-14, seed 1, n = 500": [
            "predictor, target future_128, local window 0.31, keep 0.9",
            "predictor, target future_128, local window 0.22, keep 0.9",
            "predictor, target answer, local window 0.31, keep 0.9",
        ],
        "ledger-14, seed 2, n = 500": ["predictor, target future_128, local window 0.31, keep 0.9"],
    }


def test_the_demos_target_has_one_name(monkeypatch, tmp_path):
    older = {**CELL, "target": "far_attention_max_128"}
    assert draw(monkeypatch, tmp_path, [CELL, older]) == {"ledger-14, n = 500": ["predictor"]}


def test_what_is_alike_is_not_named(monkeypatch, tmp_path):
    assert draw(monkeypatch, tmp_path, CELLS[:1]) == {"ledger-14, n = 500": ["predictor"]}
    assert draw(monkeypatch, tmp_path, CELLS[:2]) == {
        "ledger-14, n = 500": [
            "predictor, local window 0.31, keep 0.9",
            "predictor, local window 0.22, keep 0.9",
        ]
    }
    other = {**CELL, "model": "demo-llama"}
    assert set(draw(monkeypatch, tmp_path, [CELL, other])) == {
        "ledger-14, demo, n = 500",
        "ledger-14, demo-llama, n = 500",
    }
