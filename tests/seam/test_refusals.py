"""What DynTS does not serve stops the start, each by a message with flag, value and remedy."""

import re
from argparse import Namespace

import pytest
from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.environ import envs
from sglang.srt.runtime_context import override_platform

from sglang_dynts.boot.model_kinds import REFUSED_KINDS
from sglang_dynts.boot.refusals import (
    ENVIRONMENT_REFUSALS,
    FLAG_REFUSALS,
    SPECULATIVE_ALGORITHMS,
    refuse_speculation,
    refuse_unsupported,
)

DYNTS = ("--attention-backend", "dynts")
ROWS = "it reads a request's row by token position, which a compaction changes; drop the flag"
OTHER_CACHE = "only the DynTS radix cache keeps compacted rows out of the prefix tree; drop the flag"
SHARE = "a rank holds only its share of a row; drop the flag"

# field, value, what stands behind "DynTS does not support"
FLAG_CASES = [
    ("pp_size", 2, "--pp-size 2: scores exist on the last pipeline rank alone; use --tp-size"),
    (
        "disaggregation_decode_enable_offload_kvcache",
        True,
        f"--disaggregation-decode-enable-offload-kvcache: {ROWS}",
    ),
    (
        "enable_pdmux",
        True,
        "--enable-pdmux: prefill and decode share no scheduling step there; drop the flag",
    ),
    (
        "dllm_algorithm",
        "LowConfidence",
        "--dllm-algorithm LowConfidence: diffusion decoding rewrites tokens in place; drop the flag",
    ),
    ("enable_streaming_session", True, f"--enable-streaming-session: {ROWS}"),
    ("enable_session_radix_cache", True, f"--enable-session-radix-cache: {ROWS}"),
    ("enable_return_routed_experts", True, f"--enable-return-routed-experts: {ROWS}"),
    ("enable_return_indexer_topk", True, f"--enable-return-indexer-topk: {ROWS}"),
    ("kv_canary", "log", f"--kv-canary log: {ROWS}"),
    (
        "enable_hisparse",
        True,
        "--enable-hisparse: two methods cannot both choose the tokens that stay; drop the flag",
    ),
    ("enable_lmcache", True, f"--enable-lmcache: {OTHER_CACHE}"),
    ("enable_flexkv", True, f"--enable-flexkv: {OTHER_CACHE}"),
    (
        "enable_unified_cache_external_linker",
        True,
        f"--enable-unified-cache-external-linker: {OTHER_CACHE}",
    ),
    (
        "enable_unified_memory",
        True,
        "--enable-unified-memory: slots move under the scores; drop the flag",
    ),
    (
        "enable_page_major_kv_layout",
        True,
        "--enable-page-major-kv-layout: it needs pages of several tokens; drop the flag",
    ),
    ("attn_cp_size", 2, f"--attn-cp-size 2: {SHARE}"),
    ("dcp_size", 2, f"--dcp-size 2: {SHARE}"),
    ("enable_prefill_cp", True, f"--enable-prefill-cp: {SHARE}"),
    (
        "enable_two_batch_overlap",
        True,
        "--enable-two-batch-overlap: it splits the batch that is scored; drop the flag",
    ),
    (
        "enable_layernorm_sp",
        True,
        "--enable-layernorm-sp: no rank sees every token's hidden state; drop the flag",
    ),
    (
        "enable_mis",
        True,
        "--enable-mis: multi-item scoring generates nothing to select from; drop the flag",
    ),
    (
        "prefill_only_disable_kv_cache",
        True,
        "--prefill-only-disable-kv-cache: there is no KV cache to select from; drop the flag",
    ),
    (
        "enable_nvidia_megakernel",
        True,
        "--enable-nvidia-megakernel: its fused step passes the scoring by; drop the flag",
    ),
    ("is_embedding", True, "--is-embedding: an embedding model does not think; drop the flag"),
    (
        "smg_grpc_mode",
        True,
        "--smg-grpc-mode: its replies have no place for what DynTS reports; serve over HTTP, or use the "
        "gRPC port beside it (--grpc-port)",
    ),
]

