"""Step-3.5: transformers has its layers inside a model that sees; here they stand alone, with a head.

A folder is written in the words of its own files, which SGLang 0.5.23 reads.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig
from transformers.models.step3p7.modeling_step3p7 import Step3p7PreTrainedModel, Step3p7TextModel

STEP = "step3p5"
SEEN_MORE = 1
"""Tokens that SGLang 0.5.23 shows a sliding layer beside those of transformers."""
RENAMED = {
    r"mlp\.gate\.weight": "moe.gate.weight",
    r"mlp\.gate\.e_score_correction_bias": "moe.router_bias",
    r"mlp\.experts\.down_proj": "moe.down_proj.weight",
    r"mlp\.shared_experts\.": "share_expert.",
}
"""From transformers' names to those of the files."""
GATE_UP, GATE, UP = "mlp.experts.gate_up_proj", "moe.gate_proj.weight", "moe.up_proj.weight"


class StepForCausalLM(Step3p7PreTrainedModel):
    """Its layers and a head."""

    def __init__(self, config: Step3p7TextConfig) -> None:
        super().__init__(config)
        self.model = Step3p7TextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


def write_step(folder: Path, model: StepForCausalLM) -> None:
    """Write configuration and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_described(model.config)))
    weights = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(GATE_UP):
            gate, up = tensor.chunk(2, dim=1)
            weights[name.replace(GATE_UP, GATE)] = gate.contiguous()
            weights[name.replace(GATE_UP, UP)] = up.contiguous()
        else:
            weights[_renamed(name)] = tensor.contiguous()
    save_file(weights, folder / "model.safetensors")


def load_step(folder: Path) -> StepForCausalLM:
    """What :func:`write_step` wrote, float32, its sliding layers shown what SGLang shows them."""
    config = step_config(folder)
    model = StepForCausalLM(config).float()
    model.set_attn_implementation("eager")
    weights, found = load_file(folder / "model.safetensors"), {}
    for name in model.state_dict():
        parts = [name.replace(GATE_UP, part) for part in (GATE, UP)]
        whole = name.endswith(GATE_UP)
        found[name] = torch.cat([weights[one] for one in parts], 1) if whole else weights[_renamed(name)]
    model.load_state_dict(found)
    return model


def step_config(folder: Path) -> Step3p7TextConfig:
    """The configuration as transformers has it, though SGLang's class takes its place where imported."""
    config: Any = Step3p7TextConfig.from_pretrained(folder)
    config.sliding_window += SEEN_MORE
    return config


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return name


def _described(config: Any) -> dict:
    """A configuration in the words of Step-3.5's files."""
    of_type = [config.rope_parameters[kind] for kind in config.layer_types]
    sparse = [str(layer) for layer, kind in enumerate(config.mlp_layer_types) if kind == "sparse"]
    same = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("head_dim", "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id"),
        *("moe_intermediate_size", "moe_router_scaling_factor", "layer_types", "tie_word_embeddings"),
    )
    full = config.per_layer_config[config.layer_types.index("full_attention")]
    return {name: getattr(config, name) for name in same} | {
        "num_attention_heads": full.num_attention_heads,
        "architectures": ["Step3p5ForCausalLM"],
        "model_type": STEP,
        "num_attention_groups": config.num_key_value_heads,
        "attention_other_setting": {
            "num_attention_heads": config.num_sliding_attention_heads,
            "num_attention_groups": config.num_key_value_heads,
        },
        "sliding_window": config.sliding_window - SEEN_MORE,
        "moe_num_experts": config.n_routed_experts,
        "moe_top_k": config.num_experts_per_tok,
        "moe_layers_enum": ",".join(sparse),
        "share_expert_dim": config.share_expert_dim,
        "yarn_only_types": [],
        "rope_theta": [one["rope_theta"] for one in of_type],
        "partial_rotary_factors": [one["partial_rotary_factor"] for one in of_type],
        "swiglu_limits": [0.0] * config.num_hidden_layers,
        "swiglu_limits_shared": [0.0] * config.num_hidden_layers,
        "use_head_wise_attn_gate": True,
        "use_moe_router_bias": True,
        "need_fp32_gate": True,
    }
