"""The same tokens forced through a real server, which tells what it would have given each.

Log-probabilities of a prompt are of a window that never was compacted, so tokens are forced as output: a
custom logit processor makes the next given token the likeliest, and puts its own log-probability, which
it had without us, into the logit of another token. That one comes back as the second of the top two.
"""

from collections.abc import Mapping, Sequence
from math import exp, log1p
from typing import Any

import torch
from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

from sgl_dynts.config import Windows
from sgl_dynts.harness.client import Client
from sgl_dynts.training.forced.full_cache import Text

FLAGS = ("--enable-custom-logit-processor", "--dynts-disable-elastic")
"""What a server needs so that tokens can be forced and compactions come when they are due."""
FORCED, STEP = "forced", "step"
BELOW = 1.0
"""How far the carrying token's logit stands below the log-probability: it never is the likeliest."""


class ForceTokens(CustomLogitProcessor):
    """Forces the tokens that a request's ``custom_params`` name; their server must import this module."""

    def __call__(
        self, logits: torch.Tensor, custom_param_list: list[dict[str, Any]] | None = None
    ) -> torch.Tensor:
        """Return [n, vocab_size] logits of which the next forced token's is 0 and one other is finite."""
        rows = [force(*pair) for pair in zip(logits, custom_param_list or [], strict=True)]
        return torch.stack(rows)


def force(logits: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
    """Return [vocab_size] logits that force a request's next token, and count it.

    Args:
        logits: [vocab_size], the model's own.
        params: of the request: ``forced``, its tokens, and ``step``, how many were forced.
    """
    step = params.get(STEP, 0)
    params[STEP] = step + 1
    token = params[FORCED][min(step, len(params[FORCED]) - 1)]
    own = logits.float().log_softmax(-1)[token]
    forced = torch.full_like(logits, -torch.inf)
    forced[token] = 0.0
    forced[carrier(token)] = own - BELOW
    return forced


def carrier(token: int) -> int:
    """Return the token whose logit carries the log-probability of another."""
    return int(token == 0)


def carried(logprob: float) -> float:
    """Return the log-probability that a carrier's own log-probability tells."""
    return logprob - log1p(-exp(logprob)) + BELOW


def forced_nll(client: Client, text: Text, policy: str, windows: Windows) -> list[float]:
    """Force a text through a server, and return what each token after the question costs, in nats.

    Args:
        client: of a server that was started with :data:`FLAGS`.
        text: its question is the prompt.
        policy: of the request.
        windows: of the request.

    Raises:
        RuntimeError: the server gave other tokens than it was to.
    """
    question, wanted = text.tokens[: text.question_len], text.tokens[text.question_len :]
    dynts = {"policy": policy, "return_compactions": True, **windows.given()}
    params = {
        "temperature": 0,
        "max_new_tokens": len(wanted),
        "ignore_eos": True,
        "custom_params": {"dynts": dynts, FORCED: wanted},
    }
    reply = client.call(
        "/generate",
        {
            "input_ids": question,
            "sampling_params": params,
            "custom_logit_processor": ForceTokens.to_str(),
            "return_logprob": True,
            "logprob_start_len": len(question),
            "top_logprobs_num": 2,
        },
    )
    if reply["output_ids"] != wanted:
        raise RuntimeError("the server gave other tokens than those that were forced")
    return costs(reply["meta_info"]["output_top_logprobs"], wanted)


def costs(top: Sequence[Sequence[Sequence[Any]]], wanted: Sequence[int]) -> list[float]:
    """Return each token's cost in nats.

    Args:
        top: of each token the two likeliest, as (log-probability, id, text).
        wanted: the tokens.
    """
    return [-carried(_by_id(two)[carrier(token)]) for two, token in zip(top, wanted, strict=True)]


def _by_id(two: Sequence[Sequence[Any]]) -> Mapping[int, float]:
    return {int(token): float(logprob) for logprob, token, *_ in two}


def largest_difference(served: Sequence[float], simulated: Sequence[float]) -> float:
    """Return the most by which two costs of one token differ; ``simulated`` are those of the last."""
    last = served[len(served) - len(simulated) :]
    return max(abs(one - other) for one, other in zip(last, simulated, strict=True))
