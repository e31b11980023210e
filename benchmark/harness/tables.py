"""The tables that documents show of the results: from the JSON files to lines of Markdown."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmark.harness.grading import PAPERS_TARGET
from benchmark.harness.provenance import RESULTS
from sgl_dynts.policies import FULL, POLICIES

Row = dict[str, Any]
LARGE, SMALL = "sgl-dynts-ledger-large", "sgl-dynts-demo-ledger"


def results_of(name: str) -> list[Row]:
    """Return the objects of one file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(columns: str, rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return a table's lines; `columns` are their titles between bars."""
    titles = columns.split(" | ")
    head, *body = ("|" + "|".join(f" {cell} " for cell in line) + "|" for line in (titles, *rows))
    return [head, "|" + len(titles) * "---|", *body]


def pick(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Return the rows that have these values."""
    return [row for row in rows if wanted.items() <= row.items()]


def sides(row: Row, form: str, *names: str) -> str:
    """Return a measure of both sides; `names` are keys with ``{}`` for the side, or a path of keys."""
    values = [value_of(row, [name.format(side) for name in names]) for side in ("stock", "dynts")]
    return " → ".join(format(value, form) for value in values)


def value_of(row: Row, path: Iterable[str]) -> Any:
    """Return what stands at the end of a path of keys."""
    found: Any = row
    for key in path:
        found = found[key]
    return found


def percent(row: Row, right: str = "correct", low: str = "wilson_low", high: str = "wilson_high") -> str:
    """Return a share answered right with its interval."""
    return f"{100 * row[right] / row['n']:.1f} % ({100 * row[low]:.1f} to {100 * row[high]:.1f})"


def summary() -> list[str]:
    """What DynTS gives beside stock SGLang, on one screen."""
    simulated = pick(results_of("capacity"), shape="qwen-7b", output_len=16384)[0]
    batch = {row["unit"]: row for row in pick(results_of("gpu"), bench="fixed_batch", output_len=16384)}
    place = "one simulated H200, 7B, outputs of 16,384 tokens: "
    real = "a real H200, 32 such requests: "
    rows = [
        [f"{place}requests at once", *sides(simulated, ".0f", "{}_running").split(" → ")],
        [f"{place}tokens/s", *sides(simulated, ",.0f", "{}_tokens_per_s").split(" → ")],
        *(
            [real + title, *sides(batch[unit], ",.0f", "{}").split(" → ")]
            for title, unit in (("tokens/s", "output tokens/s"), ("most KV tokens", "peak KV tokens"))
        ),
    ]
    served = pick(results_of("accuracy"), split="test", n=500)
    for name, task, model in (("small", "ledger-14", SMALL), ("larger", "ledger-32", LARGE)):
        own = pick(served, task=task, model=model, seed=1)
        full = pick(own, policy=FULL)[0]
        for share, title in ((0.5, "half"), (0.3, "30 %")):
            cells = pick(own, policy="predictor", budget_fraction=share)
            best = max((row for row in cells if row["target"] != PAPERS_TARGET), key=correct)
            what = f"our {name} model's answers that are right with {title} of the KV, n = 500"
            rows.append([what, *(f"{100 * row['correct'] / 500:.1f} %" for row in (full, best))])
    return table(" | stock SGLang | DynTS", rows)


def correct(row: Row) -> int:
    """Return how many were answered right."""
    return row["correct"]


def capacity() -> list[str]:
    """Simulated requests at once and tokens per second."""
    rows = sorted(results_of("capacity"), key=lambda row: (-row["pool_tokens"], row["output_len"]))
    return table(
        "shape, output | tokens/s, stock → DynTS | ratio | running | retractions | done after | host",
        (
            [
                f"{row['shape']}, {row['output_len']:,}",
                sides(row, ",.0f", "{}_tokens_per_s"),
                f"{row['dynts_tokens_per_s'] / row['stock_tokens_per_s']:.2f}",
                sides(row, ".0f", "{}_running"),
                sides(row, ",", "{}_retractions"),
                sides(row, ",.0f", "latency", "{}", "mean").replace(" →", " s →") + " s",
                f"+{100 * (row['host_overhead_ratio'] - 1):.2g} %",
            ]
            for row in rows
        ),
    )


def iteration_cost() -> list[str]:
    """Host time per iteration of the scheduler."""
    return table(
        "running | budget | waiting | stock → DynTS, ms | by turns, quartiles | hooks",
        (
            [
                *(f"{row[name]:,}" for name in ("running", "budget", "queue_len")),
                sides(row, ".3g", "{}_ms"),
                "{:.2f} ({:.2f} to {:.2f})".format(row["ratio"], *row["ratio_quartiles"]),
                f"{row['hooks_ratio']:.4f}",
            ]
            for row in results_of("iteration_cost")
        ),
    )


def policy_name(row: Row) -> str:
    """Return a cell's policy, with the target that its predictor was fitted to if it is the paper's."""
    fitted = f" fitted to `{PAPERS_TARGET}`" if row["target"] == PAPERS_TARGET else ""
    return row["policy"] + fitted


def policies_first(row: Row) -> tuple[int, bool]:
    """Sort by the registry's order, the full cache first, the paper's target after ours."""
    order = (FULL, *(name for name in POLICIES if name != FULL))
    return order.index(row["policy"]), row["target"] == PAPERS_TARGET


def task_name(row: Row) -> str:
    """Return a cell's task, with what tells its model from the demo's."""
    other = row["model"].removeprefix(SMALL).removeprefix("-").title()
    seed = f"seed {row['seed']}" if row["seed"] != 1 else ""
    return ", ".join(filter(None, (row["task"], other, seed)))


def accuracy() -> list[str]:
    """The test split; of other models than the demo's the predictor alone."""
    cells = [
        row
        for row in pick(results_of("accuracy"), split="test")
        if (row["model"], row["seed"]) == (SMALL, 1)
        or (row["model"] != LARGE and row["policy"] in (FULL, "predictor"))
    ]
    cells.sort(
        key=lambda row: (
            *(row["model"], row["seed"], row["task"], policies_first(row)),
            *(row["budget_fraction"], -row["local_share"]),
        )
    )
    return table(
        "task | policy | budget | W_l / B | r | right, 95 % interval | mean KV | peak KV | length | cut",
        (
            [
                *(task_name(row), policy_name(row)),
                *(
                    ("", "", "")
                    if row["policy"] == FULL
                    else (row["budget_fraction"], f"{row['local_share']:.2f}", row["keep_ratio"])
                ),
                *(percent(row), row["mean_kv_tokens"], row["peak_kv_tokens"]),
                *(f"{row[name]:.2f}" for name in ("length_inflation", "truncation_rate")),
            ]
            for row in cells
        ),
    )


def accuracy_proportions() -> list[str]:
    """Shares answered right on the validation split, by the windows' proportions."""
    cells = pick(results_of("accuracy"), split="validation", policy="predictor")
    proportions = [(0.312, 0.9), (0.312, 0.95), (0.221, 0.9), (0.221, 0.95)]
    rows = []
    for task, share in (("ledger-10", 0.3), ("ledger-14", 0.3), ("ledger-10", 0.5)):
        own = pick(cells, task=task, budget_fraction=share)
        found = [pick(own, local_share=local, keep_ratio=ratio)[0] for local, ratio in proportions]
        rows.append([f"{task}, {share}", *(100 * row["correct"] / row["n"] for row in found)])
    titles = (f"{local:.2f}, {ratio}" for local, ratio in proportions)
    return table(" | ".join(("task, budget", *titles)), rows)


def accuracy_large() -> list[str]:
    """How many of 500 the large model answers right, by policy."""
    cells = [row for row in pick(results_of("accuracy"), model=LARGE) if row["policy"] != FULL]
    columns = [(seed, share) for seed in (1, 2) for share in (0.3, 0.5)]
    rows = [
        [
            name,
            *(
                (
                    [row["correct"] for row in own if (row["seed"], row["budget_fraction"]) == column]
                    + ["not run"]
                )[0]
                for column in columns
            ),
        ]
        for name, own in grouped(sorted(cells, key=policies_first), policy_name)
    ]
    return table(" | ".join(("policy", *(f"seed {seed}, {share}" for seed, share in columns))), rows)


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> list[tuple[Any, list[Row]]]:
    """Return the rows by a key, in the order in which the keys come."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.items())


def large_models() -> list[str]:
    """How many of 500 the large model answers right, by what its predictor was fitted to."""
    cells = pick(results_of("accuracy"), model=LARGE)
    rows = []
    for seed in (1, 2):
        full = pick(cells, seed=seed, policy=FULL)[0]["correct"]
        for target, own in grouped(pick(cells, seed=seed, policy="predictor"), lambda row: row["target"]):
            right = [pick(own, budget_fraction=share)[0]["correct"] for share in (0.3, 0.5)]
            rows.append([seed, f"`{target}`", full, *right])
    return table("seed | target | full | predictor, 30 % | predictor, 50 %", rows)


def target_memory() -> list[str]:
    """MiB that each target takes, by the length of a trace."""
    names = ("answer", "future", "gradient", "naive")
    rows = []
    for length, own in grouped(results_of("target_memory"), lambda row: row["seq_len"]):
        mib = {row["target"]: row["added_mib"] for row in own if "added_mib" in row}
        rows.append(
            [f"{length:,}", *(f"{mib[name]:,.1f}" if name in mib else "not run" for name in names)]
        )
    return table(" | ".join(("tokens", *names)), rows)


GPU_ROWS = (
    (
        "fixed_batch",
        "output tokens/s",
        16384,
        "**32 requests of 16,384 tokens, budget 5,000: {}**",
        ",.0f",
    ),
    ("fixed_batch", "ms per output token", 16384, "the same: {}", ".3f"),
    ("fixed_batch", "peak KV tokens", 16384, "the same: {}", ",.0f"),
    ("untriggered", "ms per output token", 512, "nothing compacted, 512 tokens: {}", ".3f"),
    ("untriggered", "greedy requests with stock's tokens", 512, "nothing compacted: {}", ".0f"),
    ("attention", "share of the copy's speed", 4999, "decode attention after six compactions: {}", ".3f"),
    ("compaction", "ms per round", 5000, "a compaction, windows of 5,000 due: {}", ".3f"),
    ("scoring", "ms per step", 1, "scoring: {}", ".3f"),
)
"""Of each row its bench, unit, length, title, and how its numbers are written."""


def gpu() -> list[str]:
    """What an H200 gave, numbers of several batches side by side."""
    rows = []
    for bench, unit, length, title, form in GPU_ROWS:
        cells = pick(results_of("gpu"), bench=bench, unit=unit, output_len=length)
        cells.sort(key=lambda row: row["batch"])
        columns = (
            ", ".join("" if row[name] is None else format(row[name], how) for row in cells).strip(", ")
            for name, how in (("stock", form), ("dynts", form), ("ratio", ".3f"))
        )
        batches = ", ".join(str(row["batch"]) for row in cells)
        rows.append([title.format(unit), batches, *columns])
    return table(" | batch | stock | DynTS | ratio", rows)


def predictor_gap() -> list[str]:
    """What each way of scoring gets right."""
    rows = results_of("predictor_gap")
    ways = [row["way"] for row in rows]
    return table(
        "way | budget | W_l, r | validation, of 100 | test, 95 % interval | parameters | µs, 250 tokens",
        (
            [
                *(f"`{row['way']}`", row["budget"], f"{row['local_window']}, {row['keep_ratio']}"),
                *(f"{100 * row['validation_share']:.0f}", percent(row, right="right")),
                *(
                    f"{row[name]:,}" if name in row else ""
                    for name in ("parameters", "us_for_250_tokens")
                ),
            ]
            for row in sorted(rows, key=lambda row: (row["budget"], ways.index(row["way"])))
        ),
    )


def gap_by_ratio() -> list[str]:
    """How many of 100 validation problems predictor and oracle get right, by keep ratio."""
    cells = pick(results_of("families"), split="validation", budget=185, local_window=58, n=100)
    rows = []
    for ratio, own in grouped(
        sorted(cells, key=lambda row: row["keep_ratio"]), lambda row: row["keep_ratio"]
    ):
        rows.append([ratio, *(pick(own, policy=name)[0]["correct"] for name in ("dynts", "oracle"))])
    return table("keep ratio | predictor | oracle", rows)


def families() -> list[str]:
    """Shares answered right by models of other seeds and families."""
    columns = [
        ("full", 308),
        *((name, budget) for budget in (308, 185) for name in ("dynts", "oracle", "random")),
    ]
    cells = pick(results_of("families"), split="test", dtype="float32")
    rows = []
    for (family, seed), own in grouped(cells, lambda row: (row["family"], row["seed"])):
        found = [pick(own, policy=name, budget=budget)[0] for name, budget in columns]
        rows.append([family, seed, *(f"{100 * row['correct'] / row['n']:.1f}" for row in found)])
    names = {"dynts": "predictor"}
    titles = ("full", *(f"{names.get(name, name)}, {budget}" for name, budget in columns[1:]))
    return table(" | ".join(("family", "seed", *titles)), rows)


def transfer() -> list[str]:
    """How many of 200 are right, by what a predictor was fitted to and used on."""
    kinds = list(dict.fromkeys(row["used_on"] for row in results_of("transfer")))
    rows = []
    for fitted_to, own in grouped(results_of("transfer"), lambda row: row["fitted_to"]):
        right = {row["used_on"]: row["right"] for row in own}
        name = {"all": "a quarter of each"}.get(fitted_to, fitted_to)
        rows.append([name, *(f"**{right[k]}**" if k == fitted_to else right[k] for k in kinds)])
    return table(" | ".join(("fitted to, used on", *kinds)), rows)


def wrong_traces() -> list[str]:
    """What is answered for an entry that was written right, wrong, or wrong and then right."""
    entries = {"corrected": "wrong, then once more and right"}
    policies = {"forget": "predictor, but the wrong record dropped"}
    return table(
        "the entry is | policy | right | wrong | neither",
        (
            [
                *(entries.get(row["of"], row["of"]), policies.get(row["policy"], row["policy"])),
                *(row[name] for name in ("right", "wrong", "other")),
            ]
            for row in pick(results_of("wrong_traces"), study="answers")
        ),
    )


def card(reports: Iterable[Row]) -> list[str]:
    """Return the model card's table of reports by policy."""
    return table(
        "policy | right, % | 95 % interval | same trace, % | mean held | peak held | thinking tokens",
        (
            [
                *(row["policy"], f"{100 * row['correct'] / row['n']:.1f}"),
                f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
                f"{100 * row['same_trace'] / row['n']:.1f}",
                *(f"{row['mean_held']:.0f}", row["peak_held"], f"{row['thinking_len']:.0f}"),
            ]
            for row in reports
        ),
    )


def shipped(dtype: str) -> list[str]:
    """The shipped model under its own windows."""
    own = pick(results_of("families"), family="qwen3", seed=1, split="test", budget=308)
    return card(pick(own, dtype=dtype))


TABLES: dict[str, Callable[[], list[str]]] = {
    "summary": summary,
    "capacity": capacity,
    "iteration-cost": iteration_cost,
    "accuracy": accuracy,
    "accuracy-proportions": accuracy_proportions,
    "accuracy-large": accuracy_large,
    "large-models": large_models,
    "target-memory": target_memory,
    "gpu": gpu,
    "predictor-gap": predictor_gap,
    "gap-by-ratio": gap_by_ratio,
    "families": families,
    "transfer": transfer,
    "wrong-traces": wrong_traces,
    "model-float32": lambda: shipped("float32"),
}
"""Every table that a document may show, by the name that its marker gives."""
WRITERS = {
    "accuracy.": "benchmark.accuracy",
    "capacity": "benchmark.capacity",
    "families.json": "benchmark.ledgers.evaluate",
    "gpu": "benchmark.gpu.report",
    "iteration_cost.": "benchmark.iteration_cost",
    "predictor_gap.json": "benchmark.studies.predictor_gap",
    "target_memory.": "benchmark.target_memory",
    "trace-": "benchmark.pictures",
    "transfer.json": "benchmark.studies.transfer",
    "wrong_traces.json": "benchmark.studies.wrong_traces",
}
"""The module that writes each file of results, by what the file's name begins with."""
