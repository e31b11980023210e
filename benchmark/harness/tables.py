"""The tables that documents show of the results: from the JSON files to lines of Markdown."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from benchmark.harness.grading import PAPERS_TARGET
from benchmark.harness.provenance import RESULTS
from benchmark.harness.shapes import STATES_ALONE
from sgl_dynts.policies import FULL, as_markdown, policy_names
from sgl_dynts.roofline import mean_full_len

Row = dict[str, Any]
LARGE, SMALL = "sgl-dynts-ledger-large", "sgl-dynts-demo-ledger"


def results_of(name: str, **wanted: Any) -> list[Row]:
    """Return the objects of one file of results that have these values."""
    return pick(json.loads((RESULTS / f"{name}.json").read_text()), **wanted)


def pick(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Return the rows that have these values."""
    return [row for row in rows if wanted.items() <= row.items()]


def grouped(rows: Iterable[Row], *keys: str) -> list[tuple[tuple, list[Row]]]:
    """Return the rows by the values of keys, in the order in which they come."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(found.items())


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return a table's lines."""
    head, *body = ("|" + "|".join(f" {cell} " for cell in line) + "|" for line in (columns, *rows))
    return [head, "|" + len(columns) * "---|", *body]


def filled(columns: Sequence[tuple[str, str]], rows: Iterable[Row], **more: Callable) -> list[str]:
    """Return a table of a line for each row.

    Args:
        columns: of each its title, and its cells as a format string with the row's keys.
        rows: of a file of results.
        more: values that a row does not have, each told by a function of the row.
    """
    whole = [row | {name: made(row) for name, made in more.items()} for row in rows]
    titles, forms = zip(*columns, strict=True)
    return table(titles, [[form.format_map(row) for form in forms] for row in whole])


def pivot(
    titles: Sequence[str],
    rows: Iterable[Row],
    keys: Sequence[str],
    columns: dict[str, Row],
    cell: Callable[[Row], Any],
) -> list[str]:
    """Return a table of a line for each value of the keys, and a column for each of some other values.

    Args:
        titles: of the keys.
        rows: of a file of results.
        keys: whose values begin the lines.
        columns: by title, what a row of this column has.
        cell: what is shown of a row; ``not run`` where there is none.
    """
    lines = []
    for key, own in grouped(rows, *keys):
        found = (pick(own, **wanted) for wanted in columns.values())
        lines.append([*key, *(cell(rows[0]) if rows else "not run" for rows in found)])
    return table((*titles, *columns), lines)


def right(row: Row) -> str:
    """Return a share answered right with its interval."""
    share = 100 * (row["correct"] if "correct" in row else row["right"]) / row["n"]
    return f"{share:.1f} % ({100 * row['wilson_low']:.1f} to {100 * row['wilson_high']:.1f})"


def correct(row: Row) -> int:
    """Return how many were answered right."""
    return row["correct"]


def percent(row: Row) -> str:
    """Return a share answered right."""
    return f"{100 * row['correct'] / row['n']:.1f}"


def summary() -> list[str]:
    """What DynTS gives beside stock SGLang, on one screen."""
    (full,) = results_of("whole_pool", shape="qwen-7b", kind="measured")
    batch = {row["unit"]: row for row in results_of("gpu", bench="fixed_batch", output_len=16384)}
    numbers = [
        ("an H200 with a full pool, 7B: requests at once", "running"),
        ("the same: tokens/s", "tokens_per_s"),
        ("the same: requests taken back and computed again", "retractions"),
    ]
    rows = [[title, *(f"{full[side][name]:,.0f}" for side in SIDES)] for title, name in numbers]
    for title, unit in (("tokens/s", "output tokens/s"), ("most KV tokens", "peak KV tokens")):
        cells = (f"{batch[unit][side]:,.0f}" for side in SIDES)
        rows.append([f"an H200, 32 requests of 16,384 tokens: {title}", *cells])
    for name, task, model in (("small", "ledger-14", SMALL), ("larger", "ledger-32", LARGE)):
        own = results_of("accuracy", split="test", task=task, model=model, seed=1)
        own = [row for row in own if row["target"] != PAPERS_TARGET]
        for share, held in ((0.5, "half"), (0.3, "30 %")):
            cells = (*pick(own, policy=FULL), *pick(own, policy="predictor", budget_fraction=share))
            title = f"answers of our {name} model that are right with {held} of the KV, n = 500"
            rows.append([title, *(f"{percent(row)} %" for row in cells)])
    return table(("", "stock SGLang", "DynTS"), rows)


