"""Random work for the kernel that moves heads, on any device; compares it with its torch twin.

The unit tests run it in Triton's interpreter, the GPU tests on the device.
"""

from dataclasses import dataclass, field, replace

import torch

from sgl_dynts.head_sets import HeadBuffers, HeadMoves, move_with_torch, plan_moves

BYTES = torch.uint8
KV = ((torch.bfloat16, 16), (torch.bfloat16, 16))
MIXED = (
    *((torch.bfloat16, 16), (torch.float8_e4m3fn, 16), (torch.float32, 24), (torch.float32,)),
    *((BYTES, 7), (BYTES, 3, 2), (BYTES, 200), (torch.bfloat16, 5)),
)
"""dtype of each tensor of a layer, and the shape of one head's token: 4 to 200 bytes, words of 1 to 8."""


@dataclass(frozen=True)
class Moved:
    """Sizes of one random case; ``fixed`` candidates never drop."""

    num: int
    num_kept: int
    fixed: int = 0
    layers: int = 2
    heads: int = 2
    ties: bool = False
    tensors: tuple = field(default=MIXED, repr=False)


def random_buffers(case: Moved, draw: torch.Generator) -> list[list[torch.Tensor]]:
    """[num_slots, heads, ...] per layer, of random bytes; from the second layer on in no word's place."""
    num_slots = 2 * case.num + 3
    layers = []
    for layer in range(case.layers):
        tensors = []
        for dtype, *rest in case.tensors:
            shape, offset = (num_slots, case.heads, *rest), layer * dtype.itemsize
            num_bytes = torch.empty(shape, dtype=dtype, device="meta").nbytes
            raw = torch.randint(256, (offset + num_bytes,), dtype=BYTES, generator=draw)
            tensors.append(raw[offset:].view(dtype).view(shape))
        layers.append(tensors)
    return layers


def random_moves(case: Moved, draw: torch.Generator) -> HeadMoves:
    scores = torch.rand(case.layers, case.heads, case.num, generator=draw)
    fixed = torch.zeros(case.num, dtype=torch.bool)
    fixed[torch.randperm(case.num, generator=draw)[: case.fixed]] = True
    slots = torch.randperm(2 * case.num + 3, generator=draw)[: case.num]
    return plan_moves(scores.round() if case.ties else scores, fixed, slots, case.num_kept)


def bytes_of(layers) -> list[torch.Tensor]:
    return [tensor.cpu().contiguous().view(BYTES) for tensors in layers for tensor in tensors]


def check_moves(case: Moved, seed: int, move, device: str = "cpu") -> None:
    """Compare byte by byte; what no target names is as it was."""
    draw = torch.Generator().manual_seed(seed)
    moves, layers = random_moves(case, draw), random_buffers(case, draw)
    wanted = [[tensor.clone() for tensor in tensors] for tensors in layers]
    before = bytes_of(wanted)
    move_with_torch(moves, wanted)
    buffers = HeadBuffers.of([[tensor.to(device) for tensor in tensors] for tensors in layers])
    on_device = {name: getattr(moves, name).to(device) for name in ("slots", "targets", "sources")}
    move(replace(moves, **on_device), buffers)

    targets = moves.slots[moves.targets]
    for found, one, old in zip(bytes_of(buffers.layers), bytes_of(wanted), before, strict=True):
        assert torch.equal(found, one)
        found[targets] = old[targets]
        assert torch.equal(found, old)
