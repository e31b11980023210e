"""What the served tokens must be with a set of tokens per KV head: each head's cache is edited by hand.

Every head of every layer keeps a list of the positions that its columns hold. Nothing of sgl_dynts is
used: attention is Hugging Face's own, queries are taken where it rotates them.
"""

import importlib
import math
import struct
import zlib
from collections.abc import Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load_file

from tests.e2e.hf_reference import (
    NUM_QUERIES,
    Expected,
    Reference,
    Windows,
    answers_in,
    chosen,
    question_len,
    redundancy,
    sizes,
    stretch,
)

Columns = list[list[list[int]]]
"""Of each layer and KV head the positions that its columns hold."""


class HeadReference(Reference):
    """Chooses for every layer and KV head by itself; made with ``attention="eager"``."""

    server_period = 48
    """Tokens between compactions by the server's own windows: 96 - 16 - floor(0.4 * 80)."""

    @torch.inference_mode()
    def generate_by_head(
        self,
        policy: str,
        prompt: list[int],
        served: list[int],
        windows: Windows,
        at: list[int],
        late: int,
    ) -> Expected:
        """The choice after each served token, where compactions are at the lengths ``at``."""
        config = self.model.config
        shape = (len(self.full), config.num_key_value_heads)
        tokens = prompt + served[:-1]
        question = question_len(prompt, self.markers)
        answers = answers_in(tokens, question, self.markers)
        first, last = len(prompt) + 1, len(prompt) + len(served) - 1
        cache, output, queries = self.new_cache(), [], {}
        seen: dict[int, list[torch.Tensor]] = {}
        received = [[[] for _ in range(shape[1])] for _ in range(shape[0])]
        self.born: dict[int, float] = {}
        held: Columns = [[[] for _ in range(shape[1])] for _ in range(shape[0])]
        start = compactions = dropped = 0
        while len(output) < len(served):
            fixed = set(answers)
            room = sizes(question, windows)[1] - len(held[0][0])
            end, compacts = stretch(start, len(tokens), first, last, room, answers, at, late)
            with self.rotated_queries() as rotated:
                out = self.model.model(
                    torch.tensor([tokens[start:end]]),
                    position_ids=torch.arange(start, end)[None],
                    past_key_values=cache,
                    use_cache=True,
                    attention_mask=self.masks(held[0][0], torch.arange(start, end)),
                    output_attentions=True,
                )
            attentions, asked = self.of_full(out.attentions), self.of_full(rotated)
            for position in range(start, end):
                seen[position] = [layer[0, :, position - start] for layer in attentions]
                queries[position] = [layer[0, :, position - start] for layer in asked]
            if policy == "hybrid":
                self.born |= zip(range(start, end), self.score(out.last_hidden_state[0]), strict=True)
            for layer, attention in enumerate(attentions):
                grouped = attention[0].sum(1).view(shape[1], -1, attention.shape[-1]).mean(1)
                for head in range(shape[1]):
                    held[layer][head] += range(start, end)
                    sums = received[layer][head] + [0.0] * (end - start)
                    received[layer][head] = [
                        a + b for a, b in zip(sums, grouped[head].tolist(), strict=True)
                    ]
            logits = self.logits(out.last_hidden_state[0, max(0, len(prompt) - 1 - start) :])
            here = served[len(output) :]
            output += [
                chosen(row, range(len(row)), one, self.rounding)
                for row, one in zip(logits, here, strict=False)
            ]
            start = end
            if not compacts or len(output) == len(served):
                continue
            judged = self.judge(policy, prompt[:question], held, received, seen, queries, cache, windows)
            compactions += 1
            dropped += len(held[0][0])
            self.edit(cache, held, received, judged, question, fixed, windows)
            dropped -= len(held[0][0])
        return Expected(output, compactions, dropped, held[0][0], [], [])

    def edit(self, cache, held, received, judged, question: int, answers: set[int], windows) -> None:
        """Keep each head's best candidates; answers stay in their columns, others move up in order."""
        layers: Any = cache.layers
        num = len(held[0][0]) - windows.local_window - question
        for layer in range(len(held)):
            orders = []
            for head, positions in enumerate(held[layer]):
                places = range(num)
                fixed = [place for place in places if positions[question + place] in answers]
                free = [place for place in places if place not in fixed]
                ranked = sorted(free, key=lambda place: (-judged[layer][head][place], place))
                chosen = iter(sorted(ranked[: sizes(question, windows)[0]]))
                stays = sorted(fixed + free[: sizes(question, windows)[0]])
                packed = [place if place in fixed else next(chosen) for place in stays]
                newest = range(question + num, len(positions))
                order = [*range(question), *(question + place for place in packed), *newest]
                held[layer][head] = [positions[column] for column in order]
                received[layer][head] = [received[layer][head][column] for column in order]
                orders.append(order)
            index, edited = torch.tensor(orders)[None, :, :, None], layers[self.full[layer]]
            for name in ("keys", "values"):
                old = getattr(edited, name)
                wide = index.expand(1, -1, -1, old.shape[-1])
                setattr(edited, name, old.gather(2, wide))

    def judge(self, policy, asked, held, received, seen, queries, cache, windows):
        """Scores [layer][head][candidate]."""
        question, width = len(asked), len(held[0][0])
        end = width - windows.local_window
        newest = [held[0][0][column] for column in range(width - 1 - NUM_QUERIES, width - 1)]
        moment = held[0][0][end - 1]
        layers: Any = cache.layers
        found = []
        for layer, heads in enumerate(held):
            place = self.full[layer]
            keys = layers[place].keys[0]
            row = []
            for head in range(len(heads)):
                if policy == "random_per_head":
                    scores = [draw(asked, moment, layer, head, place) for place in range(end - question)]
                elif policy == "h2o_per_head":
                    scores = received[layer][head][question:end]
                elif policy in ("calibrated", "hybrid"):
                    both = keys[head, : width - 1], layers[place].values[0, head, : width - 1]
                    position = moment + windows.local_window - 1
                    expected = self.expected(layer, head, len(heads), *both, position)[question:end]
                    if policy == "calibrated":
                        scores = shared(expected)
                    else:
                        born = [self.born[position] for position in heads[head][question:end]]
                        scores = added(expected, born)
                elif policy == "triattention_per_head":
                    judged = keys[head, question:end], torch.tensor(heads[head][question:end])
                    position = moment + windows.local_window - 1
                    scores = self.distant(layer, head, len(heads), *judged, position)
                elif policy == "snapkv_per_head":
                    scores = snapkv([seen[p][layer] for p in newest], head, len(heads), question, end)
                else:
                    rotated = [queries[p][layer] for p in newest]
                    scores = rkv(rotated, keys[head], head, len(heads), question, end, width)
                row.append(scores)
            found.append(row)
        return found

    def of_full(self, found: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What Hugging Face found in every layer with attention: of those with full attention."""
        return list(found) if len(found) == len(self.full) else [found[layer] for layer in self.full]

    @cached_property
    def statistics(self) -> dict[str, torch.Tensor]:
        """What the server found its queries to be like."""
        return load_file(self.folder / "dynts" / "calibration.safetensors")

    @property
    def rotation(self) -> tuple[torch.Tensor, float]:
        """Frequencies and attention factor of the layers with full attention."""
        rotary = self.model.model.rotary_emb
        own = "" if hasattr(rotary, "inv_freq") else "full_attention_"  # where sliding layers have others
        return getattr(rotary, f"{own}inv_freq"), getattr(rotary, f"{own}attention_scaling")

    def group(self, num_heads: int) -> int:
        """Queries of each of so many KV heads, in layers with full attention."""
        return self.statistics["mean"].shape[1] // num_heads

    def expected(self, layer, head, num_heads, keys, values, newest: int) -> list[float]:
        """What queries to come are expected to take of each token: the mean of a KV head's queries.

        Pairs of numbers are complex ones, which a rotation multiplies by exp(i w t).
        """
        frequencies, scaling = self.rotation
        half = len(frequencies)  # numbers after these pairs are not rotated
        times = max(1, round(self.server_period / 64))
        ahead = torch.tensor([1, 4, 16, 64, 128, 256, 384, 512]) * times + newest
        size = torch.tensor(scaling, dtype=torch.float32)
        rotation = torch.polar(size, ahead[:, None] * frequencies).mean(0)
        back = torch.complex(keys[:, :half], keys[:, half : 2 * half]) * rotation.conj()
        back = torch.cat([back.real, back.imag, keys[:, 2 * half :]], 1)
        group = self.group(num_heads)
        total = torch.zeros(len(keys))
        for query in range(head * group, (head + 1) * group):
            mean, covariance = (self.statistics[name][layer, query] for name in ("mean", "covariance"))
            spread = torch.einsum("nd,de,ne->n", back, covariance, back)
            logits = back @ mean / keys.shape[1] ** 0.5 + spread / keys.shape[1] / 2
            total += logits.softmax(0) / group
        return (total * values.norm(dim=1)).tolist()

    def distant(self, layer, head, num_heads, keys, positions, newest: int) -> list[float]:
        """What queries ask of each key at distances that double: the largest of a KV head's queries.

        A query's scores are deviations from their mean. Keys are turned back by their positions.
        """
        of_pairs, scaling = self.rotation
        turned = len(of_pairs)
        num_rest = keys.shape[1] // 2 - turned
        frequencies = torch.cat([of_pairs, torch.zeros(num_rest)]).double()
        factor = torch.tensor([scaling] * turned + [1.0] * num_rest).double()
        plain = complex_pairs(keys, turned) * torch.polar(1 / factor, -positions[:, None] * frequencies)
        distances = newest + 1 - positions[:, None] + 2 ** torch.arange(17)
        angles = distances[:, :, None] * frequencies
        group = self.group(num_heads)
        found = []
        for query in range(head * group, (head + 1) * group):
            mean = complex_pairs(self.statistics["mean"][layer, query], turned)
            lengths = self.statistics["modulus"][layer, query].double()
            cosines = (angles + (mean.angle() - plain.angle())[:, None]).cos().mean(1)
            met = mean.abs() * cosines + lengths - mean.abs()
            scores = (met * plain.abs() * factor**2).sum(1)
            found.append((scores - scores.mean()) / scores.std(correction=0))
        return torch.stack(found).max(0).values.tolist()

    @contextmanager
    def rotated_queries(self):
        """Collect each layer's queries [1, heads, n, d] as the model rotates them."""
        module: Any = importlib.import_module(type(self.model.model).__module__)
        original, collected = module.apply_rotary_pos_emb, []

        def rotate(*args, **kwargs):
            query, key = original(*args, **kwargs)
            collected.append(query)
            return query, key

        module.apply_rotary_pos_emb = rotate
        try:
            yield collected
        finally:
            module.apply_rotary_pos_emb = original


def complex_pairs(vectors: torch.Tensor, turned: int) -> torch.Tensor:
    """Numbers that are turned together, then the others half with half, [..., d / 2] complex128."""
    one, two = vectors[..., : 2 * turned].double().chunk(2, -1)
    other_one, other_two = vectors[..., 2 * turned :].double().chunk(2, -1)
    return torch.complex(torch.cat([one, other_one], -1), torch.cat([two, other_two], -1))


def shared(expected: list[float]) -> list[float]:
    """The logarithm of each candidate, and 0.3 for each deviation of its place from the middle one."""
    places = torch.arange(len(expected), dtype=torch.float64)
    standing = (places - places.mean()) / places.std(correction=0)
    return [math.log(value) + 0.3 * standing[place].item() for place, value in enumerate(expected)]


def added(expected: list[float], born: list[float]) -> list[float]:
    """Both as logarithms in standard deviations from their means, what was born counting twice."""
    one, other = (torch.tensor(values, dtype=torch.float64).log() for values in (expected, born))
    standard = [(part - part.mean()) / part.std(correction=0) for part in (one, other)]
    return (standard[0] + 2 * standard[1]).tolist()


def snapkv(rows: list[torch.Tensor], head: int, num_heads: int, question: int, end: int) -> list[float]:
    """Attention of the newest queries, summed, the mean of a KV head's queries, pooled over five."""
    group = len(rows[0]) // num_heads
    mine = torch.stack([row[head * group : (head + 1) * group, :end] for row in rows]).sum(0).mean(0)
    values = mine[question:].tolist()
    return [sum(values[max(0, at - 2) : at + 3]) / 5 for at in range(len(values))]


def rkv(
    asked: list[torch.Tensor],
    keys: torch.Tensor,
    head: int,
    num_heads: int,
    question: int,
    end: int,
    width: int,
) -> list[float]:
    """R-KV's Z: the largest logit of a KV head's queries, over all before the observing ones."""
    group = len(asked[0]) // num_heads
    older = keys[: width - 1 - NUM_QUERIES]
    total = torch.zeros(len(older))
    for query in asked:
        logits = query[head * group : (head + 1) * group] @ older.T / keys.shape[1] ** 0.5
        total += logits.max(0).values.softmax(0) / len(asked)
    values = total[question:end].tolist()
    repeats = redundancy(keys[question:end])
    return [0.1 * max(values[max(0, at - 3) : at + 4]) - 0.9 * repeats[at] for at in range(len(values))]


def draw(prompt: list[int], moment: int, layer: int, head: int, place: int) -> int:
    """Each number is hashed into the next: question and newest candidate, layer, head, place."""
    checksum = zlib.crc32(struct.pack(f"<{len(prompt)}q", *prompt))
    number = hashed((checksum << 31) + moment + layer)
    return hashed(hashed(number + head) + place)


def hashed(number: int) -> int:
    """SplitMix64's upper 24 bits."""
    bits = (1 << 64) - 1
    number = (number + 0x9E3779B97F4A7C15) & bits
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & bits
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & bits
    return (number ^ (number >> 31)) >> 40
