"""What a demo shows: a trace while it grows, its compactions, and two requests side by side."""

from collections.abc import Callable, Iterator

from sgl_dynts.demo import ledger
from sgl_dynts.demo.serving import DemoError, Reply

CLAUSES_SHOWN = 4
END_OF_ENTRY = "done"


def entries_of(reply: Reply) -> list[str]:
    """Return the finished entries of a ledger's trace, remarks shortened."""
    return [_shorten(entry) for entry in _finished_entries(reply.text)]


def follow(replies: Iterator[Reply], lines_of: Callable[[Reply], list[str]] = entries_of) -> Reply:
    """Print a trace while it grows, line by line, and its compactions; return the reply.

    Args:
        replies: the growing reply.
        lines_of: the lines of a reply that grow no further.
    """
    trace = Trace(lines_of)
    for reply in replies:
        trace.grow(reply)
    return trace.end()


class Trace:
    """The growing trace on the screen."""

    def __init__(self, lines_of: Callable[[Reply], list[str]]) -> None:
        """Start with nothing shown."""
        self.lines_of = lines_of
        self.num_shown = 0
        self.before: Reply | None = None

    def grow(self, reply: Reply) -> None:
        """Show the lines and compactions that are new in a reply."""
        before, self.before = self.before, reply
        if before is not None and reply.window["compactions"] > before.window["compactions"]:
            self._show_compaction(before, reply)
        for line in self.lines_of(reply)[self.num_shown :]:
            self.num_shown += 1
            print(f"  {line:<70}{reply.window['window_len']:>16}", flush=True)

    def end(self) -> Reply:
        """Return the whole reply.

        Raises:
            DemoError: there is none.
        """
        if self.before is None:
            raise DemoError("the server sent no reply")
        return self.before

    def _show_compaction(self, before: Reply, reply: Reply) -> None:
        dropped = reply.window["dropped_tokens"] - before.window["dropped_tokens"]
        what = f"-- compaction {reply.window['compactions']}: {dropped} tokens dropped "
        print(f"  {what:-<70}{reply.window['window_len']:>16}", flush=True)


def _finished_entries(text: str) -> list[list[str]]:
    """Split a trace into its entries' words; what follows the last finished entry is left out."""
    entries: list[list[str]] = [[]]
    words = text.partition(ledger.END_THINK)[0].split()
    for word in words:
        closes = len(entries[-1]) > 0 and entries[-1][-1] == END_OF_ENTRY
        entries[-1].append(word)
        if closes:
            entries.append([])
    return entries[:-1]


def _shorten(entry: list[str]) -> str:
    clauses = " ".join(entry).split(" ; ")
    return " ; ".join(clauses[:CLAUSES_SHOWN]) + " ; ..."


def answer_of(reply: Reply) -> str:
    """Return what stands after the thinking."""
    words = reply.text.rpartition(ledger.END_THINK)[2].split()
    return " ".join(word for word in words if word != ledger.EOS)


def print_comparison(problem: ledger.Problem, reply: Reply, full: Reply) -> None:
    """Print what one request held with DynTS and without."""
    print_held(
        reply,
        full,
        ("answer", _verdict(problem, reply), _verdict(problem, full)),
        ("entries as expected", _num_entries_right(problem, reply), _num_entries_right(problem, full)),
    )


def print_held(reply: Reply, full: Reply, *first: tuple[str, str, str]) -> None:
    """Print two requests' numbers side by side, with DynTS and without, ``first`` above the others."""
    ours, all_of_it = reply.window, full.window
    peak, full_peak = ours["peak_window_len"], all_of_it["peak_window_len"]
    rows = (
        ("", "DynTS", "full cache"),
        *first,
        ("question tokens", ours["question_len"], all_of_it["question_len"]),
        ("tokens seen", reply.seq_len, full.seq_len),
        ("compactions", ours["compactions"], all_of_it["compactions"]),
        ("tokens dropped", ours["dropped_tokens"], all_of_it["dropped_tokens"]),
        ("KV tokens held, at the end", ours["window_len"], all_of_it["window_len"]),
        ("KV tokens held, at most", peak, full_peak),
    )
    for name, left, other in rows:
        print(f"  {name:<30}{left:>12}{other:>14}")
    print(
        f"  At most {100 * peak / full_peak:.0f} % of the full cache (budget {ours['budget']}, "
        f"local window {ours['local_window']}, keep ratio {ours['keep_ratio']})."
    )


def _verdict(problem: ledger.Problem, reply: Reply) -> str:
    return "right" if ledger.is_correct(problem, reply.text) else "wrong"


def _num_entries_right(problem: ledger.Problem, reply: Reply) -> str:
    expected = _finished_entries(problem.trace)
    written = _finished_entries(reply.text)
    right = sum(pair[0] == pair[1] for pair in zip(expected, written, strict=False))
    return f"{right} of {len(expected)}"


def print_question(question: str) -> None:
    """Print the constants, four steps a line, and the query."""
    given, *steps = question.partition(" ? ")[0].split(" #")
    print(f"  {given}")
    for first in range(0, len(steps), 5):
        print("  " + "   ".join(f"#{step}" for step in steps[first : first + 5]))
    print(f"  ? {question.partition(' ? ')[2]}")
