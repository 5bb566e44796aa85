"""Continues prompts that begin alike, their beginnings read once and short answers laid side by side; knows no text.

Shapes: n prompts that go on together, s positions in the one row that holds them all, v vocab_size.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gpt.evaluation.batching.data_parallel import data_parallel_requests, gather_by_index
from gpt.evaluation.batching.prefix_tree import Plan, Read, batches_by_length
from gpt.evaluation.batching.scoring import ROW_TOKENS, Reader
from gpt.inference.generation import Continuation, PaddedBatch, Watch, check_prompts, decode, generate
from gpt.inference.kv_cache import KeyValueCache
from gpt.inference.model import ForwardInputs, InferenceModel
from gpt.inference.sampling import GREEDY, Sampling

# New tokens of a prompt up to which all go on in one row. What a token looks at there grows with the tokens of all, so
# that longer answers are better off with a copy of the keys and values for each.
MAX_PACKED_NEW_TOKENS = 64


class PackedRow:
    """See gpt.inference.generation.Rows: sequences in one row of the cache. Each sees what `seen` (n, s) says, and its
    own new tokens. No keys or values are copied, and those that all see are read from memory once a step."""

    def __init__(
        self, model: InferenceModel, cache: dict[str, KeyValueCache], *, length: int, positions: Tensor, seen: Tensor
    ) -> None:
        """`positions` (n,) of the tokens that come next; `length` positions of the cache are filled."""
        self.model = model
        self.cache = cache
        self.length = length
        self.positions = positions
        self.seen = seen

    @torch.inference_mode()
    def read_token(self, tokens: Tensor) -> Tensor:
        n, earlier = tokens.size(0), self.length
        places = torch.arange(n, device=tokens.device)
        self.seen = torch.cat((self.seen, places == places[:, None]), dim=1)  # (n, s + n)
        self.length += n
        read = ForwardInputs(tokens[None], self.positions[None], self.seen[None, None], self.cache, earlier)
        logits = self.model.next_logits(read, places=places)
        self.positions = self.positions + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        self.seen, self.positions = self.seen[rows], self.positions[rows]


@dataclass(frozen=True)
class _Asked:
    """Prompts and how they are to be continued."""

    prompts: Sequence[Sequence[int]]
    n_ctx: int
    max_new_tokens: int
    seed: int
    sampling: Sampling
    stop_ids: Collection[int]
    n_ids: int | None
    watch: Watch | None

    def options(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Arguments for `generate` and `decode` for these prompts: each has its own seed wherever it is continued."""

        def watch(i: int, tokens: list[int]) -> bool:
            assert self.watch is not None
            return self.watch(numbers[i], tokens)

        return {
            "prompts": [self.prompts[number] for number in numbers],
            "sampling": self.sampling,
            "stop_ids": self.stop_ids,
            "n_ids": self.n_ids,
            "watch": None if self.watch is None else watch,
        }


def generate_sharing(
    model: InferenceModel,
    prompts: Sequence[Sequence[int]],
    *,
    n_ctx: int,
    max_new_tokens: int,
    batch_tokens: int,
    seed: int = 0,
    sampling: Sampling = GREEDY,
    stop_ids: Collection[int] = (),
    n_ids: int | None = None,
    watch: Watch | None = None,
    progress: Callable[[int], None] | None = None,
    sharing: bool = True,
) -> list[Continuation]:
    """As gpt.inference.generation.generate, for any number of prompts in batches of up to `batch_tokens` positions, new
    ones included; prompt i has the seed `seed + i` and gets what it would get alone. `progress` is called with the
    number of prompts that a batch finished, and at the end with those of other data ranks. `watch` is called for
    the prompts of this data rank. `sharing` False: every prompt is read whole."""
    check_prompts(prompts, n_ctx=n_ctx, max_new_tokens=max_new_tokens, vocab_size=model.vocab_size)
    asked = _Asked(prompts, n_ctx, max_new_tokens, seed, sampling, stop_ids, n_ids, watch)
    owners: dict[tuple[int, ...], list[int]] = {}
    mine = data_parallel_requests(model, prompts, more=max_new_tokens)
    for number in mine:
        owners.setdefault(tuple(prompts[number]), []).append(number)
    row_tokens = min(ROW_TOKENS, batch_tokens)
    plan = Plan([*owners], row_tokens=row_tokens, batch_tokens=batch_tokens, branching=False, sharing=sharing)
    alone: list[int] = []
    together: dict[int, list[tuple[int, int]]] = {}  # by pass: columns of last tokens, and whose
    for sequence, numbers in enumerate(owners.values()):
        (end,) = plan.places(sequence, len(plan.sequences[sequence]) - 1)
        if plan.reads[end.read].kept or plan.reads[end.read].earlier:
            together.setdefault(end.read, []).extend((end.column, number) for number in numbers)
        else:
            alone += numbers
    results: dict[int, Continuation] = {}
    for found in chain(
        _alone(model, asked, alone, batch_tokens), _together(model, asked, plan, together, batch_tokens)
    ):
        results |= found
        if progress is not None:
            progress(len(found))
    if progress is not None and len(mine) < len(prompts):
        progress(len(prompts) - len(mine))
    results = gather_by_index(model, results)
    return [results[i] for i in range(len(prompts))]


