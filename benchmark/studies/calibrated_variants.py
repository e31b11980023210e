"""Which form of the policy `calibrated` loses least likelihood: every variant under the same windows.

All choices together are judged by KL, on texts of the split `choice` of `benchmark.texts`.

    python -m benchmark.studies.calibrated_variants --model FOLDER --texts /tmp/choice \
        --calibration-text /tmp/choice/calibration.txt --budgets 200 --local-window 64 --tokens 345
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from benchmark.harness.provenance import RESULTS, keep, provenance
from benchmark.harness.tables import likelihoods
from benchmark.likelihood import (
    Measured,
    Served,
    in_turns,
    known_queries,
    measure,
    parse,
    read_texts,
    windows,
)
from sgl_dynts.config import DynTSConfig
from sgl_dynts.expected_attention import (
    HeldLayer,
    LayerQueries,
    expected_attention,
)
from sgl_dynts.policies import Calibrated, Candidates, LayerView, Policy, policies
from sgl_dynts.policies.calibrated import standing
from sgl_dynts.training.forced.reader import Reader

SETTINGS = ("model", "kind", "policy", "budget", "local_window", "keep_ratio", "tokens", "texts")
OUT = RESULTS / "calibrated_variants.json"


@dataclass(frozen=True)
class Variant(Calibrated):
    """The policy `calibrated` with other choices; see :data:`VARIANTS` for what each means."""

    name = "variant"
    color = "#000000"
    keeps = "what a variant of `calibrated` keeps"

    grams: tuple[torch.Tensor, ...] = ()
    """Of each layer [query_heads, head_dim, head_dim], W_o' W_o of each head."""
    rank: int | None = None
    """Of the covariance; 0 its diagonal, -1 none, None all of it."""
    heads: str = "mean"
    size: str = "value"
    """``value``: |v|; ``output``: |W_o v|; ``change``: |v - o|; ``output change``: |W_o (v - o)|."""
    each_position: bool = False
    """Whether positions to come are foreseen one by one, instead of by their mean rotation."""
    observed: float = 0.0
    newest_share: float = 0.0
    num_kept: int = 0

    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return [layers, kv_heads, n] float32."""
        views = candidates.views() if self.observed else [None] * len(self.queries)
        layers = zip(candidates.layers(), views, self.queries, range(len(self.queries)), strict=True)
        found = torch.stack([self._layer(*layer, candidates) for layer in layers])
        scores = found.clamp_min(1e-30).log() + self.newest * standing(found)
        num = found.shape[-1]
        first = num - round(self.newest_share * self.num_kept)
        return scores.masked_fill(torch.arange(num) >= first, 1e9)

    def _layer(
        self,
        layer: HeldLayer,
        view: LayerView | None,
        queries: LayerQueries,
        number: int,
        candidates: Candidates,
    ) -> torch.Tensor:
        attention = self._attention(layer, queries, candidates.newest)
        if view is not None:
            attention = attention + self.observed * view.attention().mean(2)
        taken = attention * self._size(layer, attention, number)
        if "change" in self.size:
            taken = taken / (1 - attention).clamp_min(1e-3)
        by_head = {
            "mean": taken.mean(1),
            "max": taken.amax(1),
            "square": taken.square().mean(1).sqrt(),
        }[self.heads]
        return by_head[:, candidates.places]

    def _attention(self, layer: HeldLayer, queries: LayerQueries, newest: int) -> torch.Tensor:
        """[kv_heads, group, held] float32."""
        groups = [(ahead,) for ahead in self.horizon] if self.each_position else [self.horizon]
        found = [
            expected_attention(
                layer.keys, queries.statistics, queries.rotation.ahead_of(newest, group), layer.scaling
            )
            for group in groups
        ]
        return torch.stack(found).mean(0)

    def _size(self, layer: HeldLayer, attention: torch.Tensor, number: int) -> torch.Tensor:
        values = layer.values.float().transpose(0, 1)[:, None]  # [kv_heads, 1, held, d]
        if "change" in self.size:
            values = values - attention[..., None, :] @ values
        if "output" not in self.size:
            return values.norm(dim=-1)
        gram = self.grams[number].view(len(attention), -1, *self.grams[number].shape[1:])
        return ((values @ gram) * values).sum(-1).clamp_min(0).sqrt()


def reduced(queries: LayerQueries, rank: int | None) -> LayerQueries:
    """Return statistics with a smaller covariance: of a rank, its diagonal for 0, none for -1."""
    if rank is None:
        return queries
    covariance = queries.statistics.covariance
    if rank <= 0:
        smaller = (rank + 1) * torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
    else:
        values, vectors = torch.linalg.eigh(covariance)
        most = vectors[..., -rank:]
        smaller = (most * values[..., None, -rank:]) @ most.transpose(-1, -2)
    return replace(queries, statistics=replace(queries.statistics, covariance=smaller))


def grams_of(reader: Reader) -> tuple[torch.Tensor, ...]:
    """Return W_o' W_o of every head of each layer, [query_heads, head_dim, head_dim]."""
    config = reader.model.config
    layers = []
    for layer in reader.model.model.layers:
        weight = layer.self_attn.o_proj.weight.detach()
        by_head = weight.view(len(weight), config.num_attention_heads, -1).transpose(0, 1)
        layers.append(by_head.transpose(1, 2) @ by_head)
    return tuple(layers)


