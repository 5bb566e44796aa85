"""What a plan costs: days, money, energy, and how often to save."""

import math
from dataclasses import dataclass

from parallel.planner.choice.candidates import PlanRequest
from parallel.planner.choice.ranking import RankedLayout

# Unexpected interruptions of Llama 3's pre-training: 419 in 54 days on 16,384 H100 (arXiv 2407.21783, section 3.3.4).
GPU_HOURS_BETWEEN_FAILURES = 54 * 24 * 16_384 / 419
SAVE_BYTES_PER_S = 1e9  # of a node, where --save-seconds is not given
CHECKPOINT_BYTES = 12  # of a parameter: fp32 weights and Adam's two moments


@dataclass(frozen=True)
class PlanFigures:
    """A layout's run. Times in seconds; `cost` in the price's currency and `energy_kwh` None where unknown.

    `checkpoint_every_s` is the interval of least loss, and `lost` the share of time that saves and repeated work take.
    """

    steps: int
    seconds: float
    low: float
    high: float
    cost: float | None
    energy_kwh: float | None
    checkpoint_every_s: float
    save_s: float
    failure_every_s: float
    lost: float

    @property
    def days(self) -> float:
        return self.seconds / 86_400


def figures(
    ranked: RankedLayout,
    request: PlanRequest,
    *,
    total_tokens: int,
    price: float | None = None,
    save_s: float | None = None,
    failure_hours: float | None = None,
) -> PlanFigures:
    """The run of a layout over `total_tokens`. `failure_hours`: node-hours between failures of one node.

    Young's interval sqrt(2 save_s M) with M the time between failures of the whole cluster (Daly 2006, first order).
    """
    job, gpu = ranked.candidate.job, request.cluster.gpu
    steps = math.ceil(total_tokens / job.tokens)
    nodes = max(1, job.world_size // request.cluster.node)
    hours = GPU_HOURS_BETWEEN_FAILURES / job.world_size if failure_hours is None else failure_hours / nodes
    failure_s = hours * 3600
    saved = CHECKPOINT_BYTES * request.model.parameters / (SAVE_BYTES_PER_S * nodes) if save_s is None else save_s
    every = math.sqrt(2 * saved * failure_s)
    lost = saved / every + every / (2 * failure_s)
    seconds = steps * ranked.time.seconds * (1 + lost)
    gpu_hours = job.world_size * seconds / 3600
    return PlanFigures(
        steps,
        seconds,
        seconds * ranked.time.low / ranked.time.seconds,
        seconds * ranked.time.high / ranked.time.seconds,
        None if price is None else price * gpu_hours,
        None if gpu.watts is None else gpu.watts * gpu_hours / 1000,
        every,
        saved,
        failure_s,
        lost,
    )
