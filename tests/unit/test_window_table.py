from sgl_dynts.config import DynTSConfig
from sgl_dynts.thinking import ThinkingTracker, ThinkMarkers
from sgl_dynts.window import RequestWindow
from sgl_dynts.window_table import NEVER, UNKNOWN, WindowTable

CONFIG = DynTSConfig(budget=100, local_window=20, keep_ratio=0.5)  # k 40, T 60, period 40


def window() -> RequestWindow:
    return RequestWindow(CONFIG, 10, ThinkingTracker(ThinkMarkers((1,), (2,)), thinking=True))


def line(table: WindowTable, row: int) -> tuple[int, ...]:
    columns = (table.due, table.retained, table.period, table.answered, table.end)
    return tuple(int(column[row]) for column in columns)


def test_a_line_holds_what_the_window_says():
    table, its = WindowTable(4), window()
    table.set(2, its, max_seq_len=500)
    assert line(table, 2) == (100, 60, 40, 0, 500)
    output = [*range(10, 60), 2, 7, 8, *range(60, 200)]
    cut = its.early_cut(70, output, least=1)
    assert cut is not None
    its.record(cut)
    table.set(2, its, max_seq_len=500)
    assert (its.tracker.answer_len, its.dropped) == (10, 10)
    assert line(table, 2) == (110, 70, 40, 10, 490)


def test_a_new_row_asks_to_be_looked_at():
    table = WindowTable(4)
    table.set(1, window(), 500)
    table.set_without_window(3)
    assert table.due.tolist() == [UNKNOWN, 100, UNKNOWN, NEVER]
    table.forget([1, 3])
    assert table.due.tolist() == [UNKNOWN] * 4


def test_a_request_without_window_is_never_due_and_gives_nothing():
    table = WindowTable(2)
    table.set_without_window(1)
    assert line(table, 1)[:4] == (NEVER, NEVER, 1, 0)
