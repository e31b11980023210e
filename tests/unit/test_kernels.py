"""Each Triton kernel against its torch twin in Triton's interpreter, and compiled for an H100.

The interpreter is chosen when a kernel is decorated, so it runs in a process of its own.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sgl_dynts import compaction, kernels
from sgl_dynts.score_pool import HIGHEST_SCORE, ScorePool
from sgl_dynts.window import Cut
from tests.kernel_cases import SCORES, check_compaction, check_scoring, random_cuts

H100 = GPUTarget("cuda", 90, 32)
B = kernels.BLOCK


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., None]]:
    """Call a function where kernels are interpreted; what it raises is raised here."""
    with (
        pytest.MonkeyPatch.context() as patch,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        patch.setenv("TRITON_INTERPRET", "1")
        assert pool.submit(os.getenv, "TRITON_INTERPRET").result() == "1"
        patch.undo()
        yield lambda call, *args: pool.submit(call, *args).result()


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize(("num_requests", "longest"), [(1, 40), (7, 60), (5, 3 * B)])
def test_random_ragged_batches_are_compacted_as_by_torch(interpreted, num_requests, longest, kind):
    for seed in range(2):
        interpreted(check_compaction, random_cuts(num_requests, longest, seed), kind, seed)


def test_hundreds_of_requests_are_compacted_in_one_launch_as_by_torch(interpreted):
    interpreted(check_compaction, random_cuts(300, 16, 0), "ties", 0)


@pytest.mark.parametrize(
    "cut",
    [
        Cut(3, 5, 0, 2),
        Cut(0, 1, 0, 1),
        Cut(0, B, B - 1, B),
        Cut(5, B + 1, B, B - 1),
        Cut(2, 2 * B, 1, 1),
        Cut(1, B - 1, 7, 1),
        Cut(1, 3 * B, B, 2, ((B, 2 * B + 1), (3 * B, 3 * B + 2))),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["distinct", "ties", "not_finite"])
def test_edges_of_one_request(interpreted, cut, kind):
    interpreted(check_compaction, [cut], kind, 1)


def test_a_request_that_keeps_all_beside_one_that_does_not(interpreted):
    """A plan leaves out what drops nothing; the kernel would serve it all the same."""
    interpreted(keep_all_of_one)


def keep_all_of_one() -> None:
    table = torch.tensor([[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]], dtype=torch.int32)
    sizes = torch.tensor([[2, 1], [0, 1], [3, 2], [3, 1], [1, 1], [0, 0]])
    dropped, freed = torch.tensor([0, 10, 20]), torch.zeros(1, dtype=torch.int64)
    scores = torch.tensor([0.0, 0, 1, 2, 0, 3, 3, 3, 3])
    kernels.compact_rows(table, scores, dropped, sizes, freed)
    assert table.tolist() == [[0, 0, 0, 0], [1, 3, 4, 0], [5, 6, 7, 8]]
    assert (freed.tolist(), dropped.tolist()) == ([2], [0, 11, 20])


def test_what_holds_for_the_twin_holds_for_the_kernels(interpreted):
    interpreted(run_the_twins_tests)


def run_the_twins_tests() -> None:
    from tests.unit import test_compaction

    test_compaction.apply_compaction = compaction.apply_with_kernels
    test_compaction.test_a_compacted_row_is_question_survivors_local_window_zeros()
    test_compaction.test_ties_keep_the_older_tokens()
    test_compaction.test_an_empty_selection_leaves_question_and_local_window()
    test_compaction.test_an_empty_question_is_served()
    test_compaction.test_scores_that_are_not_finite_never_beat_an_answer_token()
    test_compaction.test_answer_tokens_of_the_local_window_stay_protected_for_the_next_time()
    test_compaction.test_requests_of_unequal_length_do_not_touch_each_other()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "sizes"), [(1, (8, 5, 3)), (17, (24, 40, B)), (3, (8, 2 * B + 6, B + 1))]
)
def test_tokens_are_scored_as_by_torch(interpreted, num_tokens, sizes, dtype):
    interpreted(check_scoring, num_tokens, sizes, dtype, 0)


def test_softplus_is_exact_at_both_ends(interpreted):
    interpreted(compare_softplus)


def compare_softplus() -> None:
    values = torch.cat([torch.linspace(-100, 100, 3001), torch.tensor([-1e30, 0.0, 1e30, INF, -INF])])
    wanted = torch.nn.functional.softplus(values.double()).float()
    kernels.softplus_in_place(values)
    # NumPy and the GPU flush what is too small to matter otherwise than torch does.
    torch.testing.assert_close(values, wanted, rtol=2e-6, atol=1e-38)


INF = float("inf")


def test_a_score_that_is_not_finite_is_stored_as_the_pool_stores_it(interpreted):
    interpreted(compare_extremes)


def compare_extremes() -> None:
    states = torch.tensor([[INF, 0.0], [float("nan"), 0.0], [1.0, 1.0]])
    weight, slots = torch.tensor([[1.0, 0.5]]), torch.tensor([2, 3, 1])
    from sgl_dynts.scoring import score_tail

    wanted, pool = ScorePool(4, "cpu"), ScorePool(4, "cpu")
    wanted.write(slots, score_tail(states, weight))
    kernels.score_tail(states, weight, slots, pool.scores, HIGHEST_SCORE)
    torch.testing.assert_close(pool.scores, wanted.scores)
    assert pool.scores[2:].tolist() == [HIGHEST_SCORE, 0.0]


POINTERS = {
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
}


class Recorder:
    """Stands where a kernel stands and keeps what it is launched with."""

    def __init__(self, kernel) -> None:
        self.kernel = kernel
        self.launches: list[tuple[tuple, dict]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **options: self.launches.append((args, options))


def launch(name: str, dtype: torch.dtype) -> None:
    rows, pool = torch.zeros(2, 8, dtype=torch.int32), torch.zeros(9)
    longs = torch.zeros(6, 2, dtype=torch.int64)
    states = torch.zeros(3, 5, dtype=dtype)
    {
        "compact_rows_kernel": lambda: kernels.compact_rows(rows, pool, longs[0], longs, longs[1]),
        "protect_spans_kernel": lambda: kernels.protect_spans(rows, pool, longs[:3]),
        "softplus_kernel": lambda: kernels.softplus_in_place(states),
        "score_tail_kernel": lambda: kernels.score_tail(states, states[:1], longs[0], pool, 1e38),
    }[name]()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("compact_rows_kernel", torch.float32),
        ("protect_spans_kernel", torch.float32),
        ("softplus_kernel", torch.bfloat16),
        ("softplus_kernel", torch.float32),
        ("score_tail_kernel", torch.bfloat16),
        ("score_tail_kernel", torch.float32),
    ],
    ids=str,
)
def test_what_is_launched_compiles_for_an_h100_within_its_registers(name, dtype, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    recorder = Recorder(getattr(kernels, name))
    monkeypatch.setattr(kernels, name, recorder)
    launch(name, dtype)
    compile_within_limits(recorder, tmp_path)


def compile_within_limits(
    recorder: Recorder, folder: Path, most_shared: int = 48 * 1024
) -> tuple[SimpleNamespace, str]:
    """What was launched, compiled for an H100 without spilling, and what it uses of one."""
    compiled = compile_launch(recorder)
    assert re.search(r"^\.target sm_90", compiled.asm["ptx"], re.MULTILINE)
    assert compiled.metadata.shared <= most_shared
    (folder / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    usage = resource_usage(folder / "kernel.cubin")
    assert "STACK:0" in usage, usage
    assert "LOCAL:0" in usage, usage
    return compiled, usage


def compile_launch(recorder: Recorder) -> SimpleNamespace:
    """Compile ahead of time just what was launched; ``ptxas`` comes with triton."""
    ((args, keywords),) = recorder.launches
    names = recorder.kernel.arg_names
    constants = {name: value for name, value in keywords.items() if name in names}
    signature = dict(zip(names, (type_of(arg) for arg in args), strict=False))
    signature |= dict.fromkeys(constants, "constexpr")
    options = {name: value for name, value in keywords.items() if name not in names}
    return triton.compile(ASTSource(recorder.kernel, signature, constants), H100, options)


def type_of(arg: torch.Tensor | int) -> str:
    return "i32" if isinstance(arg, int) else POINTERS[arg.dtype]


def resource_usage(cubin) -> str:
    tool = knobs.nvidia.cuobjdump.path
    command = [tool, "--dump-resource-usage", str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
