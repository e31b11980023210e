"""The servers that tests share: each is started once in a session, while the one before it is in use."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmark.drafts import DRAFT_MODEL
from benchmark.forced.served import FLAGS as FORCING
from sgl_dynts.harness.server import LAUNCH_SERVER
from tests.e2e.hf_reference import NUM_QUERIES
from tests.e2e.models import (
    CHANGES_ITS_MIND,
    EAGLE3_HEAD,
    EAGLE_HEAD,
    MIMO_V2,
    SPELLER,
    UNTRAINED,
    WORDS_FILE,
)
from tests.e2e.server import RETRACTING, SGLANG_SERVE, Server, WarmServer
from tests.e2e.step_models import STEP
from tests.e2e.two_sides import WIRE
from tests.warm import Warm

DYNTS = ("--attention-backend", "dynts")
DEMO = "demo"
API_KEY = "secret"
DEMO_POOL = ("--max-total-tokens", str(4 * 690))
"""Holds four whole traces of the demo's model."""
QUEUE = ("--max-total-tokens", "900")
SMALL_POOL = ("--max-total-tokens", "700")
MIXED = ("--enable-mixed-chunk", "--chunked-prefill-size", "32")
CHUNKS = ("--chunked-prefill-size", "64")
STATES = ("--max-mamba-cache-size", "100", "--mamba-track-interval", "64")
"""Recurrent states: few, for the memory they take, and kept as often as can be."""
TRUSTING = ("--trust-remote-code",)
EXTRA_BUFFER = ("--mamba-radix-cache-strategy", "extra_buffer")
CALIBRATED = ("--dynts-calibration-text", "{model}/" + WORDS_FILE)
EXACT = "--dynts-disable-elastic"
"""Compact where the budget is reached and nowhere else."""
NGRAM = ("--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", "6")
STANDALONE = ("--speculative-algorithm", "STANDALONE", *DRAFT_MODEL)
EAGLE = ("--speculative-algorithm", "EAGLE", *DRAFT_MODEL)
EAGLE3 = ("--speculative-algorithm", "EAGLE3", *DRAFT_MODEL)
NEXTN = ("--speculative-algorithm", "NEXTN", *DRAFT_MODEL)
HIERARCHICAL = ("--enable-hierarchical-cache", "--hicache-ratio", "8", "--enable-cache-report")
ATTENTION_RANKS = ("--tp-size", "2", "--dp-size", "2", "--enable-dp-attention")
"""Each rank attends for its own requests; experts and dense layers are computed together."""
NO_OVERLAP = ("--disable-overlap-schedule",)
EIGHT_BITS = ("--kv-cache-dtype", "fp8_e4m3")
NO_PREFIXES = ("--disable-radix-cache",)
TWO_RANKS = ("--tp-size", "2")
WITHOUT_COPIES = ("--dynts-host-memory-gb", "0")
OBSERVING = ("--dynts-observe-queries", str(NUM_QUERIES), *WITHOUT_COPIES)
WORKERS = ("--tokenizer-worker-num", "2")
PATIENT = {"SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT": "600"}
"""With workers: one may be stopped for a while."""
DECODE_SIDE = ("--disaggregation-mode", "decode")
TWO_CORES = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}


@dataclass(frozen=True)
class Spec:
    """A server with DynTS: a kind of model, and what it is started with.

    ``{model}`` in a flag is the model's folder.
    """

    model: str
    flags: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    command: Sequence[str] = LAUNCH_SERVER
    as_a_user: bool = False
    """Start new processes that import SGLang, a minute's work, instead of copies of one that has."""
    draft: str | None = None
    """The kind of model that drafts for it."""

    def flags_of(self, folder_of: Callable[[str], Path]) -> list[str]:
        """All flags of its command; ``folder_of`` gives the folder of a kind of model."""
        model = str(folder_of(self.model))
        flags = [flag.replace("{model}", model) for flag in (*DYNTS, *self.flags)]
        if self.draft is not None:
            flags += ("--speculative-draft-model-path", str(folder_of(self.draft)))
        return flags


