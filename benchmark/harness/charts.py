"""Charts of the results, as PNG files."""

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from benchmark.harness.grading import PAPERS_TARGET
from sgl_dynts.policies import FULL, policies

COLORS = {"stock": "#8a8d91", "dynts": "#d1495b"}
NAMES = {"stock": "stock SGLang", "dynts": "DynTS"}
TARGETS = {
    "naive": ("every attention matrix", COLORS["stock"]),
    "answer": ("answer target", COLORS["dynts"]),
    "future": ("future target", "#30638e"),
    "gradient": ("gradient target", "#edae49"),
}
PANELS = (
    ("running", "running requests"),
    ("held_tokens", "KV tokens held"),
    ("queue_len", "waiting requests"),
)
SWEEPS = (
    ("running", "running requests"),
    ("budget", "budget, KV tokens"),
    ("queue_len", "waiting requests"),
)


def draw_capacity(
    path: Path, result: dict[str, Any], stock: dict[str, Any], dynts: dict[str, Any]
) -> None:
    """Draw running requests, held KV tokens and the queue over virtual time, both sides.

    Args:
        path: of the PNG.
        result: the cell's object, for the title.
        stock: the stock side's measures.
        dynts: the DynTS side's measures.
    """
    sides = (("stock", stock), ("dynts", dynts))
    figure, axes = plt.subplots(3, 1, figsize=(9, 8), sharex=True, layout="constrained")
    for axis, (name, title) in zip(axes, PANELS, strict=True):
        for side, measures in sides:
            series = measures["series"]
            label = f"{NAMES[side]}: {measures['tokens_per_s']:,.0f} tokens/s"
            minutes = [second / 60 for second in series["seconds"]]
            axis.plot(minutes, series[name], color=COLORS[side], linewidth=1.2, label=label)
        tidy(axis, title)
    pools = {measures["pool_tokens"]: NAMES[side] for side, measures in sides}
    for tokens, name in pools.items():
        text = " the pool" if len(pools) == 1 else f" {name}'s pool"
        axes[1].axhline(tokens, color="black", linewidth=0.8, linestyle=":")
        axes[1].text(0, tokens, text, va="bottom", fontsize=9)
    axes[1].set_ylim(top=1.12 * max(pools))
    axes[0].legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)
    axes[2].set_xlabel("virtual minutes")
    figure.suptitle(
        f"{result['shape']} shape on {result['gpus']} H200 (simulated), "
        f"{result['output_len']:,} output tokens, load {load_text(result['load'])}",
        fontsize=12,
    )
    save(figure, path)


def load_text(load: str) -> str:
    """Return a load in words."""
    return load if load == "unlimited" else f"{load} requests/s"


def tidy(axis, title: str, form: str = "{:,.0f}") -> None:
    """Give a panel its title, a zero line and no frame."""
    axis.set_ylabel(title)
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: form.format(value)))
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure, path: Path) -> None:
    """Write a figure and forget it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_iteration_cost(path: Path, results: list[dict[str, Any]]) -> None:
    """Draw milliseconds per iteration, both sides, along each number that was swept.

    Args:
        path: of the PNG.
        results: objects of one run.
    """
    sweeps = [(name, title, sweep_of(results, name)) for name, title in SWEEPS]
    sweeps = [sweep for sweep in sweeps if len(sweep[2]) > 1] or sweeps[:1]
    size = (1.5 + 3.5 * len(sweeps), 3.8)
    figure, axes = plt.subplots(1, len(sweeps), figsize=size, layout="constrained", squeeze=False)
    for axis, (name, title, swept) in zip(axes[0], sweeps, strict=True):
        draw_bars(axis, name, swept)
        axis.set_xlabel(title)
    axes[0][0].legend(frameon=False)
    figure.suptitle("Host time per scheduler iteration, the forward left out", fontsize=12)
    save(figure, path)


def draw_bars(axis, name: str, swept: list[dict[str, Any]]) -> None:
    """Draw one sweep: two bars for each value, and what the hooks add by their own clock."""
    places = range(len(swept))
    for offset, side in ((-0.2, "stock"), (0.2, "dynts")):
        heights = [result[f"{side}_ms"] for result in swept]
        bars = [place + offset for place in places]
        axis.bar(bars, heights, width=0.38, color=COLORS[side], label=NAMES[side])
    for place, result in zip(places, swept, strict=True):
        top = max(result["stock_ms"], result["dynts_ms"])
        axis.text(
            place,
            top,
            f"hooks +{100 * (result['hooks_ratio'] - 1):.1f} %",
            ha="center",
            va="bottom",
            fontsize=9,
        )
    axis.set_xticks(list(places), [f"{result[name]:,}" for result in swept])
    axis.margins(y=0.12)
    tidy(axis, "host ms per iteration", "{:g}")


def sweep_of(results: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the most results that differ in one number alone, by that number."""
    others = [other for other, _ in SWEEPS if other != name]
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(tuple(result[other] for other in others), []).append(result)
    return sorted(max(groups.values(), key=len), key=lambda result: result[name])