def _alone(
    model: InferenceModel, asked: _Asked, numbers: list[int], batch_tokens: int
) -> Iterator[dict[int, Continuation]]:
    """Prompts that share nothing worth while, batch by batch."""
    lengths = [len(asked.prompts[number]) + asked.max_new_tokens for number in numbers]
    for batch in batches_by_length(lengths, batch_tokens=batch_tokens):
        chosen = [numbers[place] for place in batch]
        found = generate(
            model,
            n_ctx=asked.n_ctx,
            max_new_tokens=asked.max_new_tokens,
            seed=[asked.seed + number for number in chosen],
            **asked.options(chosen),
        )
        yield dict(zip(chosen, found, strict=True))


def _together(
    model: InferenceModel, asked: _Asked, plan: Plan, ends: dict[int, list[tuple[int, int]]], batch_tokens: int
) -> Iterator[dict[int, Continuation]]:
    """Prompts that go on from a beginning in the cache, pass by pass."""
    apart = asked.max_new_tokens > MAX_PACKED_NEW_TOKENS
    each = max(map(len, asked.prompts), default=0) + asked.max_new_tokens if apart else asked.max_new_tokens
    at_once = max(1, batch_tokens // each)
    most = min(at_once, max(map(len, ends.values()), default=0))
    reader = Reader(model, plan, more=0 if apart else most * (asked.max_new_tokens - 1))
    for number, read in enumerate(plan.reads):
        if not read.kept and not read.earlier:
            continue
        found = sorted(ends.get(number, []))
        columns = torch.tensor([column for column, _ in found], dtype=torch.int64, device=model.device)
        logits = reader.next_logits(read, columns)
        for start in range(0, len(found), at_once):
            own, now = columns[start : start + at_once], [n for _, n in found[start : start + at_once]]
            row = _side_by_side(reader, read, own)
            continued = decode(
                _one_below_another(row, asked.max_new_tokens) if apart else row,
                logits[start : start + at_once],
                limits=[asked.max_new_tokens] * len(now),
                seeds=[asked.seed + n for n in now],
                **asked.options(now),
            )
            yield dict(zip(now, continued, strict=True))


def _side_by_side(reader: Reader, read: Read, columns: Tensor) -> PackedRow:
    """The sequences that end at these columns of a pass; forgets what others have added after it."""
    length = read.earlier + read.width
    for layer in reader.cache.values():
        layer.rewind(length)
    device = columns.device
    seen = torch.from_numpy(read.mask()[0]).to(device)[columns]  # (n, s)
    positions = torch.from_numpy(read.positions()[0]).to(device)[columns] + 1
    return PackedRow(reader.model, reader.cache, length=length, positions=positions, seen=seen)


def _one_below_another(row: PackedRow, new_tokens: int) -> PaddedBatch:
    """The same sequences, each with a row of its own for what it has seen, right-aligned."""
    width = int(row.positions.max())
    order = row.seen.to(torch.int8).argsort(dim=1, stable=True)  # what is seen comes last, in its order
    columns = order[:, order.size(1) - width :]  # (n, w)
    cache = {name: layer.spread(columns, width + new_tokens - 1) for name, layer in row.cache.items()}
    return PaddedBatch(row.model, cache, length=width, padding=(width - row.positions).unsqueeze(1))