SERVERS = {
    "demo": Spec(DEMO, (*DEMO_POOL, "--reasoning-parser", "deepseek-r1")),
    "demo_retracting": Spec(
        DEMO, DEMO_POOL, {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "150"}
    ),
    "overlap": Spec("qwen3", ("--enable-cache-report", "--enable-metrics", "--api-key", API_KEY)),
    "no_overlap": Spec("qwen2", NO_OVERLAP),
    "mixed_chunk_and_queue": Spec("qwen3", (*MIXED, *QUEUE)),
    "tensor_parallel": Spec("llama", (*TWO_RANKS, *CALIBRATED), TWO_CORES),
    "data_parallel_attention": Spec(
        "qwen3_moe",
        (
            *ATTENTION_RANKS,
            *CALIBRATED,
            *OBSERVING,
        ),
        TWO_CORES,
    ),
    "data_parallel_attention_gpt_oss": Spec("gpt_oss", (*ATTENTION_RANKS, *MIXED, *QUEUE), TWO_CORES),
    "data_parallel_attention_qwen3_next": Spec(
        "qwen3_next", (*ATTENTION_RANKS, *STATES, *NO_PREFIXES), TWO_CORES
    ),
    "data_parallel_attention_retracting": Spec(
        "deepseek_v3", (*ATTENTION_RANKS, *MIXED, *SMALL_POOL), RETRACTING | TWO_CORES
    ),
    "no_radix_cache": Spec("qwen3_moe", NO_PREFIXES),
    "longest_prefix_first": Spec("llama", (*MIXED, *QUEUE, "--schedule-policy", "lpm")),
    "speller": Spec(
        SPELLER,
        (
            *("--reasoning-parser", "deepseek-r1", "--dynts-disable-elastic"),
            "--constrained-json-disable-any-whitespace",
        ),
    ),
    "changes_its_mind": Spec(CHANGES_ITS_MIND),
    "observing": Spec("qwen3", OBSERVING),
    "observing_by_head": Spec(
        "qwen3",
        (
            *OBSERVING,
            "--dynts-policy",
            "h2o_per_head",
        ),
    ),
    "forced": Spec(
        "qwen3",
        (
            *(*OBSERVING, "--dynts-policy", "h2o_per_head"),
            *FORCING,
            *CALIBRATED,
        ),
    ),
    "little_host_memory": Spec(  # GiB: 104 tokens of this model, and the server's budget is 96
        "qwen3", (*SMALL_POOL, "--dynts-host-memory-gb", "0.0001")
    ),
    "retracting": Spec("qwen3", (*MIXED, *SMALL_POOL, *CALIBRATED, "--enable-metrics"), RETRACTING),
    "eight_bits": Spec("qwen3", (*EIGHT_BITS, *MIXED, *SMALL_POOL, *CALIBRATED), RETRACTING),
    "untrained": Spec(UNTRAINED, ("--enable-metrics",)),
    "ngram": Spec("qwen3", (*NGRAM, EXACT)),
    "ngram_queue": Spec("qwen3", (*NGRAM, *QUEUE, "--chunked-prefill-size", "32")),
    "ngram_no_overlap": Spec(CHANGES_ITS_MIND, (*NGRAM, EXACT, *NO_OVERLAP)),
    "standalone": Spec("llama", (*STANDALONE, EXACT), draft="llama"),
    "demo_standalone": Spec(DEMO, (*DEMO_POOL, *STANDALONE), draft=DEMO),
    "standalone_retracting": Spec("qwen3", (*STANDALONE, *SMALL_POOL), RETRACTING, draft="qwen3"),
    "eagle": Spec("llama", (*EAGLE, EXACT), draft=EAGLE_HEAD),
    "eagle3": Spec("llama_deep", (*EAGLE3, EXACT), draft=EAGLE3_HEAD),
    "gpt_oss_ngram": Spec("gpt_oss", (*NGRAM, EXACT)),
    "gpt_oss_eagle3": Spec("gpt_oss", (*EAGLE3, *SMALL_POOL), RETRACTING, draft=EAGLE3_HEAD),
    "multi_token_head": Spec("glm4_moe_mtp", (*NEXTN, EXACT)),
    "multi_token_head_ranks": Spec(
        "deepseek_v3_mtp", (*NEXTN, *ATTENTION_RANKS, *SMALL_POOL), RETRACTING | TWO_CORES
    ),
    "multi_token_head_latents": Spec("deepseek_v3_mtp", (*NEXTN, EXACT)),
    "qwen3_vl_ngram": Spec("qwen3_vl", (*NGRAM, EXACT)),
    "qwen3_next_ngram": Spec("qwen3_next", (*NGRAM, EXACT, *STATES, *NO_PREFIXES)),
    "qwen3_next_mtp": Spec("qwen3_next_mtp", (*NEXTN, *SMALL_POOL, *STATES, *EXTRA_BUFFER), RETRACTING),
    "hierarchical": Spec("qwen3", (*HIERARCHICAL, *SMALL_POOL)),
    "hierarchical_ngram": Spec("qwen3", (*HIERARCHICAL, *SMALL_POOL, *NGRAM), RETRACTING),
    "hierarchical_eagle3": Spec(
        "llama_deep", (*HIERARCHICAL, *SMALL_POOL, *EAGLE3), RETRACTING, draft=EAGLE3_HEAD
    ),
    "hierarchical_retracting": Spec(
        "qwen3", (*HIERARCHICAL, *SMALL_POOL, "--hicache-mem-layout", "layer_first"), RETRACTING
    ),
    "hierarchical_without_copies": Spec(
        "deepseek_v3_dense",
        (
            *(*HIERARCHICAL, *SMALL_POOL, *WITHOUT_COPIES),
            *("--hicache-write-policy", "write_through_selective"),
        ),
        RETRACTING,
    ),
    "hierarchical_ranks": Spec(
        "qwen3_moe", (*HIERARCHICAL, *ATTENTION_RANKS, *SMALL_POOL), RETRACTING | TWO_CORES
    ),
    "tokenizer_workers": Spec(
        "qwen3",
        (*WORKERS, "--enable-metrics"),
        PATIENT,
        command=SGLANG_SERVE,
        as_a_user=True,
    ),
    "retracting_no_overlap": Spec("qwen3", (*SMALL_POOL, *NO_OVERLAP), RETRACTING),
    "gemma2": Spec("gemma2", (*MIXED, *QUEUE)),
    "gemma3_tensor_parallel": Spec("gemma3", TWO_RANKS, TWO_CORES),
    "olmo3_retracting": Spec("olmo3", (*MIXED, *SMALL_POOL), RETRACTING),
    "exaone4_without_copies": Spec("exaone4", (*SMALL_POOL, *WITHOUT_COPIES), RETRACTING),
    "olmo3_unguarded": Spec("olmo3", command=(sys.executable, "-m", "tests.e2e.unguarded")),
    "deepseek": Spec("deepseek_v3", (*MIXED, *QUEUE)),
    "deepseek_tensor_parallel": Spec("deepseek_v3", TWO_RANKS, TWO_CORES),
    "deepseek_dense_retracting": Spec("deepseek_v3_dense", (*MIXED, *SMALL_POOL), RETRACTING),
    "glm_without_copies": Spec("glm4_moe_lite", (*SMALL_POOL, *WITHOUT_COPIES), RETRACTING),
    "qwen3_vl": Spec("qwen3_vl", (*MIXED, *QUEUE)),
    "qwen3_vl_retracting": Spec("qwen3_vl", SMALL_POOL, RETRACTING),
    "mistral": Spec("mistral", NO_PREFIXES),
    "phi3": Spec("phi3"),
    "gemma2_ngram": Spec("gemma2", (*NGRAM, EXACT)),
    "gpt_oss": Spec("gpt_oss", (*MIXED, *QUEUE)),
    "gpt_oss_tensor_parallel": Spec("gpt_oss", (*TWO_RANKS, *CALIBRATED), TWO_CORES),
    "gpt_oss_retracting": Spec("gpt_oss", (*MIXED, *SMALL_POOL, *CALIBRATED), RETRACTING),
    "gpt_oss_without_copies": Spec("gpt_oss", (*SMALL_POOL, *WITHOUT_COPIES, *NO_PREFIXES), RETRACTING),
    "gpt_oss_little_sliding_pool": Spec(  # 200 slots: less than twelve requests take between two slides
        "gpt_oss", ("--max-total-tokens", "2000", "--swa-full-tokens-ratio", "0.1", *CHUNKS)
    ),
    "mimo_v2": Spec(MIMO_V2, (*MIXED, *QUEUE, *TRUSTING)),
    "mimo_v2_tensor_parallel": Spec(MIMO_V2, (*TWO_RANKS, *CALIBRATED, *TRUSTING), TWO_CORES),
    "mimo_v2_retracting": Spec(MIMO_V2, (*MIXED, *SMALL_POOL, *CALIBRATED, *TRUSTING), RETRACTING),
    "mimo_v2_without_copies": Spec(
        MIMO_V2, (*SMALL_POOL, *WITHOUT_COPIES, *NO_PREFIXES, *TRUSTING), RETRACTING
    ),
    "step3p5": Spec(STEP, (*MIXED, *QUEUE, *TRUSTING)),
    "step3p5_tensor_parallel": Spec(STEP, (*TWO_RANKS, *CALIBRATED, *TRUSTING), TWO_CORES),
    "step3p5_retracting": Spec(STEP, (*MIXED, *SMALL_POOL, *CALIBRATED, *TRUSTING), RETRACTING),
    "step3p5_without_copies": Spec(
        STEP, (*SMALL_POOL, *WITHOUT_COPIES, *NO_PREFIXES, *TRUSTING), RETRACTING
    ),
    "qwen3_next": Spec("qwen3_next", (*MIXED, *QUEUE, *STATES, *NO_PREFIXES)),
    "qwen3_5_without_copies": Spec("qwen3_5", (*SMALL_POOL, *CHUNKS, *STATES), RETRACTING),
    "qwen3_5_tensor_parallel": Spec("qwen3_5_text", (*TWO_RANKS, *CALIBRATED, *STATES), TWO_CORES),
    "decode_side": Spec("qwen3", (*DECODE_SIDE, *SMALL_POOL, *CALIBRATED), RETRACTING | WIRE),
    "decode_side_in_turns": Spec(
        "qwen3",
        (*DECODE_SIDE, *TWO_RANKS, *NO_OVERLAP, *NO_PREFIXES, *MIXED, *OBSERVING),
        TWO_CORES | WIRE,
    ),
    "decode_side_sliding": Spec("gemma2", (*DECODE_SIDE, *WORKERS, *QUEUE), PATIENT | WIRE),
    "decode_side_drafts": Spec(
        "deepseek_v3_mtp",
        (*DECODE_SIDE, *NEXTN, *ATTENTION_RANKS, *SMALL_POOL),
        RETRACTING | TWO_CORES | WIRE,
    ),
    "decode_side_latents": Spec("deepseek_v3", (*DECODE_SIDE, *SMALL_POOL), RETRACTING | WIRE),
    "all_schedules": Spec(
        "qwen3", (*TWO_RANKS, *NO_OVERLAP, *NO_PREFIXES, *MIXED, *OBSERVING), TWO_CORES
    ),
    "drafts_on_two_ranks": Spec("qwen3", (*NGRAM, EXACT, *TWO_RANKS, *NO_PREFIXES), TWO_CORES),
    "sliding_in_turns": Spec("gemma2", (*NO_OVERLAP, *NO_PREFIXES)),
    "latents_in_turns": Spec("deepseek_v3", (*NO_OVERLAP, *NO_PREFIXES)),
    "latents_with_drafts": Spec("deepseek_v3", (*NGRAM, EXACT)),
    "sliding_hierarchy": Spec(
        "gemma2",
        (*HIERARCHICAL, *TWO_RANKS, *NO_OVERLAP, *MIXED),
        TWO_CORES,
    ),
    "hierarchy_observing": Spec("qwen3", (*HIERARCHICAL, *OBSERVING)),
    "states_in_turns": Spec("qwen3_next", (*NO_OVERLAP, *STATES, *EXTRA_BUFFER)),
    "ranks_of_two": Spec(
        "deepseek_v3",
        ("--tp-size", "4", *ATTENTION_RANKS[2:]),
        {"SGLANG_CPU_OMP_THREADS_BIND": "0|1|0|1"},
    ),
    "workers_two_pools": Spec(
        "gpt_oss", (*WORKERS, *TWO_RANKS, *NO_OVERLAP, *MIXED), TWO_CORES | PATIENT
    ),
    "workers_latents": Spec(
        "deepseek_v3", (*WORKERS, *ATTENTION_RANKS, *NO_OVERLAP, *NO_PREFIXES), TWO_CORES | PATIENT
    ),
    "workers_hierarchy": Spec("gemma2", (*WORKERS, *HIERARCHICAL), PATIENT),
    "workers_states": Spec("qwen3_next", (*WORKERS, *STATES), PATIENT),
    "workers_observing": Spec("qwen3", (*WORKERS, *OBSERVING), PATIENT),
    "workers_with_drafts": Spec("qwen3", (*WORKERS, *NGRAM, EXACT), PATIENT),
    "retracting_no_radix_cache": Spec("qwen3", (*SMALL_POOL, *NO_PREFIXES), RETRACTING),
}