SIDES = ("stock", "dynts")


def capacity() -> list[str]:
    """Simulated requests at once and tokens per second."""
    columns = (
        ("shape, output", "{shape}, {output_len:,}"),
        ("tokens/s, stock → DynTS", "{stock_tokens_per_s:,.0f} → {dynts_tokens_per_s:,.0f}"),
        ("ratio", "{ratio:.2f}"),
        ("running", "{stock_running:.0f} → {dynts_running:.0f}"),
        ("retractions", "{stock_retractions:,} → {dynts_retractions:,}"),
        ("done after", "{latency[stock][mean]:,.0f} s → {latency[dynts][mean]:,.0f} s"),
        *(("host", "+{host:.2g} %"), ("each for", "{stands_for}")),
    )
    return filled(
        columns,
        sorted(results_of("capacity"), key=lambda row: (row["shape"], row["output_len"])),
        ratio=lambda row: row["dynts_tokens_per_s"] / row["stock_tokens_per_s"],
        host=lambda row: 100 * (row["host_overhead_ratio"] - 1),
    )


ITERATION_COST = (
    *(("running", "{running:,}"), ("budget", "{budget:,}"), ("waiting", "{queue_len:,}")),
    ("stock → DynTS, ms", "{stock_ms:.3g} → {dynts_ms:.3g}"),
    ("by turns, quartiles", "{ratio:.2f} ({ratio_quartiles[0]:.2f} to {ratio_quartiles[1]:.2f})"),
    ("hooks", "{hooks_ratio:.4f}"),
)
"""Host time per iteration of the scheduler."""

DRAFTS = (
    *(("drafts by", "{algorithm}"), ("problems", "{n}")),
    ("tokens per verification, full cache", "{full[accept_length]:.2f}"),
    ("with DynTS", "{dynts[accept_length]:.2f}"),
    ("right", "{full[right]} → {dynts[right]}"),
    ("most KV tokens", "{full[peak_window_len]} → {dynts[peak_window_len]}"),
    ("compactions", "{dynts[compactions]}"),
)
"""What a verification of drafts accepts."""

HEAD_ROUNDS = (
    *(("shape", "{shape}"), ("due", "{due}"), ("window", "{window:,}")),
    *(("rows, ms", "{rewrite_ms:.2f}"), ("choosing, ms", "{choice_ms:.1f}")),
    *(("moving, ms", "{moves_ms:.1f}"), ("moved, MB", "{moved_mb:,.0f}")),
)
"""What the parts of a compaction round take that has a set per KV head."""
HEAD_SERVERS = (
    *(("running", "{running}"), ("tokens each", "{length}"), ("compactions", "{compactions}")),
    ("ms per token, one set", "{one_set_ms:.3f}"),
    ("a set per KV head", "{per_head_ms:.3f}"),
    ("ratio, of turns", "{ratio:.3f} ({ratio_range[0]:.3f} to {ratio_range[1]:.3f})"),
)
"""What a set per KV head costs a server under load."""


def policy_name(row: Row) -> str:
    """Return a cell's policy, with the target that its predictor was fitted to if it is the paper's."""
    fitted = f" fitted to `{PAPERS_TARGET}`" if row["target"] == PAPERS_TARGET else ""
    return row["policy"] + fitted


def by_policy(row: Row) -> tuple[bool, int, bool]:
    """Sort by the registry's order, the full cache first, the paper's target after ours."""
    policy = row["policy"]
    return policy != FULL, policy_names().index(policy), row["target"] == PAPERS_TARGET


def task_name(row: Row) -> str:
    """Return a cell's task, with what tells its model from the demo's."""
    other = row["model"]
    if other.startswith(SMALL):
        other = other.removeprefix(SMALL).removeprefix("-").title()
    seed = f"seed {row['seed']}" if row["seed"] != 1 else ""
    return ", ".join(filter(None, (row["task"], other, seed)))


