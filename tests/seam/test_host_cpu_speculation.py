"""The host CPU's own operators for speculation do what loops over lists do."""

import random

import pytest
import torch

from sglang_dynts.boot.cpu import speculation as ours

# 0 ─┬─ 1 ─┬─ 3
#    │     └─ 4 ── 6
#    └─ 2 ── 5
PARENTS = [-1, 0, 0, 1, 1, 2, 4]
NUM = len(PARENTS)
CHILDREN = [1, 3, 5, -1, 6, -1, -1]
SIBLINGS = [-1, 2, -1, 4, -1, -1, -1]
DEPTHS = [0, 1, 1, 2, 2, 2, 3]


def ancestors(node: int) -> set[int]:
    """A node and all that it follows."""
    return {node} if PARENTS[node] < 0 else {node} | ancestors(PARENTS[node])


def mask() -> torch.Tensor:
    return torch.tensor([[at in ancestors(node) for at in range(NUM)] for node in range(NUM)])


def links(count: int) -> list[torch.Tensor]:
    return [torch.full((count, NUM), 77, dtype=torch.int64) for _ in range(3)]


def test_the_links_of_a_tree_are_read_from_its_mask():
    index, child, sibling = links(2)
    positions = torch.zeros(2 * NUM, dtype=torch.int64)
    both = torch.cat((mask().flatten(), torch.eye(NUM, dtype=torch.bool).flatten()))
    ours.reconstruct_indices(both, torch.tensor([10, 20]), positions, index, child, sibling, 2, NUM)
    assert positions.tolist() == [10 + depth for depth in DEPTHS] + [20] * NUM
    assert index.tolist() == [list(range(NUM)), list(range(NUM, 2 * NUM))]
    assert child.tolist() == [CHILDREN, [-1] * NUM]
    assert sibling.tolist() == [SIBLINGS, [-1] * NUM]


@pytest.mark.parametrize("mode", [0, 1])
def test_a_tree_is_built_from_what_the_draft_chose(mode):
    """Two branches a step: the drafts 0 and 1 first, then those that follow each of the step's best."""
    # parent_list: [root, drafts that were expanded]; drafts 2 and 3 follow draft 0, 4 and 5 draft 1, ...
    parent_list = torch.tensor([[-1, 0, 1, 3, 4]])
    chosen = torch.tensor([[0, 1, 2, 3, 4, 6]])  # 6: a draft of the third expanded one, which is 3
    index, child, sibling = links(1)
    positions = torch.zeros(NUM, dtype=torch.int64)
    room = NUM * NUM if mode else NUM * (NUM + 3)
    found = torch.zeros(room, dtype=torch.bool)
    ours.build_tree(
        parent_list, chosen, torch.tensor([3]), found, positions, index, child, sibling, 2, 3, NUM, mode
    )
    assert positions.tolist() == [3 + depth for depth in DEPTHS]
    assert (child.tolist(), sibling.tolist()) == ([CHILDREN], [SIBLINGS])
    tree = found.view(NUM, -1)
    assert torch.equal(tree[:, -NUM:], mask())
    assert tree[:, :-NUM].all()


def follow(drafts: list[int], choices: list[int], longest: int) -> list[int]:
    """The nodes of the path that the target's own choices take."""
    path = [0]
    while len(path) < longest:
        following = [n for n in range(NUM) if PARENTS[n] == path[-1] and drafts[n] == choices[path[-1]]]
        if not following:
            break
        path.append(following[0])
    return path


@pytest.mark.parametrize("seed", range(20))
def test_the_path_of_the_targets_choices_is_accepted(seed):
    draw = random.Random(seed)
    drafts = [[draw.randrange(3) for _ in range(NUM)] for _ in range(2)]
    choices = [[draw.randrange(3) for _ in range(NUM)] for _ in range(2)]
    index, child, sibling = links(2)
    for one in range(2):
        index[one] = torch.arange(NUM) + one * NUM
        child[one], sibling[one] = torch.tensor(CHILDREN), torch.tensor(SIBLINGS)
    predicts = torch.zeros(2 * NUM, dtype=torch.int32)
    accepted = torch.full((2, 3), -1, dtype=torch.int32)
    counts = torch.zeros(2, dtype=torch.int32)
    ours.verify_tree(
        predicts, accepted, counts, torch.tensor(drafts), index, child, sibling, torch.tensor(choices)
    )
    for one in range(2):
        path = follow(drafts[one], choices[one], 3)
        assert counts[one] == len(path) - 1
        assert accepted[one].tolist() == [n + one * NUM for n in path] + [-1] * (3 - len(path))
        assert [predicts[n + one * NUM].item() for n in path] == [choices[one][n] for n in path]


TABLE = torch.arange(40, dtype=torch.int32).view(4, 10) + 100


def test_slots_to_verify_and_to_draft_start_where_the_window_ends():
    read = ours.slots_to_write(
        req_pool_indices=torch.tensor([2, 1]),
        req_to_token=TABLE,
        start_offset=torch.tensor([3, 5]),
        end_offset=torch.tensor([5, 7]),
        batch_size=2,
        draft_token_num=2,
        device="cpu",
    )
    assert read.tolist() == [123, 124, 115, 116]
    out = torch.zeros(8, dtype=torch.int64)
    ours.draft_slots(torch.tensor([2, 1]), TABLE, torch.tensor([3, 5]), out, 2, 2)
    assert out.tolist() == [123, 124, 125, 126, 115, 116, 117, 118]


def test_slots_of_accepted_tokens_and_of_where_they_move():
    slots = torch.arange(8) + 50
    front, accepted = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    ours.front_slots(torch.tensor([2, 1]), slots, front)
    ours.accepted_slots(torch.tensor([[0, 3], [6, -1]]), slots, accepted, 4)
    assert front.tolist() == [50, 51, 54, 0]
    assert accepted.tolist() == [50, 53, 56, 0]


def test_the_newest_token_of_each_request():
    newest = torch.zeros(2, dtype=torch.int32)
    tokens = torch.tensor([[5, 6, 7], [8, 9, 0]])
    ours.newest_tokens(tokens, torch.tensor([3, 1]), newest, 3, 2)
    assert newest.tolist() == [7, 8]


def test_rows_grow_by_what_was_allocated():
    table = torch.zeros(3, 6, dtype=torch.int32)
    ends = torch.tensor([2, 1]), torch.tensor([4, 2])
    ours.write_rows(torch.tensor([2, 1]), table, *ends, torch.tensor([7, 8, 9]), 2)
    assert table.tolist() == [[0] * 6, [0, 9, 0, 0, 0, 0], [0, 0, 7, 8, 0, 0]]
