"""The rules of batch sizes: every step must divide into equal micro-batches on every data rank."""

from gpt.errors import ConfigError, either, nearest, nearest_divisors, nearest_multiples
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.pipeline_rules import check_schedule


def micro_batches_per_step(parallel: ParallelConfig, batch: BatchConfig, *, seq_len: int, data: int) -> int:
    """Return the micro-batches per rank and step of the full batch, after checking every size of the batch ramp."""
    if batch.micro_batch_size < 1:
        raise ConfigError(f"batch.micro_batch_size = {batch.micro_batch_size} is invalid: must be at least 1")
    *ramped, full = (level.step_tokens for level in batch.ramp.levels())
    for tokens in ramped:
        _micro_batches_of(tokens, parallel, batch, seq_len=seq_len, data=data, name="the size of a batch ramp's step")
    return _micro_batches_of(full, parallel, batch, seq_len=seq_len, data=data, name="batch.global_batch_tokens")


def check_ranks(batch: BatchConfig, *, seq_len: int, data: int, world_size: int, option: str) -> None:
    """ConfigError, in words of the option that gave `world_size`: its data ranks do not divide the full batch."""
    seqs, own = batch.global_batch_tokens // seq_len, batch.micro_batch_size
    if own < 1 or batch.global_batch_tokens % seq_len or seqs % own or seqs % (own * data) == 0:
        return  # well, or another key is at fault
    sizes = [size for size in range(1, seqs // own + 1) if seqs // own % size == 0]
    each = world_size // data
    raise ConfigError(
        f"{option} {world_size} is invalid: its data-parallel size {data} times batch.micro_batch_size = {own} is "
        f"{own * data} sequences, which does not divide the global batch of {seqs} sequences. Use {option} "
        f"{either(size * each for size in nearest(data, sizes))}, or another batch.global_batch_tokens"
    )


def _micro_batches_of(
    step_tokens: int, parallel: ParallelConfig, batch: BatchConfig, *, seq_len: int, data: int, name: str
) -> int:
    if step_tokens < seq_len or step_tokens % seq_len:
        raise ConfigError(
            f"{name} = {step_tokens} is invalid: must be a multiple of data.seq_len = {seq_len}. "
            f"Use {nearest_multiples(seq_len, step_tokens)}"
        )
    seqs = step_tokens // seq_len
    micro_batch_seqs = batch.micro_batch_size * data  # over all data ranks
    if seqs % micro_batch_seqs:
        raise ConfigError(
            f"batch.micro_batch_size = {batch.micro_batch_size} is invalid: times the data-parallel size {data}, it is "
            f"{micro_batch_seqs} sequences, which does not divide the global batch of {seqs} sequences "
            f"({step_tokens} tokens). "
            f"{_suggestion(batch, seqs=seqs, seq_len=seq_len, data=data)}"
        )
    micro_batches = seqs // micro_batch_seqs
    check_schedule(
        parallel,
        micro_batches=micro_batches,
        micro_batch_tokens=micro_batch_seqs * seq_len,
        micro_batch_size=batch.micro_batch_size,
    )
    return micro_batches


def _suggestion(batch: BatchConfig, *, seqs: int, seq_len: int, data: int) -> str:
    """Name micro-batch sizes that divide a data rank's sequences, or global batches if no micro-batch size does."""
    if seqs % data:
        near = nearest_multiples(batch.micro_batch_size * data * seq_len, seqs * seq_len)
        return f"Use batch.global_batch_tokens = {near}"
    return f"Use batch.micro_batch_size = {nearest_divisors(seqs // data, batch.micro_batch_size)}"
