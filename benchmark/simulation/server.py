"""Builds SGLang's scheduler in this process, as its own launcher builds it in a child."""

from pathlib import Path

from sglang.srt import server_args
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.runtime_context import SpawnRanks, publish

from benchmark.harness.shapes import roofline_shape
from benchmark.simulation.job import DYNTS, ServerSpec
from benchmark.simulation.tiny_model import write_model
from sgl_dynts.roofline import GPUS


def pool_tokens(spec: ServerSpec) -> int:
    """KV tokens of the simulated pool."""
    shape = roofline_shape(spec.shape)
    return spec.pool_tokens or shape.pool_tokens(GPUS[spec.gpu], spec.sliding_share)


def build_scheduler(spec: ServerSpec, side: str, folder: Path) -> Scheduler:
    """Parse, resolve and publish the arguments, then build the scheduler; once per process.

    Args:
        spec: the server.
        side: ``stock`` or ``dynts``.
        folder: an empty folder for the model.
    """
    model = write_model(folder / "model", spec.context_len, roofline_shape(spec.shape))
    flags = _flags(spec, model) + (_dynts_flags(spec) if side == DYNTS else [])
    args = server_args.prepare_server_args([*flags, *spec.flags])
    args.resolve_once()
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0, dp_rank=None, gpu_id=0))
    scheduler = Scheduler(args, server_args.PortArgs.init_new(args))
    assert scheduler.max_total_num_tokens == pool_tokens(spec), scheduler.max_total_num_tokens
    return scheduler


def _flags(spec: ServerSpec, model: Path) -> list[str]:
    values = {
        "model-path": model,
        "load-format": "dummy",
        "device": "cpu",
        "max-total-tokens": pool_tokens(spec),
        "max-running-requests": spec.max_running,
        "context-length": spec.context_len,
        "chunked-prefill-size": spec.chunked_prefill,
        "grammar-backend": "none",
        "mem-fraction-static": 0.5,
        "swa-full-tokens-ratio": spec.sliding_share,
        "log-level": "error",
    }
    if spec.num_states:
        values["max-mamba-cache-size"] = spec.num_states
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return words if spec.overlap else [*words, "--disable-overlap-schedule"]


def _dynts_flags(spec: ServerSpec) -> list[str]:
    return ["--attention-backend", "dynts", *spec.windows.flags("--dynts-")]