MARKS = "osD^vP*X<"
OLD_NAME = "far_attention_max"
"""Of the target ``future``, in the header of the demo's predictor."""
LINE_STYLES = ("-", "--", "-.", ":")
PANELS_IN_A_ROW = 3
X_MARGIN = 0.06


def draw_accuracy(path: Path, results: list[dict[str, Any]]) -> None:
    """Draw the share answered right against the budget: a panel for each task, a line for each policy.

    Another model or seed has panels of its own. A policy that ran with several targets or proportions of
    its windows has a line for each, whose name says what tells it from that model's others. Bars are 95 %
    Wilson intervals; policies are shifted a little sideways so that bars stay apart. What choices were
    made on is left out.

    Args:
        path: of the PNG.
        results: the cells' objects.
    """
    judged = [result for result in results if result["split"] != "validation"] or results
    panels = sorted(
        {panel_of(result) for result in judged},
        key=lambda panel: (panel[1:], len(panel[0]), panel[0]),
    )
    columns = min(len(panels), PANELS_IN_A_ROW)
    rows = math.ceil(len(panels) / columns)
    size = (4.8 * columns, 4.4 * rows + 2)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    fractions = [cell["budget_fraction"] for cell in judged if cell["policy"] != "full"]
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes.flat, panels, strict=False):
        own = [result for result in judged if panel_of(result) == panel]
        draw_panel(axis, own, [result for result in judged if result["model"] == panel[1]])
        axis.set_xlim(min(fractions, default=0) - X_MARGIN, max(fractions, default=1) + X_MARGIN)
        axis.set_title(title_of(panel, panels, own[0]["n"]), fontsize=10)
    lines = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        lines |= dict(zip(labels, handles, strict=True))
    figure.legend(lines.values(), lines, frameon=False, loc="outside lower center", ncols=columns)
    save(figure, path)


def draw_panel(axis, cells: list[dict[str, Any]], of_model: list[dict[str, Any]]) -> None:
    """Draw the cells of one panel; those of its model's other panels decide how a line looks."""
    for full in of_policy(cells, "full"):
        axis.axhline(share(full), color="black", linewidth=0.9, linestyle=":", label="full cache")
    for policy in policies():
        draw_policy(axis, policy, of_policy(cells, policy), of_policy(of_model, policy))
    tidy(axis, "answered right, %", "{:g}")
    axis.set_ylim(-3, 104)
    axis.set_xticks(sorted({cell["budget_fraction"] for cell in cells if cell["policy"] != "full"}))
    axis.set_xlabel("budget, share of the trace's tokens")


def panel_of(cell: dict[str, Any]) -> tuple[str, str, int]:
    """Return task, model and seed of a cell, which have a panel together."""
    return cell["task"], cell["model"], cell["seed"]


def title_of(panel: tuple[str, str, int], panels: list[tuple[str, str, int]], n: int) -> str:
    """Return a panel's title: its task, and what else tells it from other panels."""
    task, model, seed = panel
    words = [task]
    if len({other for _, other, _ in panels}) > 1:
        words.append(model)
    if len({other for _, _, other in panels}) > 1:
        words.append(f"seed {seed}")
    return ", ".join([*words, f"n = {n}"])


def of_policy(cells: list[dict[str, Any]], policy: str) -> list[dict[str, Any]]:
    """Return the cells of one policy."""
    return [cell for cell in cells if cell["policy"] == policy]


def draw_policy(axis, policy: str, cells: list[dict[str, Any]], of_model: list[dict[str, Any]]) -> None:
    """Draw one policy, a line for each target and proportions, alike in all panels of its model."""
    if policy == FULL:  # a line of its own across the panel
        return
    variants = sorted({variant_of(cell) for cell in of_model}, reverse=True)
    for number, variant in enumerate(variants):
        own = [cell for cell in cells if variant_of(cell) == variant]
        if own:
            label = ", ".join([policy, *differences(variant, variants)])
            draw_line(axis, policy, label, LINE_STYLES[number % len(LINE_STYLES)], own)


def differences(variant: tuple[str, float, float], variants: list[tuple[str, float, float]]) -> list[str]:
    """Say what tells a policy's variant from its others."""
    target, local_share, keep_ratio = variant
    words = []
    if len({other for other, *_ in variants}) > 1:
        words.append(f"target {target}")
    if len({tuple(other) for _, *other in variants}) > 1:
        words.append(f"local window {local_share:.2f}, keep {keep_ratio:g}")
    return words