# As typed. The other flags are refused by SGLang itself on this model, or need a flag beside them.
AS_TYPED = [
    (["--pp-size", "2"], "--pp-size 2"),
    (["--smg-grpc-mode"], "--smg-grpc-mode"),
    (["--grpc-mode"], "--smg-grpc-mode"),
    (
        ["--disaggregation-mode", "decode", "--speculative-algorithm", "NGRAM"],
        "--speculative-algorithm NGRAM",
    ),
    (
        ["--disaggregation-mode", "prefill", "--enable-hierarchical-cache"],
        "--enable-hierarchical-cache",
    ),
    (
        ["--disaggregation-mode", "decode", "--disaggregation-decode-retraction-backup", "host_pool"],
        "--disaggregation-decode-retraction-backup host_pool",
    ),
    (
        ["--disaggregation-mode", "decode", "--disaggregation-decode-retraction-backup", "none"],
        "--disaggregation-decode-retraction-backup none",
    ),
    (
        ["--disaggregation-mode", "decode", "--disaggregation-decode-enable-radix-cache"],
        "--disaggregation-decode-enable-radix-cache",
    ),
    (["--enable-pdmux"], "--enable-pdmux"),
    (["--dllm-algorithm", "LowConfidence"], "--dllm-algorithm LowConfidence"),
    (["--enable-streaming-session"], "--enable-streaming-session"),
    (["--enable-session-radix-cache"], "--enable-session-radix-cache"),
    (["--enable-return-routed-experts"], "--enable-return-routed-experts"),
    (["--enable-return-indexer-topk"], "--enable-return-indexer-topk"),
    (["--kv-canary", "log"], "--kv-canary log"),
    (["--enable-hisparse"], "--enable-hisparse"),
    (
        ["--enable-hierarchical-cache", "--hicache-write-policy", "write_back"],
        "--hicache-write-policy write_back",
    ),
    (
        ["--enable-hierarchical-cache", "--hicache-storage-backend", "file"],
        "--hicache-storage-backend file",
    ),
    (
        ["--enable-hierarchical-cache", "--hicache-mem-layout", "page_head"],
        "--hicache-mem-layout page_head on a CPU",
    ),
    (
        ["--enable-hierarchical-cache", "--hicache-io-backend", "direct"],
        "--hicache-mem-layout page_first_direct on a CPU",
    ),
    (["--enable-lmcache"], "--enable-lmcache"),
    (["--enable-flexkv"], "--enable-flexkv"),
    (["--enable-unified-cache-external-linker"], "--enable-unified-cache-external-linker"),
    (["--enable-unified-memory"], "--enable-unified-memory"),
    (["--enable-page-major-kv-layout"], "--enable-page-major-kv-layout"),
    (["--tp-size", "2", "--attn-cp-size", "2"], "--attn-cp-size 2"),
    (["--dcp-size", "2"], "--dcp-size 2"),
    (["--enable-prefill-cp", "--cp-strategy", "zigzag"], "--enable-prefill-cp"),
    (["--enable-two-batch-overlap"], "--enable-two-batch-overlap"),
    (["--enable-nvidia-megakernel"], "--enable-nvidia-megakernel"),
    (["--is-embedding"], "--is-embedding"),
    (
        ["--tokenizer-worker-num", "2", "--api-key", "secret"],
        "--api-key with --tokenizer-worker-num 2",
    ),
    (
        ["--tokenizer-worker-num", "2", "--admin-api-key", "secret"],
        "--admin-api-key with --tokenizer-worker-num 2",
    ),
    (["--page-size", "16"], "--page-size 16"),
    (["--radix-cache-backend", "flexkv"], "--radix-cache-backend flexkv"),
    (["--decode-attention-backend", "flex_attention"], "--decode-attention-backend flex_attention"),
]


def architecture(name: str) -> Namespace:
    """What of a model's configuration says how it attends."""
    return Namespace(architectures=[name], index_topk=2048)


PLAIN_MODEL = Namespace(
    is_hybrid_swa=False,
    sliding_window_size=None,
    attention_chunk_size=None,
    hf_config=Namespace(architectures=["LlamaForCausalLM"]),
    attention_arch=AttentionArch.MHA,
    is_multimodal=False,
    model_is_mrope=False,
    is_encoder_decoder=False,
    is_generation=True,
)


@pytest.fixture(scope="module")
def cfg(view) -> Namespace:
    return view(*DYNTS)


@pytest.fixture(scope="module")
def model_config(resolve):
    from sglang.srt.arg_groups.overrides import model_config_of

    return model_config_of(resolve(*DYNTS))