def answers(cells: Iterable[Row], *more: tuple[str, str]) -> list[str]:
    """Return cells of the accuracy table, with more columns if need be."""
    columns = (
        *(("task", "{name}"), ("policy", "{whose}"), ("budget", "{budget_fraction}")),
        *(("W_l / B", "{local_share}"), ("r", "{keep_ratio}"), ("right, 95 % interval", "{right}")),
        *(("mean KV", "{mean_kv_tokens}"), ("peak KV", "{peak_kv_tokens}")),
        *(("length", "{length_inflation:.2f}"), ("cut", "{truncation_rate:.2f}")),
    )
    shown = [
        row | {"budget_fraction": "", "local_share": "", "keep_ratio": ""}
        if row["policy"] == FULL
        else row | {"local_share": f"{row['local_share']:.2f}"}
        for row in cells
    ]
    return filled((*columns, *more), shown, name=task_name, whose=policy_name, right=right)


def accuracy() -> list[str]:
    """The test split; of other models than the demo's the predictor alone."""
    cells = [
        row
        for row in results_of("accuracy", split="test")
        if (row["model"], row["seed"]) == (SMALL, 1)
        or (row["model"] != LARGE and row["policy"] in (FULL, "predictor"))
    ]
    cells.sort(key=lambda row: (row["budget_fraction"], -row["local_share"]))
    return answers(
        sorted(cells, key=lambda row: (row["model"], row["seed"], row["task"], by_policy(row)))
    )


def accuracy_proportions() -> list[str]:
    """Shares answered right on the validation split, by the windows' proportions."""
    cells = results_of("accuracy", split="validation", policy="predictor")
    cells = [row | {"name": f"{row['task']}, {row['budget_fraction']}"} for row in cells]
    cells.sort(key=lambda row: (row["budget_fraction"], row["task"]))
    columns = {
        f"{share:.2f}, {ratio}": {"local_share": share, "keep_ratio": ratio}
        for share in (0.312, 0.221)
        for ratio in (0.9, 0.95)
    }
    return pivot(("task, budget",), cells, ("name",), columns, percent)


def accuracy_large() -> list[str]:
    """How many of 500 the large model answers right, by policy."""
    cells = [row | {"name": policy_name(row)} for row in results_of("accuracy", model=LARGE)]
    columns = {
        f"seed {seed}, {share}": {"seed": seed, "budget_fraction": share}
        for seed in (1, 2)
        for share in (0.3, 0.5)
    }
    cells = sorted((row for row in cells if row["policy"] != FULL), key=by_policy)
    return pivot(("policy",), cells, ("name",), columns, correct)


def target_memory() -> list[str]:
    """MiB that each target takes, by the length of a trace."""
    cells = [row | {"tokens": f"{row['seq_len']:,}"} for row in results_of("target_memory")]
    columns = {target: {"target": target} for target in dict.fromkeys(row["target"] for row in cells)}
    run = (row for row in cells if "added_mib" in row)
    return pivot(("tokens",), run, ("tokens",), columns, lambda row: f"{row['added_mib']:,.1f}")


GPU_ROWS = (
    ("**32 requests of 16,384 tokens: {}**", "fixed_batch", "output tokens/s", 16384, ",.0f"),
    ("the same: {}", "fixed_batch", "ms per output token", 16384, ".3f"),
    ("the same: {}", "fixed_batch", "peak KV tokens", 16384, ",.0f"),
    ("nothing compacted, 512 tokens: {}", "untriggered", "ms per output token", 512, ".3f"),
    ("nothing compacted: {}", "untriggered", "greedy requests with stock's tokens", 512, ".0f"),
    ("decode attention after six compactions: {}", "attention", "share of the copy's speed", 4999, ".3f"),
    ("a compaction, windows of 5,000 due: {}", "compaction", "ms per round", 5000, ".3f"),
    ("scoring: {}", "scoring", "ms per step", 1, ".3f"),
)
"""Of each row its title, bench, unit, length, and how its numbers are written."""


