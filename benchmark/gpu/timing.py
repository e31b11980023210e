"""Times of single kernels: on a GPU by its own events and from CUDA graphs, as a server runs them."""

import time
from collections.abc import Callable
from statistics import median

import torch

WARM_UPS = 3
BUSY_CYCLES = 2_000_000
"""About a millisecond, in which the host launches what is timed, as it does during a forward."""
FLUSHED_BYTES = 256 << 20
"""More than any GPU's L2 cache holds."""


def this_device() -> torch.device:
    """Return the GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def nothing() -> None:
    """Prepare nothing."""


def milliseconds(
    run: Callable[[], object], prepare: Callable[[], object], device: torch.device, repeats: int
) -> float:
    """Return the median time of ``run``; ``prepare`` runs before each and is not timed."""
    times = []
    for index in range(WARM_UPS + repeats):
        prepare()
        spent = _once_on_gpu(run) if device.type == "cuda" else _once(run)
        if index >= WARM_UPS:
            times.append(spent)
    return median(times)


def captured(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return the replay of ``run`` in a CUDA graph, which costs no launches; ``run`` itself on a CPU."""
    if device.type != "cuda":
        return run
    run()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def cache_flusher(device: torch.device) -> Callable[[], object]:
    """Return what leaves nothing of use in a GPU's cache, as the rest of a decode step does."""
    if device.type != "cuda":
        return nothing
    return torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=device).zero_


def _once(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def _once_on_gpu(run: Callable[[], object]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY_CYCLES)
    start.record()
    run()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)