def changed(cfg: Namespace, **fields) -> Namespace:
    return Namespace(**(vars(cfg) | fields))


def refuses(rest: str):
    return pytest.raises(ValueError, match=f"^{re.escape('DynTS does not support ' + rest)}$")


@pytest.mark.parametrize(
    ("algorithm", "why"),
    [
        ("DFLASH", "its draft keeps a cache of its own by position, which a compaction does not reach"),
        ("DSPARK", "its draft keeps a cache of its own by position, which a compaction does not reach"),
        ("FROZEN_KV_MTP", "its draft reads the target's K and V by position, which a compaction changes"),
        ("UNO", "its root is computed outside the window, at a position that a compaction changes"),
        ("MY_OWN", "it has not been tested yet"),
    ],
)
def test_other_ways_to_draft_are_refused_with_the_reason(cfg, model_config, algorithm, why):
    served = "use one of NGRAM, STANDALONE, EAGLE, EAGLE3, NEXTN"
    with refuses(f"--speculative-algorithm {algorithm}: {why}; {served}"):
        refuse_unsupported(changed(cfg, speculative_algorithm=algorithm), model_config)


BESIDE_DRAFTS = [
    (
        "enable_multi_layer_eagle",
        True,
        "--enable-multi-layer-eagle: each of its heads counts positions anew",
    ),
    (
        "speculative_adaptive",
        True,
        "--speculative-adaptive: the number of drafts bounds a step, and it would change",
    ),
    (
        "enable_mixed_chunk",
        True,
        "--enable-mixed-chunk: a mixed step takes lengths of before a compaction",
    ),
    (
        "speculative_draft_window_size",
        64,
        "--speculative-draft-window-size 64: it reads a request's row by token position, which a "
        "compaction changes",
    ),
    (
        "enable_watermark",
        True,
        "--enable-watermark: it marks drafts that a compaction does not let through",
    ),
    (
        "dynts_observe_queries",
        8,
        "--dynts-observe-queries 8: drafts that are rejected would be counted",
    ),
]


@pytest.mark.parametrize(("field", "value", "message"), BESIDE_DRAFTS)
def test_what_does_not_go_together_with_drafts_is_refused(cfg, model_config, field, value, message):
    drafting = {"speculative_algorithm": "EAGLE3", field: value}
    cfg = changed(cfg, **{"enable_hierarchical_cache": False} | drafting)
    with refuses(f"{message}; drop the flag, or --speculative-algorithm EAGLE3"):
        refuse_speculation(cfg)


def test_what_was_not_tested_beside_two_pools_is_refused(cfg, monkeypatch):
    monkeypatch.setattr("sglang_dynts.boot.model_kinds.mambaish_config", lambda _model: None)
    gpt_oss = {"is_hybrid_swa": True, "hf_config": architecture("GptOssForCausalLM")}
    with refuses(
        "--enable-hierarchical-cache: the model's sliding layers have a KV pool of their own; the two "
        "have not been tested together yet; drop the flag"
    ):
        refuse_unsupported(
            changed(cfg, enable_hierarchical_cache=True), Namespace(**(vars(PLAIN_MODEL) | gpt_oss))
        )


QWEN3_NEXT = Namespace(
    **(vars(PLAIN_MODEL) | {"hf_config": architecture("Qwen3NextForCausalLM")}),
)
SERVES_STATES = {"dynts_host_memory_gb": 0, "mamba_radix_cache_strategy": "extra_buffer"}
"""What the start of a server resolves for models with recurrent states."""

BESIDE_STATES = [
    (
        {"enable_hierarchical_cache": True},
        "--enable-hierarchical-cache: states on the host have not been tested yet; drop the flag, or "
        "serve the model without DynTS",
    ),
    (
        {"enable_int8_mamba_checkpoint": True},
        "--enable-int8-mamba-checkpoint: states of eight bits have not been tested yet; drop the flag, "
        "or serve the model without DynTS",
    ),
    (
        {"enable_linear_replayssm": True},
        "--enable-linear-replayssm: states that lag behind have not been tested yet; drop the flag, or "
        "serve the model without DynTS",
    ),
    (
        {"enable_linear_replayssm_spec": True},
        "--enable-linear-replayssm-spec: states that lag behind have not been tested yet; drop the flag, "
        "or serve the model without DynTS",
    ),
    (
        {"dynts_observe_queries": 8},
        "--dynts-observe-queries 8: attention beside states has not been tested yet; drop the flag, or "
        "serve the model without DynTS",
    ),
    *(
        (
            {"mamba_radix_cache_strategy": strategy},
            f"--mamba-radix-cache-strategy {strategy}, given or chosen by SGLang: it keeps no state of a "
            "question while its answer goes on; use --mamba-radix-cache-strategy extra_buffer, or "
            "--disable-radix-cache",
        )
        for strategy in ("no_buffer", "extra_buffer_lazy")
    ),
    (
        {"dynts_host_memory_gb": 2.5},
        "--dynts-host-memory-gb 2.5 with a model with recurrent states: when a request is retracted, its "
        "state is one token further than its copy; give 0, and retracted requests are computed again",
    ),
]