def whole_pool() -> list[str]:
    """What a full pool gave, measured and simulated."""
    columns = (
        ("shape", "{shape}"),
        ("where", "{where}"),
        ("tokens/s, stock → DynTS", "{stock[tokens_per_s]:,.0f} → {dynts[tokens_per_s]:,.0f}"),
        ("ratio", "{ratio:.2f}"),
        ("requests at once", "{stock[running]:.0f} → {dynts[running]:.0f}"),
        ("KV tokens held", "{stock[held_tokens]:,} → {dynts[held_tokens]:,}"),
        ("retractions", "{stock[retractions]} → {dynts[retractions]}"),
        ("commit", "{commit}"),
    )
    rows = sorted(results_of("whole_pool"), key=lambda row: (row["shape"] != "qwen-7b", row["kind"]))
    return filled(
        columns,
        rows,
        where=lambda row: row["gpu"] if row["kind"] == "measured" else f"{row['gpu'].upper()}, simulated",
    )


def gpu() -> list[str]:
    """What an H200 gave, numbers of several batches side by side."""
    rows = []
    for title, bench, unit, length, form in GPU_ROWS:
        cells = results_of("gpu", bench=bench, unit=unit, output_len=length)
        cells.sort(key=lambda row: row["batch"])
        columns = (("batch", ""), ("stock", form), ("dynts", form), ("ratio", ".3f"))
        numbers = [
            [format(row[key], how) for row in cells if row[key] is not None] for key, how in columns
        ]
        rows.append([title.format(unit), *map(", ".join, numbers)])
    return table(("", "batch", "stock", "DynTS", "ratio"), rows)


def predictor_gap() -> list[str]:
    """What each way of scoring gets right."""
    rows = results_of("predictor_gap")
    ways = [row["way"] for row in rows]
    columns = (
        *(("way", "`{way}`"), ("budget", "{budget}"), ("W_l, r", "{local_window}, {keep_ratio}")),
        *(("validation, of 100", "{validation:.0f}"), ("test, 95 % interval", "{found}")),
        *(("parameters", "{size}"), ("µs, 250 tokens", "{time}")),
    )
    return filled(
        columns,
        sorted(rows, key=lambda row: (row["budget"], ways.index(row["way"]))),
        validation=lambda row: 100 * row["validation_share"],
        found=right,
        size=lambda row: f"{row['parameters']:,}" if "parameters" in row else "",
        time=lambda row: f"{row['us_for_250_tokens']:,}" if "parameters" in row else "",
    )


def gap_by_ratio() -> list[str]:
    """How many of 100 validation problems predictor and oracle get right, by keep ratio."""
    cells = results_of("families", split="validation", budget=185, local_window=58, n=100)
    columns = {"predictor": {"policy": "dynts"}, "oracle": {"policy": "oracle"}}
    return pivot(("keep ratio",), cells, ("keep_ratio",), columns, correct)


def families() -> list[str]:
    """Shares answered right by models of other seeds and families."""
    columns = {"full": {"policy": FULL}} | {
        f"{name.replace('dynts', 'predictor')}, {budget}": {"policy": name, "budget": budget}
        for budget in (308, 185)
        for name in ("dynts", "oracle", "random")
    }
    keys = ("family", "seed")
    return pivot(keys, results_of("families", split="test", dtype="float32"), keys, columns, percent)


def transfer() -> list[str]:
    """How many of 200 are right, by what a predictor was fitted to and used on."""
    cells = results_of("transfer")
    columns = {row["used_on"]: {"used_on": row["used_on"]} for row in cells}

    def cell(row: Row) -> str:
        return f"**{row['right']}**" if row["used_on"] == row["fitted_to"] else str(row["right"])

    return pivot(("fitted to, used on",), cells, ("fitted_to",), columns, cell)


def wrong_traces() -> list[str]:
    """What is answered for an entry that was written right, wrong, or wrong and then right."""
    entries = {"corrected": "wrong, then once more and right"}
    policies = {"forget": "predictor, but the wrong record dropped"}
    columns = (("the entry is", "{entry}"), ("policy", "{name}"), ("right", "{right}"))
    return filled(
        (*columns, ("wrong", "{wrong}"), ("neither", "{other}")),
        results_of("wrong_traces", study="answers"),
        entry=lambda row: entries.get(row["of"], row["of"]),
        name=lambda row: policies.get(row["policy"], row["policy"]),
    )


