"""What the served tokens must be: Hugging Face, a cache edited by hand, original position ids.

Nothing of sgl_dynts is used: scores come from the predictor file's tensors, the survivors from a sort of
Python tuples, thinking from a scan of the tokens.
"""

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, DynamicCache

from benchmark.harness.tiny_models import END_THINK, THINK
from tests.e2e.models import SEPARATORS
from tests.e2e.step_models import STEP, load_step, step_config

OBSERVING = ("snapkv", "rkv")
H2O = "h2o"
NUM_QUERIES = 8


ROUNDING = 1e-4
"""Logits of float32 that lie no further apart change places with the batch that computes them."""


@dataclass(frozen=True)
class Windows:
    budget: int
    local_window: int
    keep_ratio: float


@dataclass
class Expected:
    tokens: list[int]
    num_compactions: int
    num_dropped: int
    kept: list[int]
    """Positions held at the end."""
    logprobs: list[float]
    compacted_at: list[int]
    """Tokens seen at each compaction."""


def chosen(logits: torch.Tensor, among: range, served: int | None, rounding: float = ROUNDING) -> int:
    """The token with the largest logit; the served one, where only rounding tells the two apart."""
    best = among[int(logits[among.start : among.stop].argmax())]
    is_tie = served in among and float(logits[best] - logits[served]) <= rounding
    return served if served is not None and is_tie else best


class Reference:
    rounding = ROUNDING

    def __init__(
        self, folder: Path, markers: tuple[int, int] = (THINK, END_THINK), attention: str = "sdpa"
    ) -> None:
        self.markers = markers
        torch.set_num_threads(1)  # two layers: a second thread waits more than it works
        is_step = json.loads((folder / "config.json").read_text())["model_type"] == STEP
        whole = step_config(folder) if is_step else AutoConfig.from_pretrained(folder)
        config = whole.get_text_config()
        self.kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        self.full = [layer for layer, kind in enumerate(self.kinds) if kind == "full_attention"]
        if "sliding_attention" in self.kinds:
            attention = "eager"  # the one that caps logits and knows sinks
        else:
            config.sliding_window = None  # as SGLang, whose model of that name has no window
        self.config = config
        auto = AutoModelForCausalLM if whole is config else AutoModelForImageTextToText
        with_options = {"config": whole, "dtype": torch.float32, "attn_implementation": attention}
        model = load_step(folder) if is_step else auto.from_pretrained(folder, **with_options)
        self.model = model.eval()
        self.folder = folder
        predictor = folder / "dynts" / "predictor.safetensors"
        self.weights = load_file(predictor) if predictor.is_file() else {}

    def score(self, hidden: torch.Tensor) -> list[float]:
        for name in ("layers.0.weight", "layers.1.weight", "layers.2.weight"):
            hidden = torch.nn.functional.softplus(hidden @ self.weights[name].T)
        return hidden[:, 0].tolist()

    def new_cache(self) -> DynamicCache:
        """An empty cache; where layers slide, one in which they keep all tokens, and are masked."""
        return DynamicCache(config=self.config) if "linear_attention" in self.kinds else DynamicCache()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        found, cap = self.model.lm_head(hidden), getattr(self.config, "final_logit_softcapping", None)
        return torch.tanh(found / cap) * cap if cap else found

    def masks(self, held: list[int], new: torch.Tensor) -> dict[str, torch.Tensor] | None:
        """What new tokens see, by original positions: sliding layers hold all tokens of the text."""
        if "sliding_attention" not in self.kinds:
            return None
        query = new[:, None]
        full, every = torch.tensor([*held, *new.tolist()]), torch.arange(int(new[-1]) + 1)
        seen = {
            "full_attention": full <= query,
            "sliding_attention": (every <= query) & (every > query - self.config.sliding_window),
        }
        least = torch.finfo(torch.float32).min
        return {kind: torch.where(sees, 0.0, least)[None, None] for kind, sees in seen.items()}

    @torch.inference_mode()
    def generate(
        self,
        prompt: list[int],
        length: int,
        windows: Windows | None,
        allowed: range | None = None,
        compacted_at: list[int] | None = None,
        late: int = 0,
        policy: str = "predictor",
        served: list[int] | None = None,
    ) -> Expected:
        """Greedy tokens with the end token ignored; ``windows`` None keeps the whole cache.

        ``compacted_at`` names the lengths at which to compact; where the budget is reached must be among
        them, or ``late`` tokens after it. With ``served`` each token is the choice after the served ones
        before it, so that one forward computes all up to the next compaction: the tokens equal the served
        ones where, and only where, those that it generates by itself do.
        """
        cache = self.new_cache()
        question = question_len(prompt, self.markers)
        scores: list[float] = []
        held: list[int] = []
        seen: dict[int, list[torch.Tensor]] = {}
        received: dict[int, float] = {}
        output: list[int] = []
        logprobs: list[float] = []
        compactions, dropped = list[int](), 0
        tokens = prompt + (served or [])[: length - 1]
        while True:
            start = len(scores)
            answers = answers_in(tokens, question, self.markers)
            end, compacts = len(tokens), False
            if windows is not None:
                room = sizes(question, windows)[1] - len(held)
                last = len(prompt) + length - 1
                end, compacts = stretch(
                    start, end, len(prompt) + 1, last, room, answers, compacted_at, late
                )
            positions = torch.arange(start, end)[None]
            out = self.model.model(
                torch.tensor([tokens[start:end]]),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                attention_mask=self.masks(held, positions[0]),
                output_attentions=policy in (*OBSERVING, H2O),
            )
            if policy in OBSERVING:
                for at in range(start, end):
                    seen[at] = [layer[0, :, at - start] for layer in out.attentions]
            hidden = out.last_hidden_state[0]
            scores += self.score(hidden)
            held += positions[0].tolist()
            if policy == H2O:
                by_head = torch.cat([layer[0].sum(1) for layer in out.attentions])
                for position, more in zip(held, by_head.mean(0).tolist(), strict=True):
                    received[position] = received.get(position, 0.0) + more
            for logits in self.logits(hidden[max(0, len(prompt) - 1 - start) :]):
                choice = allowed or range(len(logits))
                here = served[len(output)] if served is not None and len(output) < len(served) else None
                output.append(chosen(logits, choice, here, self.rounding))
                logprobs.append(float(logits.log_softmax(0)[output[-1]]))
            if len(output) == length:
                return Expected(output, len(compactions), dropped, held, logprobs, compactions)
            if served is None:
                tokens = prompt + output
            if windows is None or not compacts:
                continue
            if policy in OBSERVING:
                layers = observe(policy, held, question, seen, cache, windows)
                judged = [layers.get(position, 0.0) for position in range(len(scores))]
            elif policy == H2O:
                judged = [received[position] for position in range(len(scores))]
            else:
                judged = judge(policy, scores, tokens, question)
            kept = keep(held, judged, question, {p for p in answers if p < end}, windows)
            compactions.append(end)
            dropped += len(held) - len(kept)
            edit_cache(cache, [held.index(position) for position in kept], self.full)
            held = kept