@pytest.mark.parametrize(
    ("fields", "message"), BESIDE_STATES, ids=[str(case[0]) for case in BESIDE_STATES]
)
def test_what_does_not_go_together_with_recurrent_states_is_refused(cfg, monkeypatch, fields, message):
    monkeypatch.setattr("sglang_dynts.boot.model_kinds.mambaish_config", lambda _model: object())
    with refuses(message):
        refuse_unsupported(changed(cfg, **SERVES_STATES | fields), QWEN3_NEXT)


def test_recurrent_states_are_served_with_what_the_start_resolves(cfg, monkeypatch):
    monkeypatch.setattr("sglang_dynts.boot.model_kinds.mambaish_config", lambda _model: object())
    refuse_unsupported(changed(cfg, **SERVES_STATES), QWEN3_NEXT)
    no_tree = {"disable_radix_cache": True, "mamba_radix_cache_strategy": "auto"}
    refuse_unsupported(changed(cfg, **SERVES_STATES | no_tree), QWEN3_NEXT)


def test_a_stream_of_its_own_for_drafts_plans_is_refused(cfg):
    with (
        envs.SGLANG_ENABLE_OVERLAP_PLAN_STREAM.override(True),
        refuses(
            "SGLANG_ENABLE_OVERLAP_PLAN_STREAM=1 with --speculative-algorithm EAGLE: positions are read "
            "there on a stream that no compaction waits for; unset it"
        ),
    ):
        refuse_speculation(changed(cfg, speculative_algorithm="EAGLE"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hicache_storage_backend": "file"},
            "--hicache-storage-backend file: prefixes in a storage have not been tested yet; drop the "
            "flag",
        ),
        (
            {"hicache_host_memory_mode": "buffer_only"},
            "--hicache-host-memory-mode buffer_only: it needs a storage behind the host; drop the flag",
        ),
        (
            {"hicache_write_policy": "write_back"},
            "--hicache-write-policy write_back: it has not been tested yet; use write_through or "
            "write_through_selective",
        ),
    ],
)
def test_prefixes_beyond_the_host_are_refused(cfg, model_config, changes, message):
    with refuses(message):
        refuse_unsupported(changed(cfg, enable_hierarchical_cache=True, **changes), model_config)


def test_prefixes_on_the_host_are_served(cfg, model_config):
    refuse_unsupported(changed(cfg, enable_hierarchical_cache=True), model_config)


@pytest.mark.parametrize("algorithm", SPECULATIVE_ALGORITHMS)
def test_drafts_are_served(cfg, model_config, algorithm):
    refuse_unsupported(changed(cfg, speculative_algorithm=algorithm), model_config)


def test_a_plain_server_is_not_refused(cfg, model_config):
    refuse_unsupported(cfg, model_config)


def test_every_refused_flag_has_a_case():
    assert [field for field, _, _ in FLAG_CASES] == [refusal.field for refusal in FLAG_REFUSALS]


@pytest.mark.parametrize(("field", "value", "rest"), FLAG_CASES, ids=[case[0] for case in FLAG_CASES])
def test_a_flag_is_refused_with_its_reason_and_remedy(cfg, model_config, field, value, rest):
    with refuses(rest):
        refuse_unsupported(changed(cfg, **{field: value}), model_config)


@pytest.mark.parametrize(("flags", "named"), AS_TYPED, ids=[" ".join(case[0]) for case in AS_TYPED])
def test_sglangs_own_resolution_stops_at_what_we_refuse(resolve, flags, named):
    start = re.escape(f"DynTS does not support {named}")
    with pytest.raises(ValueError, match=f"^{start}[:;] "):
        resolve(*DYNTS, *flags)