def card(reports: Iterable[Row]) -> list[str]:
    """Return the model card's table of reports by policy."""
    columns = (
        *(("policy", "{policy}"), ("right, %", "{share}"), ("95 % interval", "{left:.1f} to {top:.1f}")),
        *(("same trace, %", "{same:.1f}"), ("mean held", "{mean_held:.0f}")),
        *(("peak held", "{peak_held}"), ("thinking tokens", "{thinking_len:.0f}")),
    )
    return filled(
        columns,
        reports,
        share=percent,
        left=lambda row: 100 * row["low"],
        top=lambda row: 100 * row["high"],
        same=lambda row: 100 * row["same_trace"] / row["n"],
    )


def shipped(dtype: str) -> list[str]:
    """The shipped model under its own windows."""
    own = {"family": "qwen3", "seed": 1, "split": "test", "budget": 308}
    return card(results_of("families", dtype=dtype, **own))


def soaks(of: str) -> list[str]:
    """Return what hard use of servers came to, of kinds of models or of features."""
    columns = (
        *(("server", "{soaked}"), ("minutes", "{minutes:g}"), ("requests", "{requests:,}")),
        (
            "finished / aborted / hung up / refused",
            "{finished:,} / {aborted:,} / {hung up:,} / {refused:,}",
        ),
        *(("tokens", "{tokens:,}"), ("compactions", "{compactions:,}"), ("held when idle", "{idle}")),
        *(("lost", "{lost}"), ("commit", "{commit}")),
    )
    return filled(
        columns,
        sorted(results_of("soaks", of=of), key=lambda row: row["soaked"]),
        idle=lambda row: ", ".join(f"{n:g} {book}" for book, n in row["books"].items() if n) or "nothing",
        lost=lambda row: len(row["losses"]),
    )


def model_kinds() -> ModuleType:
    """Which models are served; imported where it is asked for, since SGLang takes long."""
    return import_module("sglang_dynts.boot.model_kinds")


def models_served() -> list[str]:
    """Return the kinds of models that are served."""
    columns = ("models", "attention", "kernels on CUDA", "to set", "gain", "tested")
    kinds = model_kinds().SERVED_KINDS
    return table(columns, [(k.models, k.kind, k.kernels, k.to_set, gain_of(k), k.tested) for k in kinds])


def together() -> list[str]:
    """Return what a server may have together, and which pairs a test has run."""
    known = import_module("sglang_dynts.boot.together")
    names = [one.name for one in known.FEATURES]
    rows = [
        [a.name, *(known.word_for(a, b) for b in known.FEATURES[:index])]
        for index, a in enumerate(known.FEATURES)
    ]
    return table(("", *names[:-1]), [row + [""] * (len(names) - len(row)) for row in rows[1:]])


def gain_of(kind: Any) -> str:
    """Return what a kind of model gains: in words, and by the roofline where it has shapes of it."""
    told = [f"{shape} {ratios_of(shape)}" for shape in kind.shapes]
    return f"not measured; requests at once: {', '.join(told)}; {kind.gain}" if told else kind.gain


def ratios_of(shape: str) -> str:
    """Return how many times the requests fit, by length of output; the prefix cache is on."""
    rows = results_of("predict", shape=shape)
    most = max(row["states"] for row in rows)
    rows = sorted(pick(rows, states=most), key=lambda row: row["output_len"])
    return " / ".join(f"{row['fitting_ratio']:.1f}" for row in rows)


def capacity_families() -> list[str]:
    """Simulated requests at once and tokens per second of models with other attention."""
    columns = (
        *(("model", "{shape}{held}"), ("GPUs", "{gpus} H200"), ("output", "{output_len:,}")),
        ("requests at once, stock → DynTS", "{stock_running:,.0f} → {dynts_running:,.0f}"),
        *(("ratio", "{more:.2f}"), ("predicted", "{predicted[fitting_ratio]:.2f}")),
        ("tokens/s, stock → DynTS", "{stock_tokens_per_s:,.0f} → {dynts_tokens_per_s:,.0f}"),
        *(("ratio", "{faster:.2f}"), ("predicted", "{predicted[speedup]:.2f}")),
        *(("retractions", "{stock_retractions:,} → {dynts_retractions:,}"), ("each for", "{stands_for}")),
    )
    predicted = {told_by(row): row for row in results_of("predict")}
    order = list(predicted)
    rows = results_of("capacity-families")
    return filled(
        columns,
        sorted(rows, key=lambda row: (order.index(told_by(row)), row["stands_for"])),
        held=held_states,
        more=lambda row: row["dynts_running"] / row["stock_running"],
        faster=lambda row: row["dynts_tokens_per_s"] / row["stock_tokens_per_s"],
        predicted=lambda row: predicted[told_by(row)],
    )


