"""What the newest tokens attend to."""

from dataclasses import dataclass

import torch

from sgl_dynts.policies.attention import LayerView
from sgl_dynts.policies.base import Observing, Sets
from sgl_dynts.policies.registry import register


@register
@dataclass(frozen=True)
class SnapKV(Observing):
    """SnapKV (arXiv 2404.14469): what an observation window attends to, pooled over neighbours.

    The paper compresses the prompt once; here generated tokens are judged at every compaction, and the
    observation window is the newest tokens, inside the local window.
    """

    name = "snapkv"
    color = "#3d7ea6"
    keeps = "attention of the newest queries, average-pooled"
    paper = "SnapKV, arXiv 2404.14469"
    differs = "judged at every compaction; heads and layers averaged"
    kernel: int = 5

    def score_layer(self, view: LayerView, chosen: slice) -> torch.Tensor:
        """Return attention summed over the window, the mean over heads, average-pooled."""
        pool = torch.nn.functional.avg_pool1d
        return pool(view.received()[None, chosen], self.kernel, 1, self.kernel // 2)[0]


@register
@dataclass(frozen=True)
class SnapKVPerHead(Observing):
    """SnapKV with a set of tokens in every KV head, as in its paper; else as `snapkv`."""

    name = "snapkv_per_head"
    color = "#5fa8d3"
    keeps = "attention of the newest queries, average-pooled"
    paper = "SnapKV, arXiv 2404.14469"
    differs = "judged at every compaction; the queries that share a KV head averaged"
    sets = Sets.PER_HEAD
    kernel: int = 5

    def score_layer(self, view: LayerView, chosen: slice) -> torch.Tensor:
        """Return [kv_heads, n], attention summed over the window, average-pooled."""
        pool = torch.nn.functional.avg_pool1d
        return pool(view.received_by_head()[:, chosen], self.kernel, 1, self.kernel // 2)
