"""Decode attention over slots as compactions leave them, against slots as stock SGLang hands them out.

    python -m benchmark.gpu.attention --shape qwen-7b --batch 1 8 32

No server. Both sides read windows of the same length, one token short of the budget, with the same
kernel: FlashInfer's paged decode from a CUDA graph, as SGLang's backend calls it; on a CPU, torch
instead. What differs is where the tokens lie. SGLang's own allocator places them, one token of every
request per step, in a pool twice as large as the largest batch needs; on DynTS's side the windows have
been compacted --rounds times before, survivors chosen at random. Reads go through --layers buffers in
turn, so that a GPU's cache holds none of them. Reported is the speed of reading keys and values as a
share of the speed of a copy on the same device.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.attention.flashinfer_backend import should_use_tensor_core
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator

from benchmark.gpu.kernels import REPEATS, compaction_round, copy_rate
from benchmark.gpu.report import Case, Cell, device_name, parser_with_out, report
from benchmark.gpu.targets import SHARE_OF_COPY
from benchmark.gpu.timing import captured, milliseconds, nothing, this_device
from benchmark.harness.shapes import CONFIGS, WINDOWS, gpu_named, roofline_shape
from benchmark.simulation.job import DYNTS, SIDES, STOCK
from sgl_dynts.compaction import apply_with_torch
from sgl_dynts.config import DynTSConfig
from sgl_dynts.roofline import ModelShape
from sgl_dynts.score_pool import ScorePool

BENCH = "attention"
NO_CACHE: Any = None
"""Which SGLang's allocator keeps and does not need to hand out slots."""
WORKSPACE_BYTES = 384 << 20
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""queries [batch, num_heads, head_dim], keys and values [num_slots, num_kv_heads, head_dim]; gives one
result of the queries' shape."""


