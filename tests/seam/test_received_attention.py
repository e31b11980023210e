"""Attention added up over all forwards, against a sum over every query of every request by itself."""

import math
from array import array
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sglang_dynts.forward import received_attention
from sglang_dynts.forward.counted_attention import count_attention
from sglang_dynts.forward.device_state import DeviceState, on_runner
from sglang_dynts.forward.received_attention import ReceivedAttention
from tests.seam.engine import Engine, request

NUM_HEADS, KV_HEADS, HEAD_DIM, NUM_LAYERS = 4, 2, 8, 3
SCALING = 0.3
NUM_SLOTS, NUM_ROWS, WIDTH = 120, 6, 60


class Runner:
    """What the runtime's table of model runners is keyed by."""


class Layer(RadixAttention):
    """An attention layer whose kernel does what all kernels do first: put K into the pool."""

    def forward(self, q, k, v, forward_batch, *args, **kwargs):
        forward_batch.pool.keys[self.layer_id][forward_batch.out_cache_loc] = k
        return q


class Pool:
    """K of every slot, by layer."""

    def __init__(self) -> None:
        self.keys = torch.randn(NUM_LAYERS, NUM_SLOTS, KV_HEADS, HEAD_DIM)

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.keys[layer_id]


class One:
    """A request: what it holds, and by token what every query gave it."""

    def __init__(self, row: int, question: int, policy: str) -> None:
        self.row = row
        self.question = question
        self.req = request(list(range(question)), {"dynts": {"policy": policy}})
        self.req.kv.req_pool_idx = row
        self.slots: list[int] = []
        self.keys: list[torch.Tensor] = []
        self.got: list[float] = []

    def see(self, queries: torch.Tensor) -> None:
        """One query [layers, query heads, head_dim] of the newest token, by the definition."""
        for layer in range(NUM_LAYERS):
            for head in range(NUM_HEADS):
                logits = [
                    float(queries[layer, head] @ key[layer, head // 2]) * SCALING for key in self.keys
                ]
                total = sum(math.exp(logit) for logit in logits)
                for at, logit in enumerate(logits):
                    self.got[at] += math.exp(logit) / total / NUM_LAYERS / NUM_HEADS


class World:
    """Forwards and compactions over one pool of slots, with the sums by hand beside them."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.pool = Pool()
        self.table = torch.zeros(NUM_ROWS, WIDTH, dtype=torch.int32)
        self.free = list(range(NUM_SLOTS - 1, 0, -1))
        self.layers = [
            Layer(NUM_HEADS, HEAD_DIM, SCALING, KV_HEADS, layer_id=n) for n in range(NUM_LAYERS)
        ]
        self.received = ReceivedAttention(self.layers, NUM_SLOTS, self.pool, self.table)
        self.runner = Runner()
        self.device = DeviceState(NUM_SLOTS, self.table)
        self.device.received = self.received
        on_runner(self.runner).state = self.device

    def begin(self, mode: ForwardMode, *new: tuple[One, int]) -> tuple:
        """Give each request so many new tokens; returns the forward batch with its queries and keys."""
        slots: list[int] = []
        queries = torch.randn(sum(num for _, num in new), NUM_LAYERS, NUM_HEADS, HEAD_DIM)
        keys = torch.randn(len(queries), NUM_LAYERS, KV_HEADS, HEAD_DIM)
        for one, num in new:
            for _ in range(num):
                one.slots.append(self.free.pop())
                one.keys.append(keys[len(slots)])
                one.got.append(0.0)
                one.see(queries[len(slots)])
                slots.append(one.slots[-1])
            self.table[one.row, : len(one.slots)] = torch.tensor(one.slots, dtype=torch.int32)
        batch = SimpleNamespace(
            forward_mode=mode,
            seq_lens_cpu=torch.tensor([len(one.slots) for one, _ in new]),
            extend_seq_lens_cpu=None if mode.is_decode() else [num for _, num in new],
            out_cache_loc=torch.tensor(slots),
            pool=self.pool,
            rids=[one.req.rid for one, _ in new],
        )
        self.device.question_lens.update({one.req: one.question for one, _ in new})
        reqs = SimpleNamespace(reqs=[one.req for one, _ in new])
        assert count_attention(batch, None, reqs, self.runner) is None
        return batch, queries, keys

    def forward(self, mode: ForwardMode, *new: tuple[One, int]) -> None:
        batch, queries, keys = self.begin(mode, *new)
        copy = SimpleNamespace(**vars(batch))  # as SGLang's eager runner makes one
        for layer, module in enumerate(self.layers):
            module(queries[:, layer].flatten(1), keys[:, layer], keys[:, layer], copy)

    def compact(self, one: One, keep: list[int]) -> None:
        """Keep these columns; the freed slots go to whoever asks first."""
        self.free += [slot for at, slot in enumerate(one.slots) if at not in keep]
        one.slots = [one.slots[at] for at in keep]
        one.keys = [one.keys[at] for at in keep]
        one.got = [one.got[at] for at in keep]
        self.table[one.row] = 0
        self.table[one.row, : len(keep)] = torch.tensor(one.slots, dtype=torch.int32)

    def assert_sums(self, *some: One) -> None:
        """The question's own sums are not compared: its queries are not counted."""
        for one in some:
            found = self.received.read(torch.tensor(one.slots[one.question :])).tolist()
            assert found == pytest.approx(one.got[one.question :], rel=1e-4)


@pytest.fixture
def world(serve) -> World:
    serve("--attention-backend", "dynts", "--dynts-observe-queries", "8", "--dynts-host-memory-gb", "0")
    return World()


DECODE, EXTEND, MIXED = ForwardMode.DECODE, ForwardMode.EXTEND, ForwardMode.MIXED


def test_decode_steps_of_a_batch_add_up_for_each_request(world):
    one, two = One(1, 5, "h2o"), One(2, 3, "h2o")
    world.forward(EXTEND, (one, 5), (two, 3))
    for _ in range(6):
        world.forward(DECODE, (two, 1), (one, 1))
    world.assert_sums(one, two)
    assert sum(one.got[5:]) > 1


def test_a_batch_of_more_tokens_than_are_read_at_once_is_split(world, monkeypatch):
    """20 tokens at a time: requests of 6 and 7 tokens share a block, those of 9, 11 and 12 do not."""
    monkeypatch.setattr(received_attention, "TOKENS_AT_ONCE", 20)
    some = [One(row, question, "h2o") for row, question in enumerate((9, 3, 6, 8, 4), start=1)]
    world.forward(EXTEND, *((one, one.question) for one in some))
    for _ in range(3):
        world.forward(DECODE, *((one, 1) for one in some))
    assert [len(block.slots) for block in world.received._counted] == [2, 1, 1, 1]
    world.assert_sums(*some)


def test_sums_survive_a_compaction_and_a_reused_slot_begins_at_nothing(world):
    one, two = One(1, 4, "h2o"), One(2, 4, "h2o")
    world.forward(EXTEND, (one, 4), (two, 4))
    for _ in range(9):
        world.forward(DECODE, (one, 1), (two, 1))
    freed = set(one.slots)
    world.compact(one, [0, 1, 2, 3, 5, 8, 11, 12])
    for _ in range(5):
        world.forward(DECODE, (one, 1), (two, 1))
    assert set(two.slots) & freed
    world.assert_sums(one, two)
    world.compact(one, [0, 1, 2, 3, 4, 6, 10, 12])
    world.forward(DECODE, (two, 1), (one, 1))
    world.assert_sums(one, two)


def test_a_prompt_in_chunks_and_decodes_in_one_forward_are_told_apart(world):
    one, two = One(1, 3, "h2o"), One(3, 9, "h2o")
    world.forward(EXTEND, (one, 3))
    world.forward(MIXED, (two, 4), (one, 1))
    world.forward(MIXED, (two, 5), (one, 1))
    world.forward(DECODE, (two, 1), (one, 1))
    world.assert_sums(one, two)


def test_thinking_that_a_prompt_continues_is_counted_from_the_question_on(world):
    before, one = One(1, 2, "h2o"), One(2, 3, "h2o")
    world.forward(EXTEND, (before, 2))
    for _ in range(6):
        world.forward(DECODE, (before, 1))
    world.free += before.slots  # what these got is not to be counted for their next owner
    one.req.origin_input_ids.extend(range(3, 9))
    world.forward(EXTEND, (one, 5))
    world.forward(EXTEND, (one, 4))
    world.forward(DECODE, (one, 1))
    world.assert_sums(one)


def test_a_request_that_is_computed_again_counts_its_outputs_in_the_prefill(world):
    before = One(1, 4, "h2o")
    world.forward(EXTEND, (before, 4))
    for _ in range(7):
        world.forward(DECODE, (before, 1))
    world.free += before.slots
    again = One(2, 4, "h2o")
    world.forward(EXTEND, (again, 3))
    world.forward(EXTEND, (again, 6))
    world.forward(EXTEND, (again, 2))
    world.forward(DECODE, (again, 1))
    world.assert_sums(again)


def test_a_shared_question_does_not_mix_what_two_requests_count(world):
    one = One(1, 4, "h2o")
    world.forward(EXTEND, (one, 4))
    world.forward(DECODE, (one, 1))
    two = One(2, 6, "h2o")
    two.slots, two.keys, two.got = one.slots[:4], one.keys[:4], [0.0] * 4
    world.forward(MIXED, (two, 2), (one, 1))
    for _ in range(4):
        world.forward(DECODE, (one, 1), (two, 1))
    world.assert_sums(one, two)


def test_nobody_else_is_counted(world):
    one, other = One(1, 3, "snapkv"), One(2, 3, "h2o")
    world.forward(EXTEND, (one, 3), (other, 3))
    for _ in range(3):
        world.forward(DECODE, (one, 1), (other, 1))
    world.assert_sums(other)
    assert world.received.read(torch.tensor(one.slots)).tolist() == [0.0] * 6


def test_a_forward_that_was_not_announced_counts_nothing(world):
    one = One(1, 2, "h2o")
    world.forward(EXTEND, (one, 2))
    world.forward(DECODE, (one, 1))
    stranger = SimpleNamespace(out_cache_loc=torch.tensor([0]), pool=world.pool, rids=None)
    query, key = torch.randn(1, NUM_HEADS * HEAD_DIM), torch.randn(1, KV_HEADS, HEAD_DIM)
    for module in world.layers:
        module(query, key, key, stranger)
    world.assert_sums(one)


def test_a_forward_whose_layers_do_not_run_here_is_noticed(world):
    one = One(1, 2, "h2o")
    world.forward(EXTEND, (one, 2))
    world.begin(DECODE, (one, 1))
    with pytest.raises(AssertionError, match="_num_done=0 of 3 layers"):
        world.received.read(torch.tensor(one.slots))
    with pytest.raises(AssertionError, match="_num_done=0 of 3 layers"):
        world.begin(DECODE, (one, 1))


def test_an_idle_forward_and_a_server_that_counts_nothing_are_left_alone(world):
    idle = SimpleNamespace(forward_mode=ForwardMode.IDLE)
    count_attention(idle, None, None, world.runner)
    world.device.received = None
    count_attention(SimpleNamespace(forward_mode=DECODE), None, None, world.runner)
    count_attention(SimpleNamespace(forward_mode=DECODE), None, None, Runner())


def test_a_compaction_keeps_what_received_most(serve):
    """Budget 20, local window 6: of candidates 4..13 the three that received most stay."""
    serve("--attention-backend", "dynts", "--dynts-observe-queries", "8", "--dynts-host-memory-gb", "0")
    engine = Engine()
    engine.device.received = ReceivedAttention([], 201, engine.kv, engine.rows.req_to_token)
    req = engine.prefill([50, 51, 52, 53], {"dynts": {"policy": "h2o"}})
    engine.decode(req, list(range(100, 115)))
    row = engine.rows.req_to_token[req.kv.req_pool_idx].long()
    most = row[[6, 9, 12]].tolist()
    engine.device.received.received[row[4:14]] = 0.5
    engine.device.received.received[most] = 2.0
    newest = row[14:19].tolist()
    engine.decode(req, [115])
    held = engine.rows.req_to_token[req.kv.req_pool_idx, : req.kv.kv_allocated_len].tolist()
    assert held[4:7] == most
    assert held[7:12] == newest
    assert req.output_ids == array("q", range(100, 116))
