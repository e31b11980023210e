"""The real server without the guard of short windows, to show what it guards."""

import sys

from sglang.srt.plugins import load_plugins

from sglang_dynts.boot import sliding_window

# At the top: the scheduler's process imports this module too, and the guard is in that process.
sliding_window.least_local_window = lambda _model_runner: 0


def main() -> None:
    """Serve with the arguments of ``sglang.launch_server``."""
    from sglang.launch_server import run_server
    from sglang.srt import server_args

    load_plugins()
    run_server(server_args.prepare_server_args(sys.argv[1:]))


if __name__ == "__main__":
    main()