def main() -> None:
    """Measure and report."""
    args = parse()
    device = this_device()
    rate = copy_rate(args.copy_mib << 20, device, args.repeats)
    report(args, [cell_of(args, device, rate, batch) for batch in args.batch], f"gpu.{BENCH}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_with_out(f"gpu.{BENCH}", __doc__)
    add = parser.add_argument
    add("--shape", default="qwen-7b", choices=sorted(CONFIGS))
    add("--batch", nargs="+", type=int, default=[1, 8, 32], help="requests that decode at once")
    add("--rounds", type=int, default=6, help="compactions before; 6 as of 16k tokens")
    add("--layers", type=int, default=16, help="buffers of keys and values")
    add("--copy-mib", type=int, default=1024, help="size of the copy")
    add("--repeats", type=int, default=REPEATS)
    return parser.parse_args()


def cell_of(args: argparse.Namespace, device: torch.device, copy_speed: float, batch: int) -> Cell:
    """Time both sides' slots at one batch; the roofline says that reading is as fast as copying."""
    windows = WINDOWS[args.shape]
    pool = 2 * max(args.batch) * windows.budget
    slots = {
        STOCK: slots_after(windows, batch, pool, rounds=0),
        DYNTS: slots_after(windows, batch, pool, rounds=args.rounds),
    }
    shape, dtype = roofline_shape(args.shape), getattr(torch, CONFIGS[args.shape]["dtype"])
    token_bytes = 2 * shape.num_kv_heads * shape.head_dim * dtype.itemsize
    num_bytes = args.layers * slots[STOCK].numel() * token_bytes
    shares = {}
    for side in SIDES:
        run = all_layers(shape, slots[side].to(device), pool, args.layers, dtype)
        spent = milliseconds(captured(run, device), nothing, device, args.repeats)
        shares[side] = num_bytes / spent * 1e3 / copy_speed
    known = device.type == "cuda" and gpu_named(device_name()) is not None
    case = Case(BENCH, args.shape, batch, windows.budget - 1)
    return case.cell(SHARE_OF_COPY, shares, dict.fromkeys(SIDES, 1.0) if known else None)


def slots_after(windows: DynTSConfig, batch: int, pool_tokens: int, rounds: int) -> torch.Tensor:
    """Return the slots of windows one token short of the budget, after so many compactions.

    Args:
        windows: of every request.
        batch: requests that decode together.
        pool_tokens: slots of the pool, slot 0 not counted.
        rounds: compactions of each.

    Returns:
        [batch, budget - 1] int32, on the CPU.
    """
    allocator = TokenToKVPoolAllocator(pool_tokens, torch.int64, "cpu", NO_CACHE, need_sort=False)
    scores = ScorePool(pool_tokens + 1, "cpu")
    scores.scores.uniform_(generator=torch.Generator().manual_seed(0))
    plan = compaction_round(windows, batch, windows.budget)
    question_len = plan.cuts[0].first
    table = torch.zeros(batch + 1, windows.budget, dtype=torch.int32)
    dropped = torch.zeros(batch + 1, dtype=torch.int64)
    table[1:, :question_len] = taken(allocator, batch * question_len).view(batch, question_len)
    length = question_len
    for _ in range(rounds):
        decode(allocator, table, length, windows.budget)
        allocator.free(apply_with_torch(plan, table, scores, dropped))
        length = windows.budget - plan.cuts[0].num_dropped
    decode(allocator, table, length, windows.budget - 1)
    return table[1:, : windows.budget - 1].contiguous()


def taken(allocator: TokenToKVPoolAllocator, count: int) -> torch.Tensor:
    """Return so many slots of a pool that has them."""
    slots = allocator.alloc(count)
    assert slots is not None, (count, allocator.available_size())
    return slots


def decode(allocator: TokenToKVPoolAllocator, table: torch.Tensor, start: int, end: int) -> None:
    """Give every request a slot per step, from one length to another."""
    for length in range(start, end):
        table[1:, length] = taken(allocator, len(table) - 1)


def all_layers(
    shape: ModelShape, slots: torch.Tensor, pool_tokens: int, layers: int, dtype: torch.dtype
) -> Callable[[], None]:
    """Return decode attention of one step over so many layers' random keys and values."""
    size = (layers, pool_tokens + 1, shape.num_kv_heads, shape.head_dim)
    keys, values = (torch.randn(size, device=slots.device, dtype=dtype) for _ in range(2))
    queries = torch.randn(len(slots), shape.num_heads, shape.head_dim, device=slots.device, dtype=dtype)
    attend = flashinfer_decode(shape, slots, dtype) if slots.is_cuda else torch_decode(slots)

    def run() -> None:
        for layer in range(layers):
            attend(queries, keys[layer], values[layer])

    return run


def flashinfer_decode(shape: ModelShape, slots: torch.Tensor, dtype: torch.dtype) -> Attention:
    """Return FlashInfer's paged decode over these slots, planned for CUDA graphs as SGLang plans it.

    Args:
        shape: its heads.
        slots: [batch, window_len] int32 on a GPU.
        dtype: of queries, keys and values.
    """
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    batch, window_len = slots.shape
    indptr = window_len * torch.arange(batch + 1, dtype=torch.int32, device=slots.device)
    last_page_len = torch.ones(batch, dtype=torch.int32, device=slots.device)
    indices = slots.flatten()
    wrapper = BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=slots.device),
        "NHD",
        use_cuda_graph=True,
        use_tensor_cores=should_use_tensor_core(dtype, shape.num_heads, shape.num_kv_heads),
        paged_kv_indptr_buffer=indptr.clone(),
        paged_kv_indices_buffer=indices.clone(),
        paged_kv_last_page_len_buffer=last_page_len.clone(),
    )
    heads = (shape.num_heads, shape.num_kv_heads, shape.head_dim)
    wrapper.plan(indptr, indices, last_page_len, *heads, 1, data_type=dtype, q_data_type=dtype)
    return lambda queries, keys, values: wrapper.run(queries, (keys, values))


def torch_decode(slots: torch.Tensor) -> Attention:
    """Return the same in torch on any device: the window gathered, then attention."""
    window = slots.long()

    def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        own_keys, own_values = keys[window].transpose(1, 2), values[window].transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(
            queries[:, :, None], own_keys, own_values, enable_gqa=True
        )[:, :, 0]

    return attend


if __name__ == "__main__":
    main()