def told_by(row: Row) -> tuple:
    """Return what tells a model's requests from others, predicted or simulated."""
    return row["shape"], row["states"], row["output_len"]


def held_states(row: Row) -> str:
    """Say of a model with states whether its prefix cache is on."""
    held = {0: "", STATES_ALONE: ", without prefix cache"}
    return held.get(row["states"], ", with prefix cache")


def predictions() -> list[str]:
    """Return what fits, and how fast it then is, by shape and output."""
    columns = (
        *(("model", "{shape}{held}"), ("GPUs", "{gpus} {gpu}"), ("output", "{output_len:,}")),
        *(("fixed", "{fixed:.0f} %"), ("requests at once, stock → DynTS", "{requests}")),
        *(("ratio", "{fitting_ratio:.2f}"), ("tokens/s, stock → DynTS", "{rates}")),
        *(("ratio", "{speedup:.2f}"), ("32 requests each: ratio", "{few:.2f}")),
    )
    return filled(
        columns,
        results_of("predict"),
        held=held_states,
        fixed=fixed_percent,
        requests=lambda row: "{stock:,} → {dynts:,}".format_map(row["fitting"]),
        rates=lambda row: "{stock:,.0f} → {dynts:,.0f}".format_map(row["tokens_per_s"]),
        few=lambda row: row["speedup_at_batch"]["32"],
    )


def fixed_percent(row: Row) -> float:
    """Return what share of the memory of stock's requests no compaction can free, in percent."""
    tokens = row["kv_token_bytes"] * mean_full_len(row["question_len"], row["output_len"])
    return 100 * row["fixed_bytes"] / (row["fixed_bytes"] + tokens)


def models_refused() -> list[str]:
    """Return the kinds of models that are refused."""
    kinds = model_kinds().REFUSED_KINDS
    return table(("models", "refused for", "why"), [(k.models, k.kind, k.why) for k in kinds])


def likelihoods(cells: Iterable[Row]) -> list[str]:
    """Return what each policy costs in likelihood, by kind of text."""
    cells = list(cells)
    columns = (
        *(("budget", "{budget}"), ("W_l", "{local_window}"), ("texts", "{kind}, n = {n}")),
        *(("policy", "{name}"), ("NLL", "{nll:.3f}"), ("NLL less `window`'s", "{delta}")),
        *(("KL", "{kl:.4f}"), ("KL / `window`'s", "{share}"), ("same top token", "{agreement:.3f}")),
    )
    return filled(columns, cells, name=likelihood_name, delta=delta_nll, share=share_of_window(cells))


def share_of_window(cells: Iterable[Row]) -> Callable[[Row], str]:
    """Return what writes a cell's KL as a share of `window`'s in the same place, empty without one."""
    window = {(row["kind"], row["budget"]): row["kl"] for row in pick(cells, policy="window")}

    def share(row: Row) -> str:
        other = window.get((row["kind"], row["budget"]))
        return f"{row['kl'] / other:.2f}" if other else ""

    return share


def delta_nll(row: Row) -> str:
    """Return a cell's difference of NLL to `window` with its error."""
    error = "" if row["delta_nll_se"] is None else f" ± {row['delta_nll_se']:.3f}"
    return f"{row['delta_nll']:+.3f}{error}"


def likelihood_name(row: Row) -> str:
    """Return a cell's policy, and what its predictor was fitted to."""
    target = row.get("target")
    return f"`{row['policy']}`" + (f" fitted to `{target}`" if target else "")


def likelihood_targets() -> list[str]:
    """KL of predictors fitted to several targets as a share of `window`'s, by kind of text."""
    cells = [row | {"name": likelihood_name(row)} for row in results_of("likelihood", texts="targets")]
    share, lines = share_of_window(cells), []
    kinds = list(dict.fromkeys(row["kind"] for row in cells))
    for (name,), own in grouped(cells, "name"):
        by_kind = {row["kind"]: row for row in own}
        whole = by_kind["all"]
        shares = (share(by_kind[kind]) for kind in kinds)
        lines.append([name, whole["n"], *shares, delta_nll(whole), f"{whole['agreement']:.3f}"])
    titles = ("policy", "n", *(f"KL, {kind}" for kind in kinds))
    return table((*titles, "NLL less `window`'s", "same top token"), lines)


