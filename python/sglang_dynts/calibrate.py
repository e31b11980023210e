"""Calibrate a model ahead of its first start: ``python -m sglang_dynts.calibrate MODEL``.

The model is loaded as its server would load it, reads a text, and ends. Flags of SGLang's server may
follow, such as ``--tp-size 2`` or ``--dynts-calibration-text FILE``.
"""

import argparse
import sys

from sgl_dynts.loading import say_loading
from sglang_dynts.names import BACKEND_NAME, ENABLE_FLAG


def main(argv: list[str] | None = None) -> int:
    """Load, calibrate, say where the file is; 1 where it could not be written."""
    parser = argparse.ArgumentParser(prog="python -m sglang_dynts.calibrate", description=__doc__)
    parser.add_argument("model", help="folder or hub id")
    args, flags = parser.parse_known_args(argv)
    say_loading("sglang")  # --help needs none of it
    from sglang import Engine
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    from sgl_dynts.policies import CALIBRATED

    load_plugins()
    backend = () if ENABLE_FLAG in flags else ("--attention-backend", BACKEND_NAME)
    words = ["--model-path", args.model, "--dynts-policy", CALIBRATED, *backend, *flags]
    engine = Engine(server_args=prepare_server_args(words))
    try:
        found = engine.get_server_info()["internal_states"][0][BACKEND_NAME]["calibration"]
    finally:
        engine.shutdown()
    sys.stdout.write(f"{found['path'] or 'kept nowhere: no folder could be written'}\n")
    return int(found["path"] is None)


if __name__ == "__main__":
    raise SystemExit(main())
