"""What may be had together is what a start takes, and what is called run has a server in the tests."""

from pathlib import Path

import pytest

from benchmark.drafts import DRAFT_MODEL
from sglang_dynts.boot.together import (
    ATTENTION_RANKS,
    DECODE_SIDE,
    DRAFTS,
    FEATURES,
    HIERARCHY,
    LATENTS,
    MIXED_CHUNKS,
    NO_OVERLAP,
    NO_PREFIX_CACHE,
    QUERIES,
    REFUSED_LATER,
    SLIDING,
    STATES,
    TENSOR_PARALLEL,
    TWO_POOLS,
    WORKERS,
    Feature,
    is_refused,
    pair_of,
    pairs,
)
from tests.e2e.models import CONFIGS, WITH_TWO_POOLS, build_model, has_states, slides
from tests.e2e.servers import SERVERS, Spec

DYNTS = ("--attention-backend", "dynts")
FLAGS = {
    TENSOR_PARALLEL.name: ("--tp-size", "2"),
    ATTENTION_RANKS.name: ("--tp-size", "2", "--attn-dp-size", "2"),
    NO_OVERLAP.name: ("--disable-overlap-schedule",),
    MIXED_CHUNKS.name: ("--enable-mixed-chunk", "--chunked-prefill-size", "64"),
    NO_PREFIX_CACHE.name: ("--disable-radix-cache",),
    HIERARCHY.name: ("--enable-hierarchical-cache",),
    DRAFTS.name: ("--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", "6"),
    QUERIES.name: ("--dynts-observe-queries", "4", "--dynts-host-memory-gb", "0"),
    WORKERS.name: ("--tokenizer-worker-num", "2"),
    DECODE_SIDE.name: ("--disaggregation-mode", "decode"),
    STATES.name: ("--mamba-radix-cache-strategy", "extra_buffer"),
}
HEAD = ("--speculative-algorithm", "NEXTN", *DRAFT_MODEL)
KINDS = {
    SLIDING.name: "gemma2",
    TWO_POOLS.name: "gpt_oss",
    LATENTS.name: "deepseek_v3",
    STATES.name: "qwen3_next",
}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory, model):
    root = tmp_path_factory.mktemp("kinds")
    built: dict[str, Path] = {}

    def get(*features: Feature) -> Path:
        for one in features:
            if one.is_model:
                kind = KINDS[one.name]
                if kind not in built:
                    built[kind] = build_model(kind, root / kind)
                return built[kind]
        return model

    return get


@pytest.mark.parametrize(("a", "b"), pairs(), ids=lambda one: one.name.replace(" ", "_"))
def test_a_start_takes_what_the_table_takes(view, folder_of, a, b):
    if {a, b} in (
        {ATTENTION_RANKS, DRAFTS},
        {DRAFTS, DECODE_SIDE},
    ):  # served where the model's head drafts
        (other,) = {a, b} - {DRAFTS}
        resolved = view(*DYNTS, *FLAGS[other.name], *HEAD, folder=folder_of(LATENTS))
        assert other.sets.items() <= vars(resolved).items()
        with pytest.raises(ValueError, match=r"ngram|NGRAM"):
            view(*DYNTS, *FLAGS[other.name], *FLAGS[DRAFTS.name])
        return
    flags = [*FLAGS.get(a.name, ()), *FLAGS.get(b.name, ())]
    if {a, b} == {MIXED_CHUNKS, DRAFTS}:  # SGLang switches the first off where n-grams draft
        assert not view(*DYNTS, *flags).enable_mixed_chunk
    elif is_refused(a, b) and pair_of(a, b) not in REFUSED_LATER:
        with pytest.raises((ValueError, AssertionError)):
            view(*DYNTS, *flags, folder=folder_of(a, b))
    else:
        resolved = view(*DYNTS, *flags, folder=folder_of(a, b))
        told = {**a.sets, **b.sets}
        assert {name: getattr(resolved, name) for name in told} == told


def test_every_pair_that_is_served_has_a_server_in_the_tests():
    run = {pair_of(a, b) for spec in SERVERS.values() for a, b in pairs() if {a, b} <= features_of(spec)}
    served = {pair_of(a, b) for a, b in pairs() if not is_refused(a, b)}
    assert served - run == set()


def features_of(spec: Spec) -> set[Feature]:
    """What a shared server has, told by its flags and its kind of model."""
    first = {name: flags[0] for name, flags in FLAGS.items()}
    first[ATTENTION_RANKS.name] = "--enable-dp-attention"
    found = {one for one in FEATURES if not one.is_model and first[one.name] in spec.flags}
    if ATTENTION_RANKS in found and "4" not in spec.flags:  # two ranks that attend have no partner each
        found -= {TENSOR_PARALLEL}
    return found | kinds_of(spec.model)


def kinds_of(kind: str) -> set[Feature]:
    if kind not in CONFIGS:
        return set()
    config = CONFIGS[kind].get_text_config()
    if kind in WITH_TWO_POOLS:
        return {TWO_POOLS}
    if has_states(kind):
        return {STATES}
    if getattr(config, "kv_lora_rank", None):
        return {LATENTS}
    return {SLIDING} if slides(config) else set()
