"""How well a model foretells given texts when a policy holds part of each: NLL, KL and agreement.

No task is needed: any Hugging Face model folder and any plain text files do. The first tokens of a text
are the question, the rest is thinking that is forced. States are those under the shortened cache, and
compactions come as on a server with --dynts-disable-elastic. A token counts if it is computed after the
first compaction. KL is that of the full cache's distribution against the policy's; differences of NLL are
paired with `window`'s on the same text. A file's kind is its name up to the last dash.

    python -m benchmark.texts /tmp/texts --seed 1 --per-kind 12
    python -m benchmark.likelihood --model FOLDER --texts /tmp/texts \
        --calibration-text /tmp/texts/calibration.txt --policies window calibrated

The predictor is that of the model's folder, or --predictor names files; rows tell them apart by targets.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmark.harness.charts import draw_likelihood
from benchmark.harness.provenance import RESULTS, keep, parser_of, provenance
from benchmark.harness.tables import likelihoods
from sgl_dynts.calibration import CALIBRATION_FILE, load_calibration
from sgl_dynts.checkpoint import find_predictor_if_any, load_predictor
from sgl_dynts.config import DynTSConfig
from sgl_dynts.expected_attention import LayerQueries
from sgl_dynts.policies import FULL, PREDICTOR, ModelFacts, Policy, policies
from sgl_dynts.policies.hybrid import Hybrid
from sgl_dynts.predictor import ImportancePredictor
from sgl_dynts.training.forced.full_cache import FullCache, Text
from sgl_dynts.training.forced.measures import ALL_KINDS, TextMeans, kinds_of, likelihood, summarize
from sgl_dynts.training.forced.reader import Reader, positions_for

WINDOW = "window"
SETTINGS = (
    *("model", "kind", "policy", "budget", "local_window", "keep_ratio", "tokens", "question_len"),
    *("texts", "target"),
)
"""``target`` is what the policy's predictor was fitted to, None of policies without one."""
NOT_SIMULATED = (FULL, "sepllm", Hybrid.name)
"""The separators of a tokenizer are not asked for, and scores do not move with a head's tokens."""
DEFAULT_POLICIES = (
    *("window", "random", "random_per_head", "streaming", "snapkv", "snapkv_per_head"),
    *("rkv", "rkv_per_head", "h2o", "h2o_per_head", "calibrated", "triattention_per_head"),
)


@dataclass(frozen=True)
class Served:
    """A model with all that its policies need to know of it."""

    reader: Reader
    queries: tuple[LayerQueries, ...]
    predictors: Mapping[str, ImportancePredictor] = field(default_factory=dict)
    """By what they were fitted to."""

    def facts(self, config: DynTSConfig) -> ModelFacts:
        """Return what a server would tell its policies with these windows."""
        return ModelFacts(
            num_layers=self.reader.num_layers,
            num_kv_heads=self.reader.num_kv_heads,
            queries=self.queries,
            period=config.period,
        )

    def parts(
        self, full: FullCache, group: Mapping[str, Policy]
    ) -> Iterator[tuple[FullCache, dict[str, Policy]]]:
        """Yield policies that read one text together: all without a predictor, then one for each."""
        others = {name: policy for name, policy in group.items() if target_of(name) is None}
        yield full, others
        for name in (name for name in group if name not in others):
            predictor = self.predictors[name.removeprefix(FITTED)]
            yield full.judged_by(predictor), {name: group[name]}


FITTED = f"{PREDICTOR} fitted to "
"""Begins the name by which the policy of one of several predictors is known here."""


def target_of(name: str) -> str | None:
    """Return what a policy's predictor was fitted to, None of a policy without one."""
    return name.removeprefix(FITTED) if name.startswith(FITTED) else None


Cell = tuple[str, DynTSConfig]
"""A policy's name and its windows."""


@dataclass
class Measured:
    """What was measured so far."""

    texts: list[Text] = field(default_factory=list)
    full: dict[DynTSConfig, list[TextMeans]] = field(default_factory=dict)
    cells: dict[Cell, list[TextMeans]] = field(default_factory=dict)

    def rows(self, config: DynTSConfig, name: str) -> Iterable[dict[str, Any]]:
        """Yield a policy's measures, for each kind and for all together."""
        own, window = self._of(name, config), self.cells[WINDOW, config]
        for kind in kinds_of(text.kind for text in self.texts):
            some = [i for i, text in enumerate(self.texts) if kind in (text.kind, ALL_KINDS)]
            yield {"kind": kind, **summarize([own[i] for i in some], [window[i] for i in some])}

    def _of(self, name: str, config: DynTSConfig) -> list[TextMeans]:
        return self.full[config] if name == FULL else self.cells[name, config]


