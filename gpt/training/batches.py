"""What a step reads of the data's order, for the data rank that asks; it keeps no state."""

from typing import Any

import torch
from numpy.typing import NDArray

from gpt.data.dataset import TrainingData, share_of_step
from gpt.data.order import Ints
from gpt.data.skipped import SkippedData
from gpt.training.engine import Batch, Engine
from gpt.training.run import LoopState, Run


def read_batch(data: TrainingData, positions: Ints) -> Batch:
    """The samples at the positions: (sequences, seq_len) inputs and targets. DamagedSamples: some cannot be read."""
    tokens = torch.from_numpy(data.batch(positions))  # (sequences, seq_len + 1)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def step_positions(engine: Engine, run: Run, step: int, skipped: SkippedData) -> Ints:
    """The positions of the data's order that this data rank reads for a step."""
    first, n_samples = run.samples_seen(step), run.batch.step_tokens(step) // run.seq_len
    mine: NDArray[Any] = share_of_step(first, n_samples=n_samples, rank=engine.data_rank, ranks=engine.data_size)
    return skipped.positions(int(mine[0]), len(mine))


def epochs_read(run: Run, data: TrainingData, state: LoopState) -> dict[str, float]:
    """How many times each corpus has been read through."""
    return data.epochs(run.samples_seen(state.step), state.skipped)
