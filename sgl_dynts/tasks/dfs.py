"""A depth-first search and a question about its state: which nodes are on the stack after some steps.

A node is put on the stack early, stays untouched while the search is below it, and matters again when the
search comes back: so a reader of the trace must hold tokens that were of no use for long. Every text
is words joined by single spaces.
"""

import random
from dataclasses import dataclass
from itertools import pairwise

from sgl_dynts.tasks.problems import Problem

NODES = tuple(f"n{number}" for number in range(40))
MIN_NODES = 6
MAX_NODES = len(NODES)
SHARE_OF_STEPS = (0.5, 0.9)
"""The question is about a moment in this part of the search."""
EXTRA_EDGES = 0.3
"""Edges beside those of the tree, per node."""
RULES = (
    "Depth-first search. Start at {start} . At each step go to the first neighbour in the list that was "
    "not visited yet, or, if there is none, go back to the node that you came from. Going back is a step "
    "too. Neighbours : {neighbours} ; After {steps} steps, which nodes are on the path from {start} to "
    "where you are ? End with a line that says 'Answer:' and then these nodes in order."
)


@dataclass(frozen=True)
class Step:
    """One move, a visit (``forward``) or a return; ``stack`` is the path from the start after it."""

    stack: tuple[str, ...]
    forward: bool


def make_problem(seed: int, size: int) -> Problem:
    """Return the problem of a seed, the same one in every run.

    Args:
        seed: selects the problem among those of one size.
        size: nodes of the graph, `MIN_NODES` to `MAX_NODES`.

    Raises:
        ValueError: another size.
    """
    if not MIN_NODES <= size <= MAX_NODES:
        raise ValueError(f"size is {size} nodes; choose {MIN_NODES} to {MAX_NODES}")
    rng = random.Random(f"dfs-{size}-{seed}")
    graph = _draw_graph(rng, size)
    start = next(iter(graph))
    steps = search(graph, start)
    first, last = (round(share * len(steps)) for share in SHARE_OF_STEPS)
    count = rng.randrange(first, last + 1)
    told = steps[:count]
    stack = told[-1].stack
    neighbours = " ; ".join(f"{node} : {' '.join(around)}" for node, around in sorted(graph.items()))
    return Problem(
        id=f"dfs-{size}-{seed}",
        task=f"dfs-{size}",
        question=RULES.format(start=start, neighbours=neighbours, steps=count),
        answer=" ".join(stack),
        grader="words",
        trace=" ".join(_tell(number, step) for number, step in enumerate(told, start=1)),
        critical=tuple(f"to {node} from {before}" for before, node in pairwise(stack)),
    )


def search(graph: dict[str, list[str]], start: str) -> list[Step]:
    """Return all steps of a depth-first search until it is back at its start."""
    stack, visited, steps = [start], {start}, []
    while True:
        node = next((near for near in graph[stack[-1]] if near not in visited), None)
        if node is None:
            if len(stack) == 1:
                return steps
            stack.pop()
        else:
            visited.add(node)
            stack.append(node)
        steps.append(Step(tuple(stack), node is not None))


def _draw_graph(rng: random.Random, size: int) -> dict[str, list[str]]:
    """Draw a connected graph: a tree that grows long branches, and some edges more."""
    nodes = rng.sample(NODES, size)
    graph: dict[str, list[str]] = {node: [] for node in nodes}
    for index, node in enumerate(nodes[1:], start=1):
        recent = nodes[max(0, index - 3) : index]
        _join(graph, node, rng.choice(recent if rng.random() < 0.7 else nodes[:index]))
    for _ in range(round(EXTRA_EDGES * size)):
        one, other = rng.sample(nodes, 2)
        if other not in graph[one]:
            _join(graph, one, other)
    for around in graph.values():
        rng.shuffle(around)
    return graph


def _join(graph: dict[str, list[str]], one: str, other: str) -> None:
    graph[one].append(other)
    graph[other].append(one)


def _tell(number: int, step: Step) -> str:
    if step.forward:
        return f"step {number} : to {step.stack[-1]} from {step.stack[-2]} ;"
    return f"step {number} : nothing new , back at {step.stack[-1]} ;"
