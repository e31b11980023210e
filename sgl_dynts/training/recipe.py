"""How a predictor is fitted: numbers and names alone, so that a command tells them without torch."""

from dataclasses import dataclass

LOSS_NAMES = ("mse", "mse-band", "mse-emphasis", "listwise")
SCALE_NAMES = ("power", "times", "mean", "log")


@dataclass(frozen=True)
class FitRecipe:
    """How a predictor is fitted; the defaults are the paper's, in float32 instead of bfloat16.

    Source: the DynTS paper and its code. Hidden layers are d * `widen` and d * `narrow` wide. A batch
    is so many traces; `emphasis` is read by the loss `mse-emphasis` alone. `scale_inputs` divides the
    first layer's initial weights by the size of the states, which the paper does not do.
    """

    seed: int = 1
    epochs: int = 15
    batch_size: int = 256
    learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    clip_norm: float = 1.0
    loss: str = "mse"
    scale: str = "power"
    emphasis: float = 3.0
    widen: float = 2.0
    narrow: float = 0.5
    scale_inputs: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be.

        Raises:
            ValueError: naming the field, its value and a remedy.
        """
        for name, known in (("loss", LOSS_NAMES), ("scale", SCALE_NAMES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; choose of {', '.join(known)}"
                )
        for name in ("epochs", "batch_size", "learning_rate", "widen", "narrow"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share={self.warmup_share} must lie between 0 and 1, 1 excluded")
