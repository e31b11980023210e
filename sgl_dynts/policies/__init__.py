"""Who decides which thinking tokens survive: the predictor, and what it is compared with.

One file for each policy. They register themselves in the order of the list below, which is the order of
messages, charts and tables.
"""

from sgl_dynts.policies.attention import LayerView, received_from_newest
from sgl_dynts.policies.base import (
    Candidates,
    ModelFacts,
    Observing,
    Policy,
    ScoredOnce,
    Sets,
    rewrite_scores,
    scores_by_head,
)
from sgl_dynts.policies.registry import (
    as_markdown,
    build_policies,
    needing,
    policies,
    policy_names,
    register,
)

# The order counts.
# isort: off
from sgl_dynts.policies.predictor import Predicted
from sgl_dynts.policies.calibrated import Calibrated
from sgl_dynts.policies.hybrid import Hybrid
from sgl_dynts.policies.random import Random, RandomPerHead
from sgl_dynts.policies.window import Recent
from sgl_dynts.policies.streaming import Streaming
from sgl_dynts.policies.sepllm import Separators
from sgl_dynts.policies.bottom import Bottom
from sgl_dynts.policies.h2o import HeavyHitters, HeavyHittersPerHead
from sgl_dynts.policies.snapkv import SnapKV, SnapKVPerHead
from sgl_dynts.policies.rkv import RKV, RKVPerHead
from sgl_dynts.policies.triattention import TriAttentionPerHead
from sgl_dynts.policies.full import Full
# isort: on

PREDICTOR = Predicted.name
FULL = Full.name
"""The name of the policy that drops nothing."""
CALIBRATED = Calibrated.name
"""The policy of a model without a predictor."""

__all__ = [
    "CALIBRATED",
    "FULL",
    "PREDICTOR",
    "RKV",
    "Bottom",
    "Calibrated",
    "Candidates",
    "Full",
    "HeavyHitters",
    "HeavyHittersPerHead",
    "Hybrid",
    "LayerView",
    "ModelFacts",
    "Observing",
    "Policy",
    "Predicted",
    "RKVPerHead",
    "Random",
    "RandomPerHead",
    "Recent",
    "ScoredOnce",
    "Separators",
    "Sets",
    "SnapKV",
    "SnapKVPerHead",
    "Streaming",
    "TriAttentionPerHead",
    "as_markdown",
    "build_policies",
    "needing",
    "policies",
    "policy_names",
    "received_from_newest",
    "register",
    "rewrite_scores",
    "scores_by_head",
]
