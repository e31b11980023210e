"""What the predictor said when a token was born, and what can be expected of it now."""

from dataclasses import dataclass

import torch

from sgl_dynts.policies.base import LEAST, Candidates, standard
from sgl_dynts.policies.calibrated import Calibrated
from sgl_dynts.policies.registry import register


@register
@dataclass(frozen=True)
class Hybrid(Calibrated):
    """The predictor's score and the calibrated one, a set of tokens per KV head.

    z(log(E[a] |v|)) + weight * z(log predicted), where z has mean 0 and spread 1 over the candidates of a
    head that are no answers. Only a score from birth knows what will be read again much later; only one
    of the moment knows what each head reads now.
    """

    name = "hybrid"
    color = "#8e5572"
    keeps = "highest predicted scores, and what `calibrated` keeps"
    paper = ""
    differs = ""
    needs_predictor = True
    weight: float = 2.0

    def score(self, candidates: Candidates) -> torch.Tensor:
        """Return [layers, kv_heads, n] float32."""
        counts = candidates.scores != torch.inf
        expected = standard(self.expected(candidates).clamp_min(LEAST).log(), counts)
        predicted = candidates.predicted().masked_fill(~counts, 1.0).clamp_min(LEAST).log()
        return expected + self.weight * standard(predicted, counts)