@pytest.mark.parametrize(
    "flags",
    [
        ["--tp-size", "2"],
        ["--dp-size", "2"],
        ["--tp-size", "2", "--attn-dp-size", "2"],
        ["--tp-size", "2", "--dp-size", "2", "--enable-dp-attention"],
        ["--disable-radix-cache"],
        ["--disable-overlap-schedule"],
        ["--enable-mixed-chunk", "--chunked-prefill-size", "64"],
        ["--kv-cache-dtype", "fp8_e4m3"],
        ["--strip-thinking-cache"],
        ["--schedule-policy", "fcfs"],
        ["--enable-custom-logit-processor"],
        ["--reasoning-parser", "qwen3"],
    ],
    ids=" ".join,
)
def test_what_is_supported_is_not_refused(view, flags):
    assert view(*DYNTS, *flags).radix_cache_backend == "dynts"


@pytest.mark.parametrize("size", [2, 16, 64])
def test_pages_of_several_tokens_are_refused(cfg, model_config, size):
    with refuses(f"--page-size {size}: single tokens are freed; use --page-size 1"):
        refuse_unsupported(changed(cfg, page_size=size), model_config)


def test_another_radix_cache_is_refused(cfg, model_config):
    with refuses(f"--radix-cache-backend lmcache: {OTHER_CACHE}"):
        refuse_unsupported(changed(cfg, radix_cache_backend="lmcache"), model_config)


@pytest.mark.parametrize("dtype", ["nvfp4", "mxfp8", "fp4_mx_block16"])
def test_kv_dtypes_with_shared_scales_are_refused(cfg, model_config, dtype):
    with refuses(
        f"--kv-cache-dtype {dtype}: tokens share scale factors in blocks; use auto, bfloat16, "
        "fp8_e4m3 or fp8_e5m2"
    ):
        refuse_unsupported(changed(cfg, kv_cache_dtype=dtype), model_config)


@pytest.mark.parametrize(
    ("field", "flag"),
    [
        ("attention_backend", "--attention-backend"),
        ("prefill_attention_backend", "--prefill-attention-backend"),
        ("decode_attention_backend", "--decode-attention-backend"),
    ],
)
def test_kernels_that_do_not_read_rows_are_refused(cfg, model_config, field, flag):
    with refuses(
        f"{flag} trtllm_mha; use --attention-backend dynts, or --enable-dynts with one of "
        "flashinfer, fa3, triton, torch_native"
    ):
        refuse_unsupported(changed(cfg, **{field: "trtllm_mha"}), model_config)


@pytest.mark.parametrize("fact", ["is_hip", "is_npu"])
def test_platforms_without_a_fence_are_refused(cfg, model_config, fact):
    with (
        override_platform(**{fact: True}),
        refuses(
            "--device of an AMD or Ascend machine: overlap scheduling gives no fence for a "
            "compaction there; use CUDA or a CPU"
        ),
    ):
        refuse_unsupported(cfg, model_config)


@pytest.mark.parametrize(
    ("variable", "why"),
    [
        (
            "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING",
            "the KV pool grows after the scores are allocated",
        ),
        ("SGLANG_RUST_SERVER", "it checks no request and reports no DynTS numbers"),
    ],
)
def test_environment_switches_are_refused(cfg, model_config, variable, why):
    assert (variable, why) in ENVIRONMENT_REFUSALS
    with getattr(envs, variable).override(True), refuses(f"{variable}=1: {why}; unset it"):
        refuse_unsupported(cfg, model_config)


# facts of a model that is of this kind
MODEL_CASES = [
    ("attention that chooses its tokens itself", {"hf_config": architecture("GlmMoeDsaForCausalLM")}),
    ("attention that chooses its tokens itself", {"hf_config": architecture("DeepseekV32ForCausalLM")}),
    ("attention that chooses its tokens itself", {"hf_config": architecture("DeepseekV4ForCausalLM")}),
    (
        "attention that chooses its tokens itself",
        {"hf_config": architecture("MiniMaxM3SparseForCausalLM")},
    ),
    (
        "sliding layers in a KV pool of their own",
        {"is_hybrid_swa": True, "hf_config": architecture("Step3p7ForConditionalGeneration")},
    ),
    ("chunked local attention", {"attention_chunk_size": 8192}),
    ("recurrent states of another kind than the gated delta rule", {"mamba": True}),
    ("an encoder", {"is_encoder_decoder": True}),
    ("no text generation", {"is_generation": False}),
]


