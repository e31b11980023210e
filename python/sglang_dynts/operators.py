"""Stand-ins for compiled operators that SGLang lacks on a machine without a GPU; imports none of it."""

import sys
from types import ModuleType


def stand_in_for_tree_masks() -> None:
    """Let SGLang import its tree masks where their compiled operator is not built, as on a CPU.

    The function that calls it is replaced there.
    """
    name = "sgl_kernel.speculative"
    if name not in sys.modules:
        stand_in = ModuleType(name)
        vars(stand_in)["reconstruct_indices_from_tree_mask"] = None
        sys.modules[name] = stand_in
