"""One float32 score per KV slot."""

import torch

ALWAYS_KEEP = torch.inf
HIGHEST_SCORE = torch.finfo(torch.float32).max


class ScorePool:
    """Scores of the tokens whose KV is held, indexed by KV slot.

    The tensor is allocated once and updated in place, so a captured CUDA graph may write it. A slot's
    score is as old as its KV: it is written by the forward that writes the slot.
    """

    def __init__(self, num_slots: int, device: torch.device | str) -> None:
        """Allocate the pool.

        Args:
            num_slots: slots of the KV pool, its padding slot included; 4 bytes each.
            device: where the KV pool lives.
        """
        self.scores = torch.zeros(num_slots, dtype=torch.float32, device=device)
        """[num_slots] float32, one score per KV slot; higher is kept, infinite is never dropped."""

    def write(self, slots: torch.Tensor, scores: torch.Tensor) -> None:
        """Store the scores of freshly computed tokens.

        Args:
            slots: [num_tokens] integer slots written by this forward; padding repeats slot 0.
            scores: [num_tokens] float32. A score that is not finite becomes finite, so that no
                thinking token can outrank an answer token.
        """
        finite = torch.nan_to_num(scores, nan=0.0, posinf=HIGHEST_SCORE, neginf=-HIGHEST_SCORE)
        self.scores.index_copy_(0, slots.long(), finite)

    def protect(self, slots: torch.Tensor) -> None:
        """Make tokens never drop while their slots live; slots: [num_tokens] int64."""
        self.scores.index_fill_(0, slots, ALWAYS_KEEP)