@torch.inference_mode()
def measure(
    served: Served,
    text: Text,
    groups: dict[DynTSConfig, dict[str, Policy]],
    measured: Measured,
) -> None:
    """Read a text with the full cache and under every policy and windows, and note what came of it.

    Raises:
        ValueError: the text ends before the first compaction.
    """
    full = FullCache(served.reader, text)
    starts = {config: full.first_after(config) for config in groups}
    first = min(starts.values())
    if max(starts.values()) >= len(text.tokens) - 1:
        raise ValueError(
            f"a text of {len(text.tokens)} tokens ends before the first compaction, at "
            f"{max(starts.values())}: raise --tokens or lower --budgets"
        )
    wanted = served.reader.logits(full.hidden[first:])
    for config, group in groups.items():
        own = wanted[starts[config] - first :]
        targets = torch.tensor(text.tokens[starts[config] + 1 :])
        measured.full.setdefault(config, []).append(likelihood(own, own, targets).means())
        for judged, part in served.parts(full, group):
            states = judged.read_under(part, config)
            assert states is not None
            for name, hidden in zip(part, states, strict=True):
                found = likelihood(served.reader.logits(hidden), own, targets)
                measured.cells.setdefault((name, config), []).append(found.means())
    measured.texts.append(text)


def read_texts(paths: Sequence[Path], folder: Path, num_tokens: int, question_len: int) -> list[Text]:
    """Read files as tokens of a model, of a folder those that have a kind and a number.

    Raises:
        ValueError: there is none, or a text has too few tokens.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    files = [
        file for path in paths for file in (sorted(path.glob("*-*.txt")) if path.is_dir() else [path])
    ]
    if not files:
        raise ValueError(f"--texts {' '.join(map(str, paths))}: no file is called KIND-NUMBER.txt")
    texts = []
    for path in files:
        tokens = tokenizer(path.read_text(encoding="utf-8"), verbose=False).input_ids
        if len(tokens) < num_tokens:
            raise ValueError(f"{path} has {len(tokens)} tokens, fewer than --tokens {num_tokens}")
        texts.append(Text(tokens[:num_tokens], question_len, path.stem.rpartition("-")[0] or path.stem))
    return texts


def prepare(args: argparse.Namespace) -> Served:
    """Load the model, and what its policies need.

    Raises:
        ValueError: something they need is not there; says what to give.
    """
    reader = Reader.load(args.model, args.observe_queries)
    queries = ()
    if any(policies()[name].needs_calibration for name in args.policies):
        queries = known_queries(reader, args)
    return Served(reader, queries, known_predictors(args) if PREDICTOR in args.policies else {})


def known_predictors(args: argparse.Namespace) -> dict[str, ImportancePredictor]:
    """Return the predictors that were named, or the model's own, by what they were fitted to.

    Raises:
        ValueError: there is none, or two were fitted to the same.
    """
    found = {}
    for named in args.predictor or (None,):
        source = find_predictor_if_any(args.model, named)
        if source is None:
            raise ValueError(
                f"--policies {PREDICTOR}: {args.model} has none; leave it out or give --predictor FILE"
            )
        if source.header.target in found:
            raise ValueError(
                f"--predictor {named}: another was fitted to {source.header.target}, too; rows tell them "
                "apart by that, so measure one after the other with another --name"
            )
        found[source.header.target] = load_predictor(source).float()
    return found


def known_queries(reader: Reader, args: argparse.Namespace) -> tuple[LayerQueries, ...]:
    """Return the statistics of queries, from a file or from a text.

    Raises:
        ValueError: there is neither.
    """
    positions = positions_for(args.tokens, max(args.budgets))
    path = args.calibration or args.model / CALIBRATION_FILE
    if args.calibration_text is None:
        if not path.exists():
            raise ValueError(f"no {path}: give --calibration-text FILE or --calibration FILE")
        return reader.layer_queries(load_calibration(path).layers, positions)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    text = args.calibration_text.read_text(encoding="utf-8")
    tokens = tokenizer(text, verbose=False).input_ids[: args.calibration_tokens]
    return reader.layer_queries(reader.calibrate(tokens), positions)


def windows(args: argparse.Namespace) -> list[DynTSConfig]:
    """Return the windows that were asked for: the n-th budget has the n-th local window.

    Raises:
        ValueError: they do not fit together.
    """
    if len(args.local_window) not in (1, len(args.budgets)):
        raise ValueError("--local-window: give one, or one for each of --budgets")
    locals_ = args.local_window * (len(args.budgets) if len(args.local_window) == 1 else 1)
    return [
        DynTSConfig(budget, local, args.keep_ratio)
        for budget, local in zip(args.budgets, locals_, strict=True)
    ]


def policies_of(served: Served, names: Sequence[str], config: DynTSConfig) -> dict[str, Policy]:
    """Return policies by name, `window` always among them: the others are compared with it."""
    facts, found = served.facts(config), {}
    for name in dict.fromkeys((WINDOW, *names)):
        known = [FITTED + target for target in served.predictors] if name == PREDICTOR else [name]
        found |= {one: policies()[name].build(facts) for one in known}
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and keep."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    try:
        configs = windows(args)
        texts = in_turns(read_texts(args.texts, args.model, args.tokens, args.question_len))
        served = prepare(args)
        groups = {config: policies_of(served, args.policies, config) for config in configs}
        measured = Measured()
        for number, text in enumerate(texts, 1):
            began = time.monotonic()
            measure(served, text, groups, measured)
            keep_all(args, measured, groups)
            took = time.monotonic() - began
            print(f"{number} of {len(texts)}: {text.kind}, {took:.0f} s", file=sys.stderr, flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(*likelihoods(keep_all(args, measured, groups)), sep="\n", flush=True)
    kept = json.loads(args.out.read_text())
    own = [cell for cell in kept if cell["texts"] == args.name]
    draw_likelihood(args.out.with_suffix(".png"), own)


def in_turns(texts: Sequence[Text]) -> list[Text]:
    """Return texts so that every kind comes early, for what a run that is ended has measured counts."""
    seen: Counter[str] = Counter()
    turns = []
    for text in texts:
        seen[text.kind] += 1
        turns.append(seen[text.kind])
    return [text for _, text in sorted(zip(turns, texts, strict=True), key=lambda pair: pair[0])]


def keep_all(
    args: argparse.Namespace, measured: Measured, groups: dict[DynTSConfig, dict[str, Policy]]
) -> list[dict[str, Any]]:
    """Keep every cell as far as it is measured, and return them."""
    settings = provenance("no server") | {
        "model": args.model.resolve().name,
        "tokens": args.tokens,
        "question_len": args.question_len,
        "texts": args.name,
    }
    cells = [
        settings
        | {"policy": PREDICTOR if target_of(name) else name, "target": target_of(name)}
        | {**config.given(), **row}
        for config, group in groups.items()
        for name in (FULL, *group)
        for row in measured.rows(config, name)
    ]
    for cell in cells:
        keep(args.out, cell, SETTINGS)
    return cells


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("likelihood", __doc__)
    add = parser.add_argument
    judged = [name for name in policies() if name not in NOT_SIMULATED]
    add("--model", type=Path, required=True, help="folder of a Hugging Face model")
    add("--texts", nargs="+", type=Path, required=True, help="files, or folders of them")
    add("--name", default="report", help="of this set of texts; kept with the results")
    add("--policies", nargs="+", default=list(DEFAULT_POLICIES), choices=judged)
    add("--budgets", nargs="+", type=int, default=[300, 200])
    add("--local-window", nargs="+", type=int, default=[100, 64], help="one for each budget")
    add("--keep-ratio", type=float, default=0.7)
    add("--tokens", type=int, default=758, help="of each text")
    add("--question-len", type=int, default=32, help="tokens at a text's start that are question")
    add("--observe-queries", type=int, default=64, help="newest queries that policies may read")
    add("--predictor", nargs="+", type=Path, help="files of predictors; default: the model folder's")
    add("--calibration", type=Path, help=f"statistics of queries; default: {CALIBRATION_FILE}")
    add("--calibration-text", type=Path, help="text to take statistics of queries from instead")
    add("--calibration-tokens", type=int, default=8192)
    add("--threads", type=int, default=1)
    add("--out", type=Path, default=RESULTS / "likelihood.json", help="a chart is put beside it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
