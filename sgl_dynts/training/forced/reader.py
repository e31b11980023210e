"""A Hugging Face model that reads given tokens over K and V that somebody else chooses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from sgl_dynts.expected_attention import (
    HORIZON,
    LayerQueries,
    QueryMoments,
    QueryStatistics,
    Rotation,
)
from sgl_dynts.policies import LayerView
from sgl_dynts.policies.calibrated import PERIOD_OF_HORIZON
from sgl_dynts.training.attention_rows import FULL_ATTENTION, Attended, recording_attention


@dataclass(frozen=True)
class Held:
    """What b requests of equal length hold; every tensor has an entry for each layer."""

    keys: list[torch.Tensor]
    """[b, kv_heads, held, head_dim], rotated."""
    values: list[torch.Tensor]
    """[b, kv_heads, held, head_dim]."""
    queries: list[torch.Tensor]
    """[b, query_heads, w, head_dim], rotated, of the newest w tokens, or of all that were read."""
    scaling: float = 1.0

    @property
    def length(self) -> int:
        """Tokens that each request holds."""
        return self.keys[0].shape[2] if self.keys else 0

    def first(self, length: int, copies: int = 1) -> "Held":
        """Return what was held when so many tokens were, nothing dropped since, several times over."""

        def part(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
            return [one[:, :, :length].expand(copies, -1, -1, -1) for one in tensors]

        return Held(part(self.keys), part(self.values), part(self.queries), self.scaling)

    def gather(self, places: torch.Tensor) -> "Held":
        """Return the tokens at places [b, layers, kv_heads, k] int64."""

        def part(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
            layers = zip(tensors, places.unbind(1), strict=True)
            return [
                one.gather(2, index[..., None].expand(-1, -1, -1, one.shape[-1])) for one, index in layers
            ]

        return replace(self, keys=part(self.keys), values=part(self.values))

    def view(self, request: int, layer: int, num_queries: int, *, newest: bool = False) -> LayerView:
        """Return what a request's newest queries see of a layer.

        Args:
            request: which of the b.
            layer: which.
            num_queries: at most so many, the newest.
            newest: whether the newest token counts; for a server it is in computation.
        """
        end = None if newest else -1
        keys = self.keys[layer][request].transpose(0, 1)[:end]
        queries = self.queries[layer][request].transpose(0, 1)[:end]
        return LayerView(queries[-num_queries:], keys, self.scaling)


class _Recorder:
    """Keeps every layer's queries of one forward."""

    def __init__(self) -> None:
        self.queries: list[torch.Tensor] = []
        self.scaling = 1.0

    def record(self, attended: Attended) -> None:
        """Take [b, heads, n, head_dim].

        Raises:
            ValueError: the attention has soft caps or sinks, which policies here do not compute.
        """
        if attended.softcap is not None or attended.sinks is not None:
            raise ValueError("attention with soft caps or sinks is not simulated; use another model")
        self.queries.append(attended.query)
        self.scaling = attended.scaling


def positions_for(num_tokens: int, budget: int) -> int:
    """Return how many positions' rotations are wanted for texts of so many tokens.

    The horizon grows with the period, which the budget bounds; so it reaches well beyond the text.
    """
    return num_tokens + max(HORIZON) * (1 + budget // PERIOD_OF_HORIZON)


class Reader:
    """A causal LM whose attention function is ours as long as it is used."""

    def __init__(self, model: PreTrainedModel, num_queries: int = 64) -> None:
        """Take a model that is loaded.

        Args:
            model: a causal LM in evaluation mode.
            num_queries: newest queries that are kept of each request.

        Raises:
            ValueError: some of its layers do not attend to everything.
        """
        self.model: Any = model
        self.num_queries = num_queries
        self.num_layers: int = self.model.config.num_hidden_layers
        self.num_kv_heads: int = self.model.config.num_key_value_heads
        kinds = set(getattr(self.model.config, "layer_types", None) or [FULL_ATTENTION])
        if kinds != {FULL_ATTENTION}:
            raise ValueError(
                f"{model.name_or_path}: only models whose layers all attend to everything are simulated, "
                f"and this one has {', '.join(sorted(kinds))}; use another model"
            )

    @classmethod
    def load(cls, folder: Path, num_queries: int = 64) -> "Reader":
        """Load a model in float32 on the CPU; arguments and errors as of a loaded one."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(cast(PreTrainedModel, model), num_queries)

    @torch.inference_mode()
    def read(
        self, tokens: Sequence[int], start: int, held: Held | None = None
    ) -> tuple[torch.Tensor, Held]:
        """Read tokens that stand at ``start`` and after it.

        Args:
            tokens: [n], the same for every request.
            start: sequence position of the first.
            held: what each request holds; None for one request that begins.

        Returns:
            [b, n, hidden_size] in the model's dtype, last hidden states after the final norm; and what is
            held then, with the queries of the tokens just read behind the newest earlier ones.
        """
        cache, recorder, batch = DynamicCache(), _Recorder(), 1
        if held is not None:
            batch = len(held.keys[0])
            for layer, pair in enumerate(zip(held.keys, held.values, strict=True)):
                cache.update(*pair, layer)
        positions = torch.arange(start, start + len(tokens))[None]
        with recording_attention(self.model, recorder):
            out = self.model.model(
                torch.tensor([list(tokens)]).expand(batch, -1),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        queries = recorder.queries
        if held is not None:
            older = (one[:, :, -self.num_queries - 1 :] for one in held.queries)
            queries = [torch.cat(pair, 2) for pair in zip(older, queries, strict=True)]
        layers: Any = cache.layers
        return out.last_hidden_state, Held(
            [one.keys for one in layers], [one.values for one in layers], queries, recorder.scaling
        )

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [..., vocab_size] float32."""
        return self.model.lm_head(hidden).float()

    def rotation(self, num_positions: int) -> Rotation:
        """Return how queries and keys are rotated, for so many positions."""
        rotary = self.model.model.rotary_emb
        cos, sin = rotary(torch.zeros(1), torch.arange(num_positions)[None])
        half = cos.shape[-1] // 2
        return Rotation(cos[0, :, :half].float(), sin[0, :, :half].float())

    def calibrate(self, tokens: Sequence[int], chunk: int = 1024) -> list[QueryStatistics]:
        """Return the statistics of every layer's queries over a text, read in parts.

        Args:
            tokens: of the text, at least two.
            chunk: tokens that are read together, each part from position 0.
        """
        rotation = self.rotation(chunk)
        moments: list[QueryMoments] = []
        for first in range(0, len(tokens), chunk):
            _, held = self.read(tokens[first : first + chunk], 0)
            moments = moments or [
                QueryMoments(one.shape[1], one.shape[3], rotation) for one in held.queries
            ]
            for one, queries in zip(moments, held.queries, strict=True):
                by_token = queries[0].transpose(0, 1)
                one.add(rotation.undo(by_token, torch.arange(len(by_token))))
        return [one.statistics() for one in moments]

    def layer_queries(
        self, statistics: Sequence[QueryStatistics], num_positions: int
    ) -> tuple[LayerQueries, ...]:
        """Return what a calibrated policy needs to know, for texts of so many positions."""
        rotation = self.rotation(num_positions)
        return tuple(LayerQueries(one, rotation) for one in statistics)
