"""Load on a server, by SGLang's own ``sglang.benchmark.serving``, and what it measured."""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from huggingface_hub import constants

from benchmark.gpu.models import TOKENIZER_FOLDER
from benchmark.gpu.servers import RunningServer, Watch

LINES_OF_A_FAILURE = 30


class ServingError(RuntimeError):
    """The load generator failed, or not every request was served."""


@dataclass(frozen=True)
class RandomLoad:
    """Requests of random token ids, all of one length; ``rate`` in requests/s, None for all at once."""

    input_len: int
    output_len: int
    num_prompts: int
    max_concurrency: int | None = None
    rate: float | None = None
    seed: int = 0

    def flags(self) -> list[str]:
        """Return the load generator's arguments."""
        words = [
            *("--dataset-name", "random-ids", "--random-range-ratio", "1"),
            *("--random-input-len", str(self.input_len)),
            *("--random-output-len", str(self.output_len)),
            *("--num-prompts", str(self.num_prompts), "--seed", str(self.seed)),
        ]
        if self.max_concurrency is not None:
            words += ["--max-concurrency", str(self.max_concurrency)]
        return words if self.rate is None else [*words, "--request-rate", str(self.rate)]


@dataclass(frozen=True)
class SharedPrefixLoad:
    """Groups of requests; those of a group begin with the same ``prefix_len`` tokens."""

    groups: int
    prompts_per_group: int
    prefix_len: int
    question_len: int
    output_len: int
    max_concurrency: int
    seed: int = 0

    @property
    def num_prompts(self) -> int:
        """Requests of all groups."""
        return self.groups * self.prompts_per_group

    def flags(self) -> list[str]:
        """Return the load generator's arguments."""
        return [
            *("--dataset-name", "generated-shared-prefix", "--gsp-range-ratio", "1"),
            *("--gsp-num-groups", str(self.groups)),
            *("--gsp-prompts-per-group", str(self.prompts_per_group)),
            *("--gsp-system-prompt-len", str(self.prefix_len)),
            *("--gsp-question-len", str(self.question_len)),
            *("--gsp-output-len", str(self.output_len), "--seed", str(self.seed)),
            *("--num-prompts", str(self.num_prompts)),
            *("--max-concurrency", str(self.max_concurrency)),
        ]


@dataclass(frozen=True)
class Served:
    """What the load generator measured.

    ``tpot_ms`` is the median over requests of the time per output token after the first;
    ``hit_rate`` the share of prompt tokens that came from the prefix cache.
    """

    completed: int
    duration_s: float
    output_tokens: int
    tokens_per_s: float
    tpot_ms: float
    ttft_ms: float
    hit_rate: float


def parse(text: str) -> Served:
    """Read the load generator's output file: its last line is the run's.

    Raises:
        ServingError: the file is empty.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ServingError("sglang.benchmark.serving wrote no result")
    values: dict[str, Any] = json.loads(lines[-1])
    return Served(
        completed=values["completed"],
        duration_s=values["duration"],
        output_tokens=values["total_output_tokens"],
        tokens_per_s=values["output_throughput"],
        tpot_ms=values["median_tpot_ms"],
        ttft_ms=values["median_ttft_ms"],
        hit_rate=values["cache_report"]["cache_hit_rate_pct"] / 100,
    )


def arguments_of(server: RunningServer, load: RandomLoad | SharedPrefixLoad, out: Path) -> list[str]:
    """Return the load generator's arguments."""
    return [
        *("--backend", "sglang"),
        *("--base-url", server.client.url, "--model", str(server.model)),
        *("--tokenizer", str(server.model / TOKENIZER_FOLDER), "--tokenize-prompt"),
        *("--output-file", str(out), "--flush-cache", "--cache-report", "--disable-tqdm"),
        *load.flags(),
    ]


def generate(arguments: list[str]) -> None:
    """Run the load generator in this process, since importing it for every load takes seconds.

    All its files are here: it asks no hub for any, since without a network it would wait for each.

    Args:
        arguments: of its command line.

    Raises:
        ServingError: it failed; with the end of what it printed.
    """
    from sglang.benchmark import serving

    printed, program = io.StringIO(), serving.__spec__.name
    try:
        with (
            patch.object(sys, "argv", [program, *arguments]),
            patch.object(constants, "HF_HUB_OFFLINE", True),
            redirect_stdout(printed),
            redirect_stderr(printed),
        ):
            serving.cli_main()
    except (Exception, SystemExit) as error:
        tail = "\n".join(printed.getvalue().splitlines()[-LINES_OF_A_FAILURE:])
        raise ServingError(f"{program} ended by {error!r}:\n{tail}") from error


def run_load(server: RunningServer, load: RandomLoad | SharedPrefixLoad) -> tuple[Served, Watch]:
    """Send a load to a server and watch the server meanwhile.

    Raises:
        ServingError: the load generator failed, or a request was not served whole.
    """
    out = server.model.parent / f"{server.side}.jsonl"
    out.unlink(missing_ok=True)
    with server.watched() as watch:
        generate(arguments_of(server, load, out))
    if not out.exists():
        raise ServingError("sglang.benchmark.serving wrote no result")
    served = parse(out.read_text())
    expected = load.num_prompts * load.output_len
    if (served.completed, served.output_tokens) != (load.num_prompts, expected):
        raise ServingError(
            f"{server.side}: {served.completed} of {load.num_prompts} requests served, "
            f"{served.output_tokens} of {expected} tokens"
        )
    return served, watch