def test_every_refused_kind_of_model_has_a_case():
    assert {kind for kind, _ in MODEL_CASES} == {refused.kind for refused in REFUSED_KINDS}


@pytest.mark.parametrize(("kind", "facts"), MODEL_CASES, ids=[str(case[1]) for case in MODEL_CASES])
def test_a_kind_of_model_is_refused_by_name(cfg, monkeypatch, kind, facts):
    mamba = object() if facts.get("mamba") else None
    monkeypatch.setattr("sglang_dynts.boot.model_kinds.mambaish_config", lambda _model: mamba)
    start = f"DynTS does not support --model-path {cfg.model_path}: it is a model with {kind}: "
    with pytest.raises(ValueError, match=f"^{re.escape(start)}.+; serve it without DynTS$"):
        refuse_unsupported(cfg, Namespace(**(vars(PLAIN_MODEL) | facts)))


def qwen2(head_dim: int | None) -> Namespace:
    sizes = Namespace(
        model_type="qwen2",
        architectures=["Qwen2ForCausalLM"],
        hidden_size=128,
        num_attention_heads=4,
        head_dim=head_dim,
    )
    return Namespace(**(vars(PLAIN_MODEL) | {"hf_config": sizes}))


def test_heads_of_their_own_size_are_refused_where_sglang_does_not_read_it(cfg, monkeypatch):
    monkeypatch.setattr("sglang_dynts.boot.model_kinds.mambaish_config", lambda _model: None)
    with refuses(
        f"--model-path {cfg.model_path} on a CPU: SGLang 0.5.23 takes hidden_size / "
        "num_attention_heads = 32 as the head size there, but config.json says head_dim 64; use a GPU"
    ):
        refuse_unsupported(cfg, qwen2(64))
    for head_dim in (None, 32):
        refuse_unsupported(cfg, qwen2(head_dim))
    refuse_unsupported(changed(cfg, device="cuda"), qwen2(64))


def test_a_mimo_is_refused_where_sglang_would_not_read_its_rotations(cfg, monkeypatch):
    monkeypatch.setattr("sglang_dynts.boot.model_kinds.mambaish_config", lambda _model: None)
    foreign, own = architecture("MiMoV2FlashForCausalLM"), architecture("MiMoV2FlashForCausalLM")
    foreign.rope_parameters = {"full_attention": {}, "sliding_attention": {}}
    facts = vars(PLAIN_MODEL) | {"is_hybrid_swa": True}
    with refuses(
        f"--model-path {cfg.model_path} as transformers reads it: SGLang 0.5.23 does not know rotations "
        "named by kind of layer; give --trust-remote-code, and the class in the model's folder is taken"
    ):
        refuse_unsupported(cfg, Namespace(**(facts | {"hf_config": foreign})))
    refuse_unsupported(cfg, Namespace(**(facts | {"hf_config": own})))


def test_a_window_that_only_the_configuration_names_refuses_nothing(cfg, monkeypatch):
    monkeypatch.setattr("sglang_dynts.boot.model_kinds.mambaish_config", lambda _model: None)
    refuse_unsupported(cfg, Namespace(**(vars(PLAIN_MODEL) | {"sliding_window_size": 4096})))


def test_a_plain_model_is_none_of_these(cfg, monkeypatch):
    monkeypatch.setattr("sglang_dynts.boot.model_kinds.mambaish_config", lambda _model: None)
    refuse_unsupported(cfg, PLAIN_MODEL)
    for served in (
        {"attention_arch": AttentionArch.MLA},
        {"is_multimodal": True, "model_is_mrope": True},
        {"is_hybrid_swa": True, "hf_config": architecture("GptOssForCausalLM")},
        {"is_hybrid_swa": True, "hf_config": architecture("Step3p5ForCausalLM")},
    ):
        refuse_unsupported(cfg, Namespace(**(vars(PLAIN_MODEL) | served)))


def test_nothing_is_refused_of_a_server_without_dynts(view):
    cfg = view("--attention-backend", "torch_native", "--page-size", "16", "--enable-streaming-session")
    assert (cfg.enable_dynts, cfg.page_size) == (False, 16)
