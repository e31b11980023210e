"""The shapes of gpt-oss, DeepSeek, Qwen3-Next and Qwen3.5: what is counted, and what follows from it."""

import json
from dataclasses import replace

import pytest
import torch
import transformers

from benchmark import predict
from benchmark.harness.families import FAMILIES
from benchmark.harness.shapes import read_shape, roofline_shape, shape_of
from benchmark.harness.tables import gain_of, ratios_of
from sgl_dynts.config import PAPER_CONFIG
from sgl_dynts.roofline import H200

CLASSES = {
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM"),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
    "qwen3_next": ("Qwen3NextConfig", "Qwen3NextForCausalLM"),
    "qwen3_5_text": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM"),
    "qwen3_5_moe_text": ("Qwen3_5MoeTextConfig", "Qwen3_5MoeForCausalLM"),
}
"""Hugging Face's, by ``model_type``."""


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_counted_as_hugging_faces_class_has_them(name):
    config = {key: value for key, value in FAMILIES[name].config.items() if key != "quantization_config"}
    made_by, model = CLASSES[config["model_type"]]
    with torch.device("meta"):
        made = getattr(transformers, model)(getattr(transformers, made_by)(**config))
    assert roofline_shape(name).num_parameters == sum(each.numel() for each in made.parameters())


@pytest.mark.parametrize(
    ("name", "token_bytes", "fixed_bytes", "gigabytes", "active"),
    [
        ("gpt-oss-20b", 12 * 2 * 8 * 64 * 2, 12 * 2 * 8 * 64 * 2 * 256, 13.75, 3.6),
        ("gpt-oss-120b", 18 * 2 * 8 * 64 * 2, 18 * 2 * 8 * 64 * 2 * 256, 65.2, 5.1),
        ("deepseek-r1", 61 * (512 + 64) * 2, 0, 84.1, 37 - 0.4),
        ("qwen3-next-80b", 12 * 2 * 1 * 256 * 2, 5 * 18 * (32 * 128 * 128 * 4 + 8192 * 3 * 2), 79.7, 3.6),
        ("qwen3.5-9b", 8 * 2 * 4 * 256 * 2, 5 * 24 * (32 * 128 * 128 * 4 + 8192 * 3 * 2), 17.9, 7.9),
        ("qwen3.5-35b", 10 * 2 * 2 * 256 * 2, 5 * 30 * (32 * 128 * 128 * 4 + 8192 * 3 * 2), 69.3, 2.9),
    ],
)
def test_bytes_of_each_family_on_one_gpu(name, token_bytes, fixed_bytes, gigabytes, active):
    shape = roofline_shape(name)
    assert (shape.kv_token_bytes, shape.fixed_bytes) == (token_bytes, fixed_bytes)
    assert shape.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=2e-3)
    assert shape.token_flops * shape.tp_size / 2e9 == pytest.approx(active, rel=0.02)


@pytest.mark.parametrize("name", set(FAMILIES) - {"gpt-oss-20b"})
def test_sizes_are_the_defaults_of_the_configuration_that_is_named_after_the_model(name):
    """Hugging Face's class says of each which model it stands for; of gpt-oss it is the larger."""
    fields = dict(FAMILIES[name].config)
    defaults = getattr(transformers, CLASSES[fields["model_type"]][0])()
    for field in ("quantization_config", "full_attention_interval", "layer_types"):
        fields.pop(field, None)
    assert fields == {field: getattr(defaults, field) for field in fields}
    every_fourth = ["linear_attention"] * 3 + ["full_attention"]
    pattern = FAMILIES[name].config.get("layer_types") or every_fourth * (defaults.num_hidden_layers // 4)
    assert getattr(defaults, "layer_types", pattern) == pattern


def test_the_smaller_gpt_oss_has_fewer_layers_and_experts_and_is_else_the_larger():
    small, large = (FAMILIES[f"gpt-oss-{size}"].config for size in ("20b", "120b"))
    own = {"num_hidden_layers", "layer_types", "num_local_experts"}
    assert {field for field in large if small[field] != large[field]} == own
    assert (small["num_hidden_layers"], small["num_local_experts"]) == (24, 32)


def test_a_request_that_is_mostly_state_leaves_less_to_gain():
    ratios = {}
    for states in (5, 1, 0):
        shape = replace(roofline_shape("qwen3-next-80b"), num_states=states)
        outlook = predict.Outlook(H200, shape, PAPER_CONFIG, 200, 16384)
        ratios[states] = outlook.fitting("dynts") / outlook.fitting("stock")
    assert ratios[5] < ratios[1] < ratios[0] == pytest.approx(8392 / 3660, rel=0.01)


def test_the_command_keeps_a_row_for_each_length_and_number_of_states(tmp_path, monkeypatch, capsys):
    out = tmp_path / "predict.json"
    line = f"predict --shape gpt-oss-20b qwen3.5-9b --output-len 16384 32768 --batch 32 --out {out}"
    monkeypatch.setattr("sys.argv", line.split())
    predict.main()
    rows = json.loads(out.read_text())
    assert [(row["shape"], row["states"], row["output_len"]) for row in rows] == [
        *(("gpt-oss-20b", 0, 16384), ("gpt-oss-20b", 0, 32768)),
        *(("qwen3.5-9b", 5, 16384), ("qwen3.5-9b", 5, 32768)),
        *(("qwen3.5-9b", 1, 16384), ("qwen3.5-9b", 1, 32768)),
    ]
    assert rows[0]["fitting_ratio"] == rows[0]["fitting"]["dynts"] / rows[0]["fitting"]["stock"]
    assert rows[0]["speedup_at_batch"].keys() == {"32"}
    assert rows[0]["device"].endswith("arithmetic: no GPU, no server")
    printed = capsys.readouterr().out
    assert (
        "qwen3.5-9b on 1 H200, 200 + 16384 tokens, recurrent states per request: 5; predicted" in printed
    )


def test_a_models_own_config_tells_its_kind(tmp_path):
    text = FAMILIES["qwen3.5-9b"].config
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_5", "text_config": text}))
    assert replace(read_shape(tmp_path), name="qwen3.5-9b") == roofline_shape("qwen3.5-9b")


def test_weights_that_are_packed_in_another_way_are_refused_by_name():
    config = FAMILIES["gpt-oss-20b"].config | {"quantization_config": {"quant_method": "awq"}}
    with pytest.raises(ValueError, match=r"quant_method 'awq' of small: .* known for mxfp4, fp8"):
        shape_of("small", config)


def test_a_kind_tells_the_gain_of_its_shapes_and_that_nobody_measured_it():
    kind = type("Kind", (), {"shapes": ("gpt-oss-20b",), "gain": "why"})
    assert gain_of(kind) == f"not measured; requests at once: gpt-oss-20b {ratios_of('gpt-oss-20b')}; why"
    assert gain_of(type("Kind", (), {"shapes": (), "gain": "why"})) == "why"