def likelihood() -> list[str]:
    """What each policy costs on the texts that are reported."""
    cells = results_of("likelihood", texts="report")
    kinds = [row["kind"] for row in cells]
    order = {FULL: -1} | {name: place for place, name in enumerate(policy_names())}
    cells.sort(key=lambda row: (-row["budget"], kinds.index(row["kind"]), order[row["policy"]]))
    return likelihoods(cells)


def calibrated_variants() -> list[str]:
    """KL of each variant of `calibrated` as a share of `window`'s, the least first."""
    cells = results_of("calibrated_variants")
    kinds = [kind for kind in dict.fromkeys(row["kind"] for row in cells) if kind != "all"]
    lines = []
    for (texts, budget), own in grouped(cells, "texts", "budget"):
        window = {row["kind"]: row["kl"] for row in pick(own, policy="window")}
        found = []
        for row in pick(own, kind="all"):
            by_kind = {one["kind"]: one["kl"] for one in pick(own, policy=row["policy"])}
            shares = [by_kind[kind] / window[kind] for kind in kinds]
            found.append((sum(shares) / len(shares), shares, row))
        for mean, shares, row in sorted(found, key=lambda each: each[0]):
            variant = row["policy"].replace("|", "\\|")  # a bar would end the cell
            error = f"{row['delta_nll']:+.3f} ± {row['delta_nll_se']:.3f}"
            numbers = (f"{share:.2f}" for share in (mean, *shares))
            lines.append([f"{texts}, {budget}", row["n"], variant, *numbers, error])
    titles = ("texts, budget", "n", "variant", "KL / `window`'s", *kinds, "NLL less `window`'s")
    return table(titles, lines)


Tables = dict[str, Callable[[], list[str]]]
TABLES: Tables = {
    "summary": summary,
    "capacity": capacity,
    "capacity-families": capacity_families,
    "iteration-cost": lambda: filled(ITERATION_COST, results_of("iteration_cost")),
    "drafts": lambda: filled(DRAFTS, results_of("drafts")),
    "head-rounds": lambda: filled(HEAD_ROUNDS, results_of("head_sets", kind="round")),
    "head-servers": lambda: filled(HEAD_SERVERS, results_of("head_sets", kind="server")),
    "accuracy": accuracy,
    "accuracy-proportions": accuracy_proportions,
    "accuracy-large": accuracy_large,
    "likelihood": likelihood,
    "likelihood-targets": likelihood_targets,
    "calibrated-variants": calibrated_variants,
    "target-memory": target_memory,
    "gpu": gpu,
    "whole_pool": whole_pool,
    "predictor-gap": predictor_gap,
    "gap-by-ratio": gap_by_ratio,
    "families": families,
    "soaks-families": lambda: soaks("families"),
    "soaks-features": lambda: soaks("features"),
    "transfer": transfer,
    "wrong-traces": wrong_traces,
    "predictions": predictions,
    "policies": lambda: as_markdown().splitlines(),
    "models-served": models_served,
    "together": together,
    "models-refused": models_refused,
    "model-float32": lambda: shipped("float32"),
    "model-bfloat16": lambda: shipped("bfloat16"),
}
"""Every table that a document may show, by the name that its marker gives."""
MARKED = re.compile(r"^( *)<!-- generated: (\S+) -->\n(.*?)^ *<!-- end -->\n", re.MULTILINE | re.DOTALL)


def renewed(text: str, tables: Tables = TABLES) -> tuple[str, list[str]]:
    """Return a document with its tables written anew, and the names of those that differ.

    Raises:
        KeyError: a marker names no table.
    """
    differing = []

    def write(marked: re.Match) -> str:
        indent, name, before = marked.groups()
        lines = "".join(f"{indent}{line}\n" for line in tables[name]())
        if lines != before:
            differing.append(name)
        return f"{indent}<!-- generated: {name} -->\n{lines}{indent}<!-- end -->\n"

    return MARKED.sub(write, text), differing