def served_by(*names: str) -> pytest.MarkDecorator:
    """Run tests on these shared servers; pytest brings all tests of one server together."""
    assert set(names) <= set(SERVERS)
    return pytest.mark.parametrize("server", names, indirect=True)


class SharedServers:
    """Gives the servers of a session in the order in which its tests need them."""

    def __init__(self, order: list[str], models: Callable[[str], Path], logs: Path, warm: Warm) -> None:
        self._order, self._models, self._logs, self._warm = order, models, logs, warm
        self._started: dict[str, Server] = {}

    def take(self, name: str) -> Server:
        """Return a server that answers, and start the one that comes after it."""
        server = self._started.pop(name, None) or self._start(name)
        server.wait_ready()
        for following in self._order[self._order.index(name) + 1 :][:1]:
            self._started[following] = self._start(following)
        return server

    def stop(self) -> None:
        """End those that were started and not taken."""
        for server in self._started.values():
            server.stop()

    def _start(self, name: str) -> Server:
        spec = SERVERS[name]
        log = self._logs / f"{name}.log"
        model, flags = self._models(spec.model), spec.flags_of(self._models)
        if spec.as_a_user:
            return Server(model, log, *flags, command=spec.command, **spec.environment)
        return WarmServer(self._warm, model, log, *flags, command=spec.command, **spec.environment)
