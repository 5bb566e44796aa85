"""The rules of pipeline schedules: which settings and how many micro-batches torch's schedules accept."""

from gpt.errors import ConfigError, either, nearest
from parallel.layout.config import SEVERAL_STAGES, V_SHAPED, ZERO_BUBBLE, ParallelConfig


def check_pipeline(parallel: ParallelConfig) -> None:
    """Refuse settings that torch's schedules (2.13) cannot combine, or combine at a loss."""
    if parallel.pipeline == 1:
        return
    if parallel.schedule not in ZERO_BUBBLE:
        return
    if parallel.compile:  # tried: the backward of a compiled block cannot be split; requesting half of it fails
        raise ConfigError(
            f"parallel.compile = true with parallel.schedule = '{parallel.schedule}' is invalid: the backward of a "
            f"compiled block cannot be split into one of inputs and one of weights, which is what fills the bubble. "
            f"Use parallel.compile = false, or parallel.schedule = 'interleaved_1f1b' or 'dualpipev'"
        )
    if parallel.recompute != "none":
        reason = {  # tried: with `full`, a GPT block ran 10 times for each micro-batch, where 2 are needed
            "full": "the separate backward of weights would recompute a block once for each of its layers",
            "selective": "torch allows one backward to use the saved parts of a block, not one of inputs and then one "
            "of weights",
        }
        raise ConfigError(
            f"parallel.recompute = '{parallel.recompute}' with parallel.schedule = '{parallel.schedule}' is invalid: "
            f"{reason[parallel.recompute]}. Use parallel.recompute = 'none', or parallel.schedule = "
            f"'interleaved_1f1b' or 'dualpipev'"
        )


def stages_per_rank(parallel: ParallelConfig) -> int:
    """Return the number of pipeline stages on each rank: as configured, else the default of the schedule."""
    if parallel.pipeline == 1:
        return 1
    schedule, wanted = parallel.schedule, parallel.stages_per_rank
    if schedule not in SEVERAL_STAGES:
        if wanted not in (None, 1):
            raise ConfigError(
                f"parallel.stages_per_rank = {wanted} with parallel.schedule = '{schedule}' is invalid: this schedule "
                f"runs 1 stage a rank. Use 1, or one of the schedules {', '.join(SEVERAL_STAGES)}"
            )
        return 1
    if wanted == 1:
        raise ConfigError(
            f"parallel.stages_per_rank = 1 with parallel.schedule = '{schedule}' is invalid: this schedule needs "
            f"several stages a rank. Use 2, or parallel.schedule = '1f1b'"
        )
    if schedule in V_SHAPED and wanted not in (None, 2):
        raise ConfigError(
            f"parallel.stages_per_rank = {wanted} with parallel.schedule = '{schedule}' is invalid: this schedule lays "
            f"2 stages a rank out as a V. Use 2, or one of the schedules interleaved_1f1b, interleaved_zero_bubble"
        )
    return 2 if wanted is None else wanted


def check_schedule(
    parallel: ParallelConfig, *, micro_batches: int, micro_batch_tokens: int, micro_batch_size: int
) -> None:
    """Refuse a number of micro-batches per step that the engine's schedule cannot order.

    `micro_batch_tokens`: tokens of one micro-batch over all data ranks, for the batch sizes that the error suggests.
    """
    if parallel.pipeline == 1:
        return
    name, ranks, rule, allowed = parallel.schedule, parallel.pipeline, "", [micro_batches]
    if name in ("1f1b", "dualpipev"):
        stages = ranks * stages_per_rank(parallel)
        rule, allowed = "at least as many micro-batches a step as stages", [max(stages, micro_batches)]
    elif parallel.engine == "megatron" and name == "interleaved_1f1b":  # it runs rounds of one micro-batch a rank
        rule = "a multiple of parallel.pipeline as number of micro-batches a step"
        allowed = [n for n in range(ranks, 2 * micro_batches + ranks) if n % ranks == 0]
    elif name in ("interleaved_1f1b", "interleaved_zero_bubble"):
        # torch runs max(1, micro_batches // ranks) rounds with the same number of micro-batches each
        rule = "a number of micro-batches a step that is a multiple of its quotient by parallel.pipeline"
        allowed = [n for n in range(1, 2 * micro_batches + ranks) if n % max(1, n // ranks) == 0]
    if micro_batches in allowed:
        return
    near = nearest(micro_batches, allowed)
    raise ConfigError(
        f"parallel.schedule = '{name}' needs {rule}: {micro_batches} with parallel.pipeline = {ranks} is invalid; "
        f"nearest: {either(near)}, so batch.global_batch_tokens = {either(n * micro_batch_tokens for n in near)}, or "
        f"change batch.micro_batch_size = {micro_batch_size}"
    )
