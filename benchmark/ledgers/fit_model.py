"""Train the demo model on ledgers, plainly: full causal attention, next-word loss."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.ledgers.model import DemoModel
from sgl_dynts.demo import ledger
from sgl_dynts.demo.ledger import Vocabulary

RECORD_WEIGHT = 4.0
VALUE_WEIGHT = 3.0
HEADER_WEIGHT = 3.0


@dataclass(frozen=True)
class Kind:
    """A kind of problem: its number of entries, with or without remarks in the trace, wide or not."""

    num_steps: int
    brief: bool = False
    wide: bool = False

    def problem(self, seed: int) -> ledger.Problem:
        """Return the problem of this kind and a seed."""
        return ledger.make_problem(seed, self.num_steps, brief=self.brief, wide=self.wide)


@dataclass(frozen=True)
class Stage:
    """Part of the curriculum: kinds of problem, each batch of one kind, until lookups are learnt."""

    kinds: tuple[Kind, ...]


DEFAULT_STAGES = (
    Stage((Kind(6, brief=True),)),
    Stage((Kind(14, brief=True),)),
    Stage((Kind(8),)),
    Stage((Kind(14), Kind(14), Kind(14), Kind(10), Kind(16), Kind(14, brief=True))),
)


@dataclass(frozen=True)
class Recipe:
    """How the model is trained; `total_steps` optimizer steps over all stages together."""

    seed: int = 1
    total_steps: int = 1100
    tokens_per_step: int = 6400
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    advance_at: float = 0.93
    stages: tuple[Stage, ...] = DEFAULT_STAGES


@dataclass(frozen=True)
class Progress:
    """Where training stands: the loss and the share of lookups predicted right, of one step."""

    step: int
    stage: int
    loss: float
    lookup_accuracy: float
    num_tokens: int
    seconds: float


class LossWeights:
    """What each word weighs in the loss, and which words are lookups.

    ``weights`` [vocab] float32; ``is_variable`` and ``is_record`` [vocab] bool.
    """

    def __init__(self, vocabulary: Vocabulary, device: torch.device) -> None:
        """Classify the words of the task."""
        words = vocabulary.words
        self.weights = torch.tensor([_word_weight(word) for word in words], device=device)
        self.is_variable = torch.tensor([word in ledger.WIDE_VARIABLES for word in words], device=device)
        self.is_record = torch.tensor(["=" in word for word in words], device=device)


class Batches:
    """Training batches of the current stage; a stage ends when its lookups are learnt."""

    def __init__(self, vocabulary: Vocabulary, recipe: Recipe) -> None:
        """Start at the first stage."""
        self.vocabulary = vocabulary
        self.recipe = recipe
        self.rng = random.Random(recipe.seed)
        self.stage = 0
        self._recent = 0.0

    def draw(self) -> tuple[Tensor, int]:
        """Return tokens [b, s] int64 of whole problems of one length, and their prompts' length."""
        kind = self.rng.choice(self.recipe.stages[self.stage].kinds)
        first, prompt_len = self._problem(kind)
        batch = max(1, self.recipe.tokens_per_step // len(first))
        rest = [self._problem(kind)[0] for _ in range(batch - 1)]
        return torch.stack([first, *rest]), prompt_len

    def observe(self, accuracy: float) -> None:
        """Take note of one step's lookup accuracy; move on once it is high on average."""
        self._recent = 0.8 * self._recent + 0.2 * accuracy
        if self._recent > self.recipe.advance_at and self.stage + 1 < len(self.recipe.stages):
            self.stage += 1
            self._recent = 0.0

    def _problem(self, kind: Kind) -> tuple[Tensor, int]:
        problem = kind.problem(self.rng.choice(ledger.TRAIN_SEEDS))
        prompt = self.vocabulary.encode(problem.prompt)
        return torch.tensor(prompt + self.vocabulary.encode(problem.completion)), len(prompt)


def train(
    model: DemoModel, vocabulary: Vocabulary, recipe: Recipe, report: Callable[[Progress], None]
) -> None:
    """Train `model` in place by `recipe`, where it is; `report` is called after every optimizer step."""
    device = model.device
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe), betas=(0.9, 0.98))
    # On a GPU the kernels of one length take longer to compile than to train with.
    compiled = device.type == "cpu"
    measure = torch.compile(_loss_and_hits, dynamic=False) if compiled else _loss_and_hits
    batches, words = Batches(vocabulary, recipe), LossWeights(vocabulary, device)
    started, num_tokens = time.monotonic(), 0
    for step in range(recipe.total_steps):
        tokens, prompt_len = batches.draw()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss, accuracy = measure(model, words, tokens.to(device), prompt_len)
        _set_learning_rate(optimizer, _learning_rate(recipe, step))
        _apply(model, optimizer, loss, recipe.clip_norm)
        num_tokens += tokens.numel()
        seconds = time.monotonic() - started
        report(Progress(step, batches.stage, loss.item(), accuracy.item(), num_tokens, seconds))
        batches.observe(accuracy.item())


def _word_weight(word: str) -> float:
    if "=" in word:
        return RECORD_WEIGHT
    if word in ledger.DIGITS:
        return VALUE_WEIGHT
    if word.startswith("#") or word in ledger.WIDE_VARIABLES + ledger.OPERATIONS:
        return HEADER_WEIGHT
    return 1.0


def _loss_and_hits(
    model: DemoModel, words: LossWeights, tokens: Tensor, prompt_len: int
) -> tuple[Tensor, Tensor]:
    """Return the weighted loss over the completion, and the share of records recalled right."""
    targets = tokens[:, prompt_len:]
    logits = model(tokens[:, :-1])[:, prompt_len - 1 :].float()
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    weights = words.weights[targets.flatten()]
    recalled = words.is_variable[tokens[:, prompt_len - 1 : -1]] & words.is_record[targets]
    hits = ((logits.argmax(-1) == targets) & recalled).sum() / recalled.sum()
    return (losses * weights).sum() / weights.sum(), hits


def _apply(model: DemoModel, optimizer: torch.optim.Optimizer, loss: Tensor, clip_norm: float) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()


def _parameter_groups(model: DemoModel, recipe: Recipe) -> list[dict[str, object]]:
    """Decay matrices, leave norms alone."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    return [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]


def _learning_rate(recipe: Recipe, step: int) -> float:
    """Warm up linearly, hold, and fall by a half cosine over the second half of training."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    half = recipe.total_steps // 2
    fallen = max(0, step - half) / max(1, recipe.total_steps - half)
    return recipe.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fallen)))


def _set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