FIRST: dict[str, dict] = {
    "as it began: all of the covariance, |v|, mean over heads, place 0.3": {},
    "place 0": {"newest": 0.0},
    "place 0.6": {"newest": 0.6},
    "covariance: diagonal": {"rank": 0},
    "covariance: none": {"rank": -1},
    "covariance: rank 8": {"rank": 8},
    "max over query heads": {"heads": "max"},
    "root of the mean square over query heads": {"heads": "square"},
    "|W_o v|": {"size": "output"},
    "a / (1 - a) |v - o|": {"size": "change"},
    "a / (1 - a) |W_o (v - o)|": {"size": "output change"},
    "each position by itself": {"each_position": True},
    "horizon to 64": {"horizon": (1, 4, 8, 16, 24, 32, 48, 64)},
    "with the newest queries' attention": {"observed": 1.0},
    "newest share 0.3, place 0": {"newest": 0.0, "newest_share": 0.3},
}
"""Of each variant what differs from the policy as it began."""
SECOND: dict[str, dict] = {}
ROUNDS: tuple[Mapping[str, dict], ...] = (FIRST, SECOND)


def variants(served: Served, config: DynTSConfig, question_len: int, number: int) -> dict[str, Policy]:
    """Return the variants of a round by name, `window` and SnapKV per head beside them."""
    facts = served.facts(config)
    others = {"window": policies()["window"].build(facts)}
    grams, num_kept = grams_of(served.reader), config.selection_len(question_len)
    made = {
        name: Variant(
            queries=tuple(reduced(one, fields.get("rank")) for one in served.queries),
            grams=grams,
            num_kept=num_kept,
            **fields,
        )
        for name, fields in ROUNDS[number].items()
    }
    return others | made


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and keep."""
    words = sys.argv[1:] if arguments is None else arguments
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--round", type=int, default=0, choices=range(len(ROUNDS)))
    number, rest = own.parse_known_args(words)
    args = parse([*rest, "--name", "choice", "--out", str(OUT)])
    torch.set_num_threads(args.threads)
    reader = Reader.load(args.model, args.observe_queries)
    served = Served(reader, known_queries(reader, args))
    groups = {one: variants(served, one, args.question_len, number.round) for one in windows(args)}
    measured = Measured()
    texts = in_turns(read_texts(args.texts, args.model, args.tokens, args.question_len))
    for count, text in enumerate(texts, 1):
        measure(served, text, groups, measured)
        print(f"{count} of {len(texts)}", file=sys.stderr, flush=True)
        if count % 4 == 0 or count == len(texts):
            for cell in show(args, measured, groups):
                keep(OUT, cell, SETTINGS)


def show(
    args: argparse.Namespace, measured: Measured, groups: dict[DynTSConfig, dict[str, Policy]]
) -> list[dict]:
    """Print what all texts together say, and return every cell."""
    source = provenance("no server")
    cells = [
        {"model": args.model.resolve().name, "tokens": args.tokens, "texts": args.name}
        | {"policy": name, **config.given()}
        | row
        | source
        for config, group in groups.items()
        for name in group
        for row in measured.rows(config, name)
    ]
    print(*likelihoods([cell for cell in cells if cell["kind"] == "all"]), sep="\n", flush=True)
    return cells


if __name__ == "__main__":
    main()
