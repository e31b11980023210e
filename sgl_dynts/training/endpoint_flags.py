"""The flags of commands that ask a running server."""

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from sgl_dynts.training.endpoint import APIS, Sampling

API_HELP = (
    "sglang: /generate; openai: /v1/completions with token ids; openai-text: any other server, whose "
    "text is tokenized again"
)


def add_server_flags(add: Callable[..., Any]) -> None:
    """Add where the server is and what it speaks; ``add`` is a parser's ``add_argument``."""
    add("--url", required=True, help="of a running server")
    add("--api", choices=APIS, default="sglang", help=API_HELP)


def add_sampling_flags(add: Callable[..., Any]) -> None:
    """Add how tokens are drawn, and how many requests are in flight."""
    add("--temperature", type=float, default=Sampling.temperature)
    add("--top-p", type=float, default=Sampling.top_p)
    add("--top-k", type=int, default=Sampling.top_k, help="0: all")
    add("--max-new-tokens", type=int, default=Sampling.max_new_tokens)
    add("--concurrency", type=int, default=64, help="requests in flight")


def sampling_given(args: argparse.Namespace) -> Sampling:
    """Return how tokens are drawn by these arguments."""
    return Sampling(**{field.name: getattr(args, field.name) for field in fields(Sampling)})
