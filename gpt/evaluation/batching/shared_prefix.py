"""Generate tokens after many prompts. Common prefixes are read once, and short answers are generated in one packed
row.

Shapes: n prompts in a packed row, s positions of the cache row that holds them all, w longest prompt, v vocab_size.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gpt.evaluation.batching.data_parallel import data_parallel_requests, gather_by_index
from gpt.evaluation.batching.forward_plan import ForwardPlan, PlannedPass, batches_by_length
from gpt.evaluation.batching.plan_runner import MAX_ROW_TOKENS, PlanRunner
from gpt.inference.generation import Continuation, PaddedBatch, Watch, check_prompts, decode, generate
from gpt.inference.kv_cache import KeyValueCache
from gpt.inference.model import ForwardInputs, InferenceModel
from gpt.inference.sampling_settings import GREEDY, Sampling

# Up to this many new tokens a prompt, all prompts stay in one packed row. There each step attends to the new tokens of
# all prompts. For longer answers it is faster to copy the keys and values into a row for each prompt.
MAX_PACKED_NEW_TOKENS = 64

Results = dict[int, Continuation]  # by index of the prompt


class PackedRow:
    """A `DecodingBatch` of n sequences in one row of the cache.

    Sequence i attends to the positions in `mask[i]` (n, s) and to its own new tokens. No keys or values are copied.
    Each step reads those of a common prefix from memory once for all sequences.
    """

    def __init__(
        self, model: InferenceModel, cache: dict[str, KeyValueCache], *, length: int, positions: Tensor, mask: Tensor
    ) -> None:
        """`positions` (n,) of the next tokens; `length`: filled positions of the cache."""
        self.model = model
        self.cache = cache
        self.length = length
        self.positions = positions
        self.mask = mask

    @torch.inference_mode()
    def decode_step(self, tokens: Tensor) -> Tensor:
        n = tokens.size(0)
        indices = torch.arange(n, device=tokens.device)
        self.mask = torch.cat((self.mask, indices == indices[:, None]), dim=1)  # (n, s + n)
        self.length += n
        inputs = ForwardInputs(tokens[None], self.positions[None], self.mask[None, None], self.cache)
        logits = self.model.next_logits(inputs, indices=indices)
        self.positions = self.positions + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        self.mask, self.positions = self.mask[rows], self.positions[rows]


@dataclass(frozen=True)
class _Settings:
    """Prompts and how to generate after them. Prompt i has the seed `seed + i`."""

    prompts: Sequence[Sequence[int]]
    n_ctx: int
    max_new_tokens: int
    seed: int
    sampling: Sampling
    stop_ids: Collection[int]
    n_ids: int | None
    watch: Watch | None

    def seeds(self, numbers: Sequence[int]) -> list[int]:
        return [self.seed + number for number in numbers]

    def options(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return the arguments that `generate` and `decode` share, for these prompts."""

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
    """Generate tokens after any number of prompts, as gpt.inference.generation.generate does after a few.

    Every rank of a layout must call it; all get all results. Batches have up to `batch_tokens` positions, new tokens
    included. Prompt i has the seed `seed + i` and gets the same tokens as alone. `watch` is called for the prompts of
    this data rank. `progress` is called with the number of prompts that a batch finished, and at the end with the
    number of those that other data ranks finished. If `sharing` is False, every prompt is read whole.
    """
    check_prompts(prompts, n_ctx=n_ctx, max_new_tokens=max_new_tokens, vocab_size=model.vocab_size)
    settings = _Settings(prompts, n_ctx, max_new_tokens, seed, sampling, stop_ids, n_ids, watch)
    own = data_parallel_requests(
        prompts, data_rank=model.data_rank, data_size=model.data_size, extra_tokens=max_new_tokens
    )
    numbers_of: dict[tuple[int, ...], list[int]] = {}  # equal prompts are read once
    for number in own:
        numbers_of.setdefault(tuple(prompts[number]), []).append(number)
    max_row_tokens = min(MAX_ROW_TOKENS, batch_tokens)
    plan = ForwardPlan(
        [*numbers_of], row_tokens=max_row_tokens, batch_tokens=batch_tokens, branching=False, sharing=sharing
    )
    unshared, cached = _split_by_pass(plan, list(numbers_of.values()))
    results: Results = {}
    for batch in chain(
        _generate_unshared(model, settings, unshared, batch_tokens),
        _generate_cached(model, settings, plan, cached, batch_tokens),
    ):
        results |= batch
        if progress is not None:
            progress(len(batch))
    if progress is not None and len(own) < len(prompts):
        progress(len(prompts) - len(own))
    results = gather_by_index(model, results)
    return [results[i] for i in range(len(prompts))]