def answers_in(tokens: list[int], question: int, markers: tuple[int, int]) -> list[int]:
    """Positions after the question that are no thinking."""
    flags = thinking(tokens[:question], tokens[question:], markers)
    return [question + i for i, thinks in enumerate(flags) if not thinks]


def stretch(
    start: int,
    num_known: int,
    first: int,
    last: int,
    room: int,
    answers: list[int],
    compacted_at: list[int] | None,
    late: int,
) -> tuple[int, bool]:
    """Where a forward from ``start`` ends, and whether a compaction comes next.

    A request is compacted from ``first`` on, its first decode step, and before ``last``. ``room`` is what
    its budget leaves at ``start``.
    """
    for end in range(max(start + 1, first), min(num_known + 1, last)):
        over = end - start - sum(position < end for position in answers) - room
        if (over >= 0) if compacted_at is None else (end in compacted_at):
            return end, True
        due_for = min(over, end - first)
        assert due_for < late or compacted_at is None, f"not compacted at {end}: the budget is reached"
    return num_known, False


def edit_cache(cache: DynamicCache, columns: list[int], full: list[int]) -> None:
    """Drop tokens from the layers with full attention, and from no other."""
    layers: Any = [cache.layers[index] for index in full]
    for layer in layers:
        layer.keys = layer.keys[:, :, columns]
        layer.values = layer.values[:, :, columns]


