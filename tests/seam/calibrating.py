"""A process that calibrates one model in SGLang's own scheduler: ``python -m tests.seam.calibrating``.

Arguments: the model's folder, the file to write, then the token ids of the text.
"""

import sys
from pathlib import Path
from typing import Any

from sglang.srt import server_args
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.plugins import load_plugins
from sglang.srt.runtime_context import SpawnRanks, publish

from sgl_dynts.calibration import Calibration, save_calibration
from sglang_dynts.forward.queries.calibrate import calibrate

FLAGS = (
    *("--device", "cpu", "--dtype", "float32", "--attention-backend", "dynts", "--log-level", "error"),
    *("--max-total-tokens", "2000", "--mem-fraction-static", "0.5", "--chunked-prefill-size", "200"),
)


def main(folder: str, path: str, *words: str) -> None:
    load_plugins()
    args = server_args.prepare_server_args(["--model-path", folder, *FLAGS])
    args.resolve_once()
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0, dp_rank=None, gpu_id=0))
    scheduler: Any = Scheduler(args, server_args.PortArgs.init_new(args))
    free = scheduler.token_to_kv_pool_allocator.available_size()
    rows = scheduler.req_to_token_pool.available_size()
    layers = calibrate(scheduler, [int(word) for word in words])
    assert scheduler.token_to_kv_pool_allocator.available_size() == free
    assert scheduler.req_to_token_pool.available_size() == rows
    assert scheduler.tree_cache.evictable_size() == 0
    save_calibration(Path(path), Calibration(tuple(layers), folder, len(words)))


if __name__ == "__main__":
    main(*sys.argv[1:])
