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

from tests.e2e.models import END_THINK, THINK


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
    def __init__(self, folder: Path, markers: tuple[int, int] = (THINK, END_THINK)) -> None:
        self.markers = markers
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
        allowed: range | None = None,
        compacted_at: list[int] | None = None,
        late: int = 0,
    ) -> Expected:
        """Greedy tokens with the end token ignored; ``windows`` None keeps the whole cache.

        ``compacted_at`` names the lengths at which to compact; where the budget is reached must be among
        them, or ``late`` tokens after it.
        """
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
            choice = allowed or range(len(logits))
            output.append(choice[int(logits[choice.start : choice.stop].argmax())])
            logprobs.append(float(logits.log_softmax(0)[output[-1]]))
            if len(output) == length:
                return Expected(output, compactions, dropped, held, logprobs)
            new = output[-1:]
            if windows is None:
                continue
            flags = thinking(prompt, output[: len(scores) - len(prompt)], self.markers)
            answers = {len(prompt) + i for i, thinks in enumerate(flags) if not thinks}
            over = len(held) - len(answers.intersection(held)) - sizes(len(prompt), windows)[1]
            due = over >= 0
            if compacted_at is not None and len(scores) not in compacted_at:
                assert over < late, f"not compacted at {len(scores)}, though the budget is reached"
                continue
            if due or compacted_at is not None:
                kept = keep(held, scores, len(prompt), answers, windows)
                compactions += 1
                dropped += len(held) - len(kept)
                edit_cache(cache, [held.index(position) for position in kept])
                held = kept


def edit_cache(cache: DynamicCache, columns: list[int]) -> None:
    layers: Any = cache.layers
    for layer in layers:
        layer.keys = layer.keys[:, :, columns]
        layer.values = layer.values[:, :, columns]


def sizes(question: int, windows: Windows) -> tuple[int, int]:
    """Thinking tokens that a compaction selects, and the budget of a request with this question."""
    keep_len = int(windows.keep_ratio * (windows.budget - windows.local_window) + 1e-9)
    selection = max(keep_len - question, keep_len // 4)
    return selection, question + selection + windows.budget - keep_len


def keep(
    held: list[int], scores: list[float], question: int, answers: set[int], windows: Windows
) -> list[int]:
    """Positions that stay, by the paper's rule with the question outside the top-k."""
    newest = set(held[-windows.local_window :])
    fixed = {p for p in held if p < question or p in answers or p in newest}
    ranked = sorted((-scores[p], p) for p in held if p not in fixed)
    return sorted(fixed | {p for _, p in ranked[: sizes(question, windows)[0]]})


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
