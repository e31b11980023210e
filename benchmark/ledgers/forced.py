"""Reference traces read by the demo model all at once, each token seeing only what a policy would hold.

Nothing is generated: what is judged is whether the model would have written each word that the answer
depends on. That is many times quicker than `rollout.py` and close to it, since the reference is what the
model writes while it goes right.
"""

# Submodules are attributes that torch types as Tensor or Module, and nothing narrower.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.ledgers.model import DemoModel
from benchmark.ledgers.rollout import DynTSPolicy, HeldTokens
from sgl_dynts.demo.ledger import END_THINK, Problem, Vocabulary

ENTRY_LEN = 18
"""Words of an entry up to its remarks."""
ROUNDS = 2
"""What is held depends on states, which depend on what is held: so many times from one to the other."""


@dataclass(frozen=True)
class Reading:
    """What a model computed of tokens [b, s].

    ``states``: [b, s, d], one after each layer, the last one after the final norm. ``attention``
    [b, s, s] float32, mean over layers and heads. ``right`` [b, s] bool: the token is what the model
    would have written there; the first is never asked for.
    """

    states: list[Tensor]
    attention: Tensor
    right: Tensor


@torch.no_grad()
def read(model: DemoModel, tokens: Tensor, mask: Tensor) -> Reading:
    """Read tokens [b, s], each attending to what is True in its row of `mask` [b, s, s]."""
    rope = model.rope_cos[: tokens.shape[1]], model.rope_sin[: tokens.shape[1]]
    x = model.model.embed_tokens(tokens)
    states, total = [], torch.zeros(mask.shape)
    for layer in model.model.layers:
        attention = layer.self_attn
        q, k, v = attention.project(layer.input_layernorm(x), rope)
        k, v = (y.repeat_interleave(q.shape[1] // y.shape[1], dim=1) for y in (k, v))
        logits = (q @ k.transpose(-1, -2)).mul_(model.shape.head_dim**-0.5)
        weights = logits.masked_fill_(~mask[:, None], float("-inf")).softmax(-1)
        total += weights.mean(1)
        x = x + attention.o_proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        states.append(x)
    states[-1] = model.model.norm(x)
    written = model.logits(states[-1][:, :-1]).argmax(-1)
    right = torch.nn.functional.pad(written == tokens[:, 1:], (1, 0), value=True)
    return Reading(states, total / len(states), right)


def causal(tokens: Tensor) -> Tensor:
    """Return the mask [b, s, s] under which every token sees all before it."""
    batch, length = tokens.shape
    return torch.ones(length, length, dtype=torch.bool).tril().expand(batch, -1, -1)


def held_mask(tokens: Tensor, question_len: int, policy: DynTSPolicy, states: Tensor) -> Tensor:
    """Return what each token sees under a policy: [b, s, s] bool.

    Args:
        tokens: [b, s].
        question_len: common to the batch.
        policy: asked token by token, as by `rollout.generate`.
        states: [b, s, d], what the policy is shown.
    """
    mask = causal(tokens).clone()
    held = torch.zeros(tokens.shape, dtype=torch.bool)
    held[:, :question_len] = True
    windows = HeldTokens(held, torch.ones(len(tokens), dtype=torch.bool), question_len)
    end_think = Vocabulary().ids[END_THINK]
    for position in range(question_len, tokens.shape[1]):
        windows.thinking &= tokens[:, position] != end_think
        windows.held[:, position] = True
        mask[:, position] &= windows.held
        policy.after_token(windows, states[:, position], position)
    return mask


def read_held(
    model: DemoModel,
    tokens: Tensor,
    question_len: int,
    policy_of: Callable[[Reading], DynTSPolicy],
    whole: Reading,
) -> tuple[Reading, Tensor]:
    """Read tokens as a request under a policy would; return that and what each token saw [b, s, s].

    Args:
        model: to read with.
        tokens: [b, s].
        question_len: common to the batch.
        policy_of: makes the policy from what was read before, the first time from `whole`.
        whole: what the model read with everything held.
    """
    reading, mask = whole, causal(tokens)
    for _ in range(ROUNDS):
        mask = held_mask(tokens, question_len, policy_of(reading), reading.states[-1])
        reading = read(model, tokens, mask)
    return reading, mask


def num_right(problems: list[Problem], reading: Reading) -> int:
    """Return how many problems' answers, and the entries they depend on, the model would have written."""
    return sum(
        bool(right[words_that_count(problem)].all())
        for problem, right in zip(problems, reading.right, strict=True)
    )


def words_that_count(problem: Problem) -> list[int]:
    """Return where the answer stands, and the entries that its values follow from, in the whole text."""
    words = f"{problem.prompt} {problem.completion}".split()
    starts = {words[i + 1]: i for i in range(len(words) - 2) if words[i + 2] == "from"}
    answer_start = words.index(END_THINK) + 1
    needed = [word for word in words[answer_start:] if word in starts]
    for variable in needed:
        operand = words[starts[variable] + 3]
        if operand in starts and operand not in needed:
            needed.append(operand)
    entries = [i for variable in needed for i in range(starts[variable], starts[variable] + ENTRY_LEN)]
    return [*entries, *range(answer_start, len(words))]