def _split_by_pass(
    plan: ForwardPlan, numbers_of: list[list[int]]
) -> tuple[list[int], dict[int, list[tuple[int, int]]]]:
    """Divide prompts into those that use no cache, and the others by the pass that reads their last token.

    `numbers_of`: the prompts of each sequence of the plan. The others come with the index of that token in the pass.
    """
    unshared: list[int] = []
    cached: dict[int, list[tuple[int, int]]] = {}
    for sequence, numbers in enumerate(numbers_of):
        (last,) = plan.token_indices(sequence, len(plan.sequences[sequence]) - 1)
        if plan.passes[last.pass_number].uses_cache:
            cached.setdefault(last.pass_number, []).extend((last.flat_index, number) for number in numbers)
        else:
            unshared += numbers
    return unshared, cached


def _generate_unshared(
    model: InferenceModel, settings: _Settings, numbers: list[int], batch_tokens: int
) -> Iterator[Results]:
    """Generate after prompts whose common prefixes are too short to be worth a pass, batch by batch."""
    lengths = [len(settings.prompts[number]) + settings.max_new_tokens for number in numbers]
    for batch in batches_by_length(lengths, batch_tokens=batch_tokens):
        chosen = [numbers[i] for i in batch]
        continuations = generate(
            model,
            n_ctx=settings.n_ctx,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seeds(chosen),
            **settings.options(chosen),
        )
        yield dict(zip(chosen, continuations, strict=True))


def _generate_cached(
    model: InferenceModel,
    settings: _Settings,
    plan: ForwardPlan,
    ends_of_pass: dict[int, list[tuple[int, int]]],
    batch_tokens: int,
) -> Iterator[Results]:
    """Generate after prompts that continue a prefix in the cache, pass by pass.

    `ends_of_pass`: for each pass the index of each prompt's last token, and the prompt.
    """
    new_tokens = settings.max_new_tokens
    is_packed = new_tokens <= MAX_PACKED_NEW_TOKENS
    positions = new_tokens if is_packed else max(map(len, settings.prompts), default=0) + new_tokens  # of a prompt
    at_once = max(1, batch_tokens // positions)
    largest = min(at_once, max(map(len, ends_of_pass.values()), default=0))
    runner = PlanRunner(model, plan, extra_capacity=largest * (new_tokens - 1) if is_packed else 0)
    for pass_number, planned in enumerate(plan.passes):
        if not planned.uses_cache:
            continue
        ends = sorted(ends_of_pass.get(pass_number, []))
        columns = torch.tensor([column for column, _ in ends], dtype=torch.int64, device=model.device)
        logits = runner.next_logits(planned, columns)  # a pass that uses the cache has one row: an index is a column
        for start in range(0, len(ends), at_once):
            part = slice(start, start + at_once)
            numbers = [number for _, number in ends[part]]
            row = _packed_row(runner, planned, columns[part])
            continuations = decode(
                row if is_packed else _unpacked(row, new_tokens),
                logits[part],
                limits=[new_tokens] * len(numbers),
                seeds=settings.seeds(numbers),
                **settings.options(numbers),
            )
            yield dict(zip(numbers, continuations, strict=True))


def _packed_row(runner: PlanRunner, planned: PlannedPass, columns: Tensor) -> PackedRow:
    """Return the sequences that end at these columns of a pass. Rewinds the cache to the end of the pass."""
    length = planned.cached_tokens + planned.width
    runner.rewind(length)
    mask = torch.from_numpy(planned.mask()[0]).to(columns.device)[columns]  # (n, s)
    positions = torch.from_numpy(planned.positions()[0]).to(columns.device)[columns] + 1
    return PackedRow(runner.model, runner.cache, length=length, positions=positions, mask=mask)


def _unpacked(row: PackedRow, new_tokens: int) -> PaddedBatch:
    """Copy each sequence of a packed row into a cache row of its own, right-aligned."""
    width = int(row.positions.max())
    order = row.mask.to(torch.int8).argsort(dim=1, stable=True)  # the positions of the sequence come last, in order
    columns = order[:, order.size(1) - width :]  # (n, w)
    cache = {name: layer.unpack(columns, width + new_tokens - 1) for name, layer in row.cache.items()}
    return PaddedBatch(row.model, cache, length=width, padding=(width - row.positions).unsqueeze(1))