def draw_line(axis, policy: str, label: str, style: str, cells: list[dict[str, Any]]) -> None:
    """Draw one line with its intervals, in its policy's color and with its mark."""
    number = list(policies()).index(policy)
    cells = sorted(cells, key=lambda cell: cell["budget_fraction"])
    places = [cell["budget_fraction"] + 0.003 * (number - 4) for cell in cells]
    shares = [share(cell) for cell in cells]
    below = [at - 100 * cell["wilson_low"] for at, cell in zip(shares, cells, strict=True)]
    above = [100 * cell["wilson_high"] - at for at, cell in zip(shares, cells, strict=True)]
    axis.errorbar(
        places,
        shares,
        yerr=[below, above],
        color=policies()[policy].color,
        marker=MARKS[number % len(MARKS)],
        markerfacecolor="white" if cells[0]["target"] == PAPERS_TARGET else None,
        markersize=5,
        linestyle=style,
        linewidth=1.2,
        capsize=2,
        label=label,
    )


def variant_of(cell: dict[str, Any]) -> tuple[str, float, float]:
    """Return the predictor's target, the local window's share of the budget, and the keep ratio."""
    target = (cell["target"] or "").replace(OLD_NAME, "future")
    return target, cell["local_share"], cell["keep_ratio"]


def share(cell: dict[str, Any]) -> float:
    """Return the percentage answered right."""
    return 100 * cell["correct"] / cell["n"]


def draw_target_memory(path: Path, results: list[dict[str, Any]]) -> None:
    """Draw peak memory over trace length, one line per target, both axes logarithmic.

    Args:
        path: of the PNG.
        results: objects of one model; those not run are marked at their estimate.
    """
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for target, (label, color) in TARGETS.items():
        points = sorted(
            (result["seq_len"], result["added_mib"])
            for result in results
            if result["target"] == target and "added_mib" in result
        )
        if points:
            axis.plot(*zip(*points, strict=True), color=color, marker="o", linewidth=1.4, label=label)
    missing = [(r["seq_len"], r["estimated_gib"] * 1024) for r in results if "not_run" in r]
    if missing:
        style = {"color": TARGETS["naive"][1], "marker": "x", "label": "not run: estimate"}
        axis.scatter(*zip(*missing, strict=True), **style)
    axis.set_yscale("log")
    axis.set_xscale("log", base=2)
    axis.set_ylabel("MiB beyond model and libraries, peak")
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    lengths = sorted({result["seq_len"] for result in results})
    axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axis.set_xlabel("tokens of the trace")
    axis.legend(frameon=False)
    shape = f"{results[0]['num_layers']} layers, {results[0]['num_heads']} heads"
    figure.suptitle(f"Memory to compute a training target ({shape}, float32)", fontsize=12)
    save(figure, path)


def draw_likelihood(path: Path, results: list[dict[str, Any]]) -> None:
    """Draw KL against the budget, a panel for each kind of text and a line for each policy.

    Args:
        path: of the PNG.
        results: the cells' objects, of one model and one set of texts.
    """
    dropping = [cell for cell in results if cell["policy"] != FULL]
    kinds = list(dict.fromkeys(cell["kind"] for cell in dropping))
    columns = min(len(kinds), PANELS_IN_A_ROW)
    rows = math.ceil(len(kinds) / columns)
    size = (4.2 * columns, 3.6 * rows + 1)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[len(kinds) :]:
        axis.set_axis_off()
    for axis, kind in zip(axes.flat, kinds, strict=False):
        own = [cell for cell in dropping if cell["kind"] == kind]
        draw_kls(axis, own)
        axis.set_title(f"{kind}, n = {own[0]['n']}", fontsize=10)
    lines = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        lines |= dict(zip(labels, handles, strict=True))
    figure.legend(lines.values(), lines, frameon=False, loc="outside lower center", ncols=4)
    figure.suptitle(f"What dropping costs in likelihood, {results[0]['model']}", fontsize=12)
    save(figure, path)


DASHES = ("-", "--", ":")


def draw_kls(axis, cells: list[dict[str, Any]]) -> None:
    """Draw one panel: KL of each policy by budget."""
    for number, (name, policy) in enumerate(policies().items()):
        own = of_policy(cells, name)
        for place, target in enumerate(dict.fromkeys(cell.get("target") for cell in own)):
            points = sorted((cell["budget"], cell["kl"]) for cell in own if cell.get("target") == target)
            style = {"color": policy.color, "marker": MARKS[number % len(MARKS)], "markersize": 5}
            label = f"{name}, {target}" if target else name
            dashes = DASHES[place % len(DASHES)]
            axis.plot(*zip(*points, strict=True), linewidth=1.2, linestyle=dashes, label=label, **style)
    tidy(axis, "KL to the full cache, nats per token", "{:.2f}")
    axis.set_xticks(sorted({cell["budget"] for cell in cells}))
    axis.set_xlabel("budget, KV tokens")
