"""What the served tokens must be: Hugging Face, a cache edited by hand, original position ids.

Nothing of sgl_dynts is used: scores come from the predictor file's tensors, the survivors from a sort of
Python tuples, thinking from a scan of the tokens.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache

from tests.e2e.models import END_THINK, THINK, VOCAB_SIZE


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


class Reference:
    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)  # two layers: a second thread waits more than it works
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.weights = load_file(folder / "dynts" / "predictor.safetensors")

    def score(self, hidden: torch.Tensor) -> list[float]:
        for name in ("layers.0.weight", "layers.1.weight", "layers.2.weight"):
            hidden = torch.nn.functional.softplus(hidden @ self.weights[name].T)
        return hidden[:, 0].tolist()

    @torch.inference_mode()
    def generate(
        self,
        prompt: list[int],
        length: int,
        windows: Windows | None,
        allowed: range = range(VOCAB_SIZE),
    ) -> Expected:
        """Greedy tokens with the end token ignored; ``windows`` None keeps the whole cache."""
        cache = DynamicCache()
        scores: list[float] = []
        held: list[int] = []
        output: list[int] = []
        logprobs: list[float] = []
        compactions = dropped = 0
        new = prompt
        while True:
            positions = torch.arange(len(scores), len(scores) + len(new))[None]
            out = self.model.model(
                torch.tensor([new]), position_ids=positions, past_key_values=cache, use_cache=True
            )
            hidden = out.last_hidden_state[0]
            scores += self.score(hidden)
            held += positions[0].tolist()
            logits = self.model.lm_head(hidden[-1])
            output.append(allowed[int(logits[allowed.start : allowed.stop].argmax())])
            logprobs.append(float(logits.log_softmax(0)[output[-1]]))
            if len(output) == length:
                return Expected(output, compactions, dropped, held, logprobs)
            new = output[-1:]
            if windows is None:
                continue
            kept = keep(held, scores, prompt, output[: len(scores) - len(prompt)], windows)
            if len(kept) < len(held):
                compactions += 1
                dropped += len(held) - len(kept)
                edit_cache(cache, [held.index(position) for position in kept])
                held = kept


def edit_cache(cache: DynamicCache, columns: list[int]) -> None:
    layers: Any = cache.layers
    for layer in layers:
        layer.keys = layer.keys[:, :, columns]
        layer.values = layer.values[:, :, columns]


def keep(
    held: list[int], scores: list[float], prompt: list[int], output: list[int], windows: Windows
) -> list[int]:
    """Positions that stay, by the paper's rule with the question outside the top-k."""
    question = len(prompt)
    keep_len = int(windows.keep_ratio * (windows.budget - windows.local_window) + 1e-9)
    selection = max(keep_len - question, keep_len // 4)
    retained = question + selection + windows.local_window
    budget = retained + windows.budget - windows.local_window - keep_len
    answers = {question + i for i, thinks in enumerate(thinking(prompt, output)) if not thinks}
    if len([p for p in held if p not in answers]) < budget:
        return held
    newest = set(held[-windows.local_window :])
    fixed = {p for p in held if p < question or p in answers or p in newest}
    ranked = sorted((-scores[p], p) for p in held if p not in fixed)
    return sorted(fixed | {p for _, p in ranked[:selection]})


def thinking(prompt: list[int], output: list[int]) -> list[bool]:
    marks = [token for token in prompt if token in (THINK, END_THINK)]
    thinks = not marks or marks[-1] == THINK
    flags = []
    for token in output:
        if thinks and token == END_THINK:
            thinks = False
            flags.append(False)
        elif not thinks and token == THINK:
            flags.append(False)
            thinks = True
        else:
            flags.append(thinks)
    return flags
