"""Hidden states and targets of traces on disk, in shards: computed once, read as often as a fit asks.

A folder holds ``settings.json``, which says what it was made with, and ``shard-*.safetensors``. A shard
has, trace after trace, ``hidden`` [n, d] in the model's dtype, ``targets`` [n] float32 and ``critical``
[n] bool of the tokens that count, ``ends`` [traces] int64, and the traces' keys in its metadata. A trace
is found by its key, which follows from its tokens: traces may be added, removed and reordered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sgl_dynts.training.whole_file import write_whole

SETTINGS_FILE = "settings.json"
SHARD_BYTES = 256 << 20
"""A shard is written once its states take so much; what an interruption loses is at most one trace."""
KEYS = "keys"


@dataclass(frozen=True)
class StateSettings:
    """What states and targets were made with; `distance` is 0 for targets that have none."""

    model: str
    dtype: str
    target: str
    distance: int


@dataclass(frozen=True)
class TraceStates:
    """The n tokens of one trace that count.

    ``hidden`` [n, d], states after the final norm; ``targets`` [n] float32, at least 0; ``critical``
    [n] bool, True for tokens that the problem's generator knows to matter.
    """

    hidden: Tensor
    targets: Tensor
    critical: Tensor

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Place:
    """Where a trace's tokens are: rows `start` to `end` of a shard, without the latter."""

    shard: Path
    start: int
    end: int


class StateStore:
    """A folder of shards."""

    def __init__(self, folder: Path, settings: StateSettings) -> None:
        """Open a folder, or make it.

        Raises:
            ValueError: the folder was made with other settings, or a shard in it cannot be read.
        """
        self.folder = folder
        self._agree_on(settings)
        self.places: dict[str, Place] = {}
        for shard in sorted(folder.glob("shard-*.safetensors")):
            self.places |= _places_in(shard)
        self._open: dict[Path, safe_open] = {}

    def add(self, keyed: Iterable[tuple[str, Callable[[], TraceStates]]]) -> Generator[str]:
        """Compute and store what is missing; yield each key once it is computed.

        What is computed is stored whatever ends the iteration, an error or an interruption.

        Args:
            keyed: key of each trace and what computes it.
        """
        waiting: dict[str, TraceStates] = {}
        try:
            for key, compute in keyed:
                if key not in self.places and key not in waiting:
                    waiting[key] = compute()
                    yield key
                if sum(states.hidden.nbytes for states in waiting.values()) >= SHARD_BYTES:
                    self._write(waiting)
                    waiting = {}
        finally:
            self._write(waiting)

    def read(self, key: str) -> TraceStates:
        """Return one trace's states and targets.

        Raises:
            KeyError: the trace was never added.
        """
        place = self.places[key]
        shard = self._open.setdefault(place.shard, _open_shard(place.shard))
        parts = (shard.get_slice(field.name)[place.start : place.end] for field in fields(TraceStates))
        return TraceStates(*parts)

    def length(self, key: str) -> int:
        """Return how many tokens of a trace count, without reading them."""
        return self.places[key].end - self.places[key].start

    @cached_property
    def hidden_size(self) -> int:
        """Width of the states; the store must not be empty."""
        place = next(iter(self.places.values()))
        return _open_shard(place.shard).get_slice("hidden").get_shape()[1]

    def _agree_on(self, settings: StateSettings) -> None:
        file = self.folder / SETTINGS_FILE
        if not file.exists():
            write_whole(file, json.dumps(asdict(settings), indent=1) + "\n")
            return
        found, wanted = json.loads(file.read_text()), asdict(settings)
        differing = [f"{name}={found.get(name)!r}" for name in wanted if found.get(name) != wanted[name]]
        if differing:
            raise ValueError(
                f"{file}: these states were made with {', '.join(differing)}, not with "
                f"{settings}; name another --work folder"
            )

    def _write(self, waiting: dict[str, TraceStates]) -> None:
        if not waiting:
            return
        number = len(list(self.folder.glob("shard-*.safetensors")))
        path = self.folder / f"shard-{number:05}.safetensors"
        tensors = {
            field.name: torch.cat([getattr(states, field.name).cpu() for states in waiting.values()])
            for field in fields(TraceStates)
        }
        tensors["ends"] = torch.tensor([len(states) for states in waiting.values()]).cumsum(0)
        unfinished = path.with_suffix(".unfinished")
        save_file(tensors, unfinished, metadata={KEYS: json.dumps(list(waiting))})
        unfinished.replace(path)
        self.places |= _places_in(path)


def _places_in(shard: Path) -> dict[str, Place]:
    file = _open_shard(shard)
    keys = json.loads((file.metadata() or {})[KEYS])
    ends = file.get_tensor("ends").tolist()
    starts = [0, *ends[:-1]]
    return {key: Place(shard, *rows) for key, *rows in zip(keys, starts, ends, strict=True)}


def _open_shard(shard: Path) -> safe_open:
    try:
        return safe_open(shard, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{shard}: not a readable shard ({error}); remove it to compute it again"
        ) from error
