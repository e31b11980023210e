"""What the demo shows: a trace while it grows, its compactions, and two requests side by side."""

from collections.abc import Iterator
from dataclasses import dataclass

from sgl_dynts.demo import ledger

CLAUSES_SHOWN = 4
END_OF_ENTRY = "done"


class DemoError(RuntimeError):
    """The demo cannot go on; the message is for the user."""


@dataclass(frozen=True)
class Reply:
    """What the server answered: the text and its ``meta_info``."""

    text: str
    meta: dict

    @property
    def window(self) -> dict:
        """The request's DynTS numbers."""
        return self.meta["dynts"]

    @property
    def seq_len(self) -> int:
        """Tokens whose KV was computed: held now or dropped."""
        return self.window["window_len"] + self.window["dropped_tokens"]


def follow(replies: Iterator[Reply]) -> Reply:
    """Print a trace while it grows, an entry per line, and its compactions; return the reply."""
    trace = Trace()
    for reply in replies:
        trace.grow(reply)
    return trace.end()


class Trace:
    """The growing trace on the screen."""

    def __init__(self) -> None:
        """Start with nothing shown."""
        self.num_shown = 0
        self.before: Reply | None = None

    def grow(self, reply: Reply) -> None:
        """Show the entries and compactions that are new in a reply."""
        before, self.before = self.before, reply
        if before is not None and reply.window["compactions"] > before.window["compactions"]:
            self._show_compaction(before, reply)
        for entry in _finished_entries(reply.text)[self.num_shown :]:
            self.num_shown += 1
            print(f"  {_shorten(entry):<70}{reply.window['window_len']:>16}", flush=True)

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
    ours, all_of_it = reply.window, full.window
    peak, full_peak = ours["peak_window_len"], all_of_it["peak_window_len"]
    rows = (
        ("", "DynTS", "full cache"),
        ("answer", _verdict(problem, reply), _verdict(problem, full)),
        ("entries as expected", _num_entries_right(problem, reply), _num_entries_right(problem, full)),
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