def sizes(question: int, windows: Windows) -> tuple[int, int]:
    """Thinking tokens that a compaction selects, and the budget of a request with this question."""
    keep_len = int(windows.keep_ratio * (windows.budget - windows.local_window) + 1e-9)
    selection = max(keep_len - question, keep_len // 4)
    return selection, question + selection + windows.budget - keep_len


def judge(policy: str, scores: list[float], tokens: list[int], question: int) -> list[float]:
    """What a policy gives every position, in Python's own integers; ``scores`` are the predictor's."""
    rules = {
        "predictor": lambda p: scores[p],
        "bottom": lambda p: -scores[p],
        "window": lambda p: p,
        "streaming": lambda p: p if p >= question + 4 else len(tokens) + 1,
        "sepllm": lambda p: p + len(tokens) * (tokens[p] in SEPARATORS),
        "random": lambda p: draw(tokens[:question], p),
    }
    return [rules[policy](p) for p in range(len(scores))]


def observe(
    policy: str,
    held: list[int],
    question: int,
    seen: dict[int, list[torch.Tensor]],
    cache: DynamicCache,
    windows: Windows,
) -> dict[int, float]:
    """What SnapKV or R-KV give the candidates, from Hugging Face's own attention of earlier steps.

    Nothing may have been dropped since the oldest of these steps.
    """
    columns = range(question, len(held) - windows.local_window)
    newest = held[-1 - NUM_QUERIES : -1]
    layers: Any = cache.layers
    total = dict.fromkeys(columns, 0.0)
    for index, layer in enumerate(layers):
        rows = torch.stack([seen[position][index][:, : columns.stop] for position in newest])
        keys = layer.keys[0][:, columns.start : columns.stop]
        given = rows.mean(0) if policy == "rkv" else rows.sum(0).mean(0, keepdim=True)
        given = (
            given[:, columns.start :].view(len(keys) if policy == "rkv" else 1, -1, len(columns)).mean(1)
        )
        for head, values in enumerate(given.tolist()):
            repeats = redundancy(keys[head]) if policy == "rkv" else []
            for at, column in enumerate(columns):
                if policy == "rkv":
                    pooled = 0.1 * max(values[max(0, at - 3) : at + 4]) - 0.9 * repeats[at]
                else:
                    pooled = sum(values[max(0, at - 2) : at + 3]) / 5
                total[column] += pooled / len(given)
    return {held[column]: value for column, value in total.items()}


def redundancy(keys: torch.Tensor) -> list[float]:
    """R-KV's share of each of one head's keys [n, head_dim], by loops."""
    unit = keys / keys.norm(dim=1, keepdim=True)
    similar = (unit @ unit.T).tolist()
    sums = [0.0] * len(keys)
    for one, row in enumerate(similar):
        alike = [other for other, value in enumerate(row) if value > 0.5 and other != one]
        for other in alike[:-1]:
            sums[other] += row[other] / len(keys)
    return torch.tensor(sums).softmax(0).tolist()


def draw(question: list[int], position: int) -> int:
    """SplitMix64 of the question's checksum and a position, its upper 24 bits."""
    bits = (1 << 64) - 1
    checksum = zlib.crc32(struct.pack(f"<{len(question)}q", *question))
    number = ((checksum << 31) + position + 0x9E3779B97F4A7C15) & bits
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & bits
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & bits
    return (number ^ (number >> 31)) >> 40


def keep(
    held: list[int], scores: list[float], question: int, answers: set[int], windows: Windows
) -> list[int]:
    """Positions that stay, by the paper's rule with the question outside the top-k."""
    newest = set(held[-windows.local_window :])
    fixed = {p for p in held if p < question or p in answers or p in newest}
    ranked = sorted((-scores[p], p) for p in held if p not in fixed)
    return sorted(fixed | {p for _, p in ranked[: sizes(question, windows)[0]]})


def question_len(prompt: list[int], markers: tuple[int, int]) -> int:
    """A prompt up to the marker of thinking that it leaves open, else all of it."""
    marks = [i for i, token in enumerate(prompt) if token in markers]
    return marks[-1] + 1 if marks and prompt[marks[-1]] == markers[0] else len(prompt)


def thinking(
    prompt: list[int], output: list[int], markers: tuple[int, int] = (THINK, END_THINK)
) -> list[bool]:
    opening, closing = markers
    marks = [token for token in prompt if token in markers]
    thinks = not marks or marks[-1] == opening
    flags = []
    for token in output:
        if thinks and token == closing:
            thinks = False
            flags.append(False)
        elif not thinks and token == opening:
            flags.append(False)
            thinks = True
        else:
            flags.append(thinks)
    return flags
