"""Serve the page for people, next to a running SGLang server with DynTS.

    python -m sgl_dynts.page --url http://127.0.0.1:30000

Then open the address that it prints.
"""

import argparse
import os
import sys

import httpx
import uvicorn

from sgl_dynts.page.app import create_app

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


def main() -> int:
    """Serve until interrupted."""
    args = _parse_args()
    key = os.environ.get(args.api_key_variable, "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    patience = httpx.Timeout(60, read=None)
    server = httpx.AsyncClient(base_url=args.url, headers=headers, timeout=patience, trust_env=False)
    hosts = sorted({*LOOPBACK, args.host, *args.allow_host})
    print(f"The page for {args.url}: http://{args.host}:{args.port}/", flush=True)
    app = create_app(server, hosts, args.question)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning")
    return 0


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sgl_dynts.page", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="of the SGLang server")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen at (8080)")
    parser.add_argument("--question", default="", help="what stands in the box at first")
    parser.add_argument(
        "--allow-host", action="append", default=[], help="another name that browsers may call it by"
    )
    parser.add_argument(
        "--api-key-variable",
        default="SGLANG_API_KEY",
        help="environment variable that holds the server's API key (SGLANG_API_KEY)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
