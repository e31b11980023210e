r"""Have a running server continue prompts: texts of the model's own, to train on where no task is.

    python -m sgl_dynts.training.samples --url http://127.0.0.1:30000 --model FOLDER \
        --prompts prompts.txt --out texts

Each prompt and its continuation become one file of --out, written when it is there; the same command
given again goes on where an earlier one was stopped. The folder is what `fit_predictor --texts` takes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sgl_dynts.loading import say_loading
from sgl_dynts.training.endpoint import (
    FULL_CACHE,
    SAMPLING,
    Completion,
    Endpoint,
    EndpointError,
    Sampling,
    asking,
)
from sgl_dynts.training.endpoint_flags import add_sampling_flags, add_server_flags, sampling_given
from sgl_dynts.training.interruption import INTERRUPTED, interruptible
from sgl_dynts.training.language import asked_in_chat
from sgl_dynts.training.whole_file import write_whole


@dataclass(frozen=True)
class Opening:
    """A prompt, as it is asked, and the file that its text goes to."""

    file: Path
    text: str
    prompt: list[int]
    sampling: Sampling


def make_texts(
    url: str,
    model: Path | str,
    prompts: Path | str | Sequence[str],
    out: Path | str,
    *,
    api: str = "sglang",
    name: str | None = None,
    api_key: str | None = None,
    sampling: Sampling = SAMPLING,
    chat: bool = False,
    concurrency: int = 64,
    custom_params: Mapping[str, Any] = FULL_CACHE,
) -> list[Path]:
    """Have a running server continue prompts, and return the files of all texts there are.

    A file that is there is not asked for again.

    Args:
        url: of the server, without a path.
        model: folder or name of the model served, for its tokenizer.
        prompts: to continue, or a file with one in each line.
        out: folder for the texts, `00000.txt` and so on, by the prompt's number.
        api: what the server speaks, one of `endpoint.APIS`.
        name: of the model, for OpenAI's interface; default: `model`.
        api_key: sent as a bearer token.
        sampling: how tokens are drawn; lengths in tokens.
        chat: ask in the model's chat template, which is then part of the text.
        concurrency: requests in flight.
        custom_params: passed on to SGLang; default: the full cache.

    Raises:
        EndpointError: the server cannot be used.
        ValueError: there is no prompt, or the tokenizer has no chat template.
        OSError: a file cannot be read or written.
    """
    from transformers import AutoTokenizer  # not above: a command's --help needs no torch

    if isinstance(prompts, Path | str):
        prompts = [line for line in Path(prompts).read_text(encoding="utf-8").split("\n") if line.strip()]
    if not prompts:
        raise ValueError("prompts: there is none; give texts to continue, one in each line")
    tokenizer = AutoTokenizer.from_pretrained(model)
    if chat and not tokenizer.chat_template:
        raise ValueError(f"{model}: its tokenizer has no chat template; leave --chat out")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:05}.txt" for number in range(len(prompts))]
    openings = (
        Opening(file, prompt, _ids(tokenizer, prompt, chat), sampling)
        for file, prompt in zip(files, prompts, strict=True)
        if not file.exists()
    )
    endpoint = Endpoint(url, api, name or str(model), api_key, dict(custom_params))
    for opening, completion in _completed(endpoint, openings, concurrency):
        write_whole(opening.file, _text(tokenizer, opening, completion))
    return files


def _completed(
    endpoint: Endpoint, openings: Iterator[Opening], concurrency: int
) -> Iterator[tuple[Opening, Completion]]:
    """Ask for all, `concurrency` at a time; yield what is there as it comes."""
    with asking(endpoint) as ask:
        running: dict[Future[Completion], Opening] = {
            ask(opening): opening for opening in islice(openings, concurrency)
        }
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
                for opening in islice(openings, 1):
                    running[ask(opening)] = opening


def _ids(tokenizer: Any, prompt: str, chat: bool) -> list[int]:
    return asked_in_chat(tokenizer, prompt) if chat else list(tokenizer(prompt).input_ids)


def _text(tokenizer: Any, opening: Opening, completion: Completion) -> str:
    """Return prompt and continuation, markers included, without what the tokenizer adds by itself."""
    added = len(tokenizer("").input_ids)
    if completion.ids is None:
        return tokenizer.decode(opening.prompt[added:]) + completion.text
    return tokenizer.decode([*opening.prompt[added:], *completion.ids])


def main(arguments: list[str] | None = None) -> int:
    """Make texts and return the exit status: 1 for what cannot be used, 130 if stopped."""
    args = _parse(arguments)
    try:
        with interruptible():
            files = _make(args)
    except (ValueError, EndpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; {args.out} keeps what was done, the same command goes on", file=sys.stderr)
        return INTERRUPTED
    print(f"{len(files)} texts in {args.out}")
    return 0


def _make(args: argparse.Namespace) -> list[Path]:
    say_loading("transformers")
    return make_texts(
        *(args.url, args.model, args.prompts, args.out),
        api=args.api,
        name=args.name,
        sampling=sampling_given(args),
        chat=args.chat,
        concurrency=args.concurrency,
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sgl_dynts.training.samples",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_server_flags(add)
    add("--model", required=True, help="folder or name of the model served: its tokenizer")
    add("--name", help="of the model, for OpenAI's interface; default: --model")
    add("--prompts", type=Path, required=True, help="text file, a prompt in each line")
    add("--out", type=Path, required=True, help="folder of texts to write or to go on with")
    add("--chat", action="store_true", help="ask in the model's chat template")
    add_sampling_flags(add)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
