"""The paper's settings of each benchmark, for problems from local files.

Windows, sampling and sample counts of AIME24 to GPQA-D are those of the authors' recipes. AIME26,
HumanEval and BIG-Bench Hard are no benchmarks of the paper and get its settings for the long ones.
"""

from dataclasses import dataclass

from sgl_dynts.config import PAPER_CONFIGS, DynTSConfig
from sgl_dynts.training.endpoint import Sampling

QWEN, LLAMA = "qwen-7b", "llama-8b"
SAMPLES = 5
SAMPLING = Sampling(temperature=0.6, top_p=0.95, top_k=20, max_new_tokens=16384)
LONG = PAPER_CONFIGS
SHORT = {QWEN: DynTSConfig(3000, 1500, 0.4), LLAMA: DynTSConfig(3000, 1000, 0.3)}


@dataclass(frozen=True)
class Preset:
    """Who judges one benchmark's answers, and its windows by model family."""

    grader: str
    windows: dict[str, DynTSConfig]


PRESETS = {
    "aime24": Preset("math", LONG),
    "aime25": Preset("math", LONG),
    "aime26": Preset("math", LONG),
    "amc23": Preset("math", LONG),
    "gk23en": Preset("math", SHORT),
    "math500": Preset("math", SHORT),
    "gpqa-d": Preset("choice", LONG | {LLAMA: DynTSConfig(5000, 2500, 0.3)}),
    "humaneval": Preset("python", LONG),
    "bbh": Preset("exact", LONG),
}
