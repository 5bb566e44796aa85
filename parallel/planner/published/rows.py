"""Read published measurements of training runs, one a line, as jobs of the time model."""

import csv
import math
import re
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from gpt.errors import ConfigError, file_error
from gpt.model.config import ModelConfig
from parallel.layout.split import balanced_split
from parallel.planner.hardware.tables import Cluster, Gpu, Hardware, Stack, find
from parallel.planner.step_time.job import Job, Recompute
from parallel.planner.step_time.step import step_time

NEEDED = (
    *("id", "source", "gpu", "n_gpus", "layers", "hidden", "heads", "ffn", "vocab", "seq"),
    *("tp", "pp", "dp", "mbs", "gbs", "precision", "metric", "value"),
)
TIMED = ("iter_time", "tflops_per_gpu", "tokens_per_s_per_gpu")
UNKNOWN = ("", "?", "-")
NODE = 8


@dataclass(frozen=True)
class PublishedRun:
    """A measured step. `jobs` are the settings that agree with the row: several if it leaves some unknown."""

    id: str
    source: str
    jobs: tuple[Job, ...]
    cluster: Cluster
    stack: Stack
    seconds: float

    def fastest(self, stack: Stack) -> tuple[Job, float]:
        """The job that the model finds fastest, with its seconds: publishers tune the settings they do not state."""
        times = [(step_time(job, self.cluster, stack).seconds, i) for i, job in enumerate(self.jobs)]
        seconds, index = min(times)
        return self.jobs[index], seconds


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file. ConfigError: it cannot be read, or lacks a column."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise file_error(error, f"{path} cannot be read: {(error.strerror or '').lower()}") from None
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"{path} is not a CSV file: {error}") from None
    if not rows:
        raise ConfigError(f"{path} is invalid: it has no rows")
    missing = [name for name in NEEDED if name not in rows[0]]
    if missing:
        named, verb = ("columns", "are") if len(missing) > 1 else ("column", "is")
        raise ConfigError(f"{path} is invalid: the {named} {', '.join(missing)} {verb} missing")
    return rows


def published_runs(rows: list[dict[str, str]], hardware: Hardware) -> tuple[list[PublishedRun], list[str]]:
    """The rows that state a time or a rate, and one line for each of them that cannot be predicted."""
    runs, left_out = [], []
    for row in rows:
        if row["metric"] not in TIMED:
            continue
        try:
            runs.append(_run(row, hardware))
        except (ConfigError, ValueError, TypeError, ZeroDivisionError) as error:
            left_out.append(f"row {row['id']}: {error}")
    return runs, left_out


def _run(row: dict[str, str], hardware: Hardware) -> PublishedRun:
    gpu = _gpu(row["gpu"], hardware)
    stack = stack_of(row, hardware)
    precision = _precision(row["precision"])
    words = row.get("note") or ""
    named = [net for net in hardware.networks.values() if any(word in words for word in net.words)]
    network = named[0] if named else find("network", row.get("network") or gpu.network, hardware.networks)
    cluster = Cluster(gpu, network, max(network.node, NODE))
    jobs = tuple(_jobs(row, stack, precision))
    if not jobs:
        raise ConfigError("no setting of micro-batch and stages fits it")
    return PublishedRun(row["id"], _source(row["source"]), jobs, cluster, stack, _seconds(row, jobs[0]))


def _gpu(name: str, hardware: Hardware) -> Gpu:
    """The GPU of a row. More words after a known name, such as its memory, change nothing."""
    known = {alias: gpu for gpu in hardware.gpus.values() for alias in (gpu.name, *gpu.names)}
    begins = [alias for alias in known if re.match(rf"{re.escape(alias)}(?![A-Za-z0-9])", name, re.IGNORECASE)]
    return known[max(begins, key=len)] if begins else find("GPU", name, hardware.gpus)


def _precision(text: str) -> str:
    words = text.lower()
    if "fp4" in words:
        raise ConfigError(f"precision {text} is not modelled. Use rows in bf16, fp16 or fp8")
    return "fp8" if "fp8" in words else "bf16"


def stack_of(row: dict[str, str], hardware: Hardware) -> Stack:
    """The profile that a row names, else the one whose words its source and note contain."""
    if row.get("stack"):
        return find("stack", row["stack"], hardware.stacks)
    source, note = row["source"].lower(), (row.get("note") or "").lower()
    fitting = [s for s in hardware.stacks.values() if any(word.lower() in source for word in s.sources)]
    exact = [s for s in fitting if s.words and any(word in note for word in s.words)]
    return (exact or fitting)[0]


def _split(model: ModelConfig, stages: int, seq_len: int, *, ends: bool) -> tuple[int, ...]:
    """Blocks of each stage: the same number if it divides. With `ends`, embedding and head count as a block each."""
    layers = model.n_layers
    if ends and stages > 1 and (layers + 2) % stages == 0:
        each = (layers + 2) // stages
        return (each - 1, *(each,) * (stages - 2), each - 1)
    if layers % stages == 0:
        return (layers // stages,) * stages
    return balanced_split(model, stages=stages, seq_len=seq_len, recompute=False)


def _source(text: str) -> str:
    """The work that a source names: a paper, or a repository without the path in it."""
    words = re.split(r"[,;:]", text)[0].split()
    return " ".join(words[: 2 if words[:1] == ["arXiv"] else 1])


def _jobs(row: dict[str, str], stack: Stack, precision: str) -> list[Job]:
    model = _model(row)
    tensor, pipeline, data = (int(row[key]) for key in ("tp", "pp", "dp"))
    context = _number(row.get("cp"), 1)
    seqs, seq_len = int(row["gbs"]), int(row["seq"])
    per_rank = seqs // data
    sizes = [int(row["mbs"])] if row["mbs"] not in UNKNOWN else [n for n in (1, 2, 4, 8) if per_rank % n == 0]
    stages = _stages(row, pipeline, model.n_layers, stack)
    fsdp = "fsdp" in (row.get("opt_shard") or "").lower()
    zero = 3 if fsdp else 0 if (row.get("opt_shard") or "") in ("none", *UNKNOWN) else 1
    flag = row.get("sp") or ""
    sequence = flag == "1" or (flag in UNKNOWN and stack.attention == "fused")
    jobs = []
    for size, per, recompute in product(sizes, stages, _recompute(row)):
        schedule = "interleaved_1f1b" if per > 1 else "1f1b"
        count = per_rank // size
        if per > 1 and count % max(1, count // pipeline):
            continue
        split = _split(model, pipeline * per, seq_len, ends="embed|" in (row.get("note") or ""))
        job = Job(model, seq_len, size, count, split, tensor, pipeline, data, context, data, zero, schedule)
        jobs.append(replace(job, recompute=recompute, sequence_parallel=sequence, precision=precision))
    return jobs


def _model(row: dict[str, str]) -> ModelConfig:
    heads, hidden, wide = int(row["heads"]), int(row["hidden"]), int(row["ffn"])
    note = (row.get("note") or "").lower()
    gated = "swiglu" in note or "gated" in note or (wide != 4 * hidden and wide % hidden != 0)
    return ModelConfig(
        vocab_size=int(row["vocab"]),
        n_ctx=int(row["seq"]),
        n_layers=int(row["layers"]),
        d_model=hidden,
        n_heads=heads,
        n_kv_heads=_number(row.get("kv_groups"), heads),
        d_ff=wide,
        activation="swiglu" if gated else "gelu",
        tied=(row.get("tied_emb") or "1") != "0",
    )


def _stages(row: dict[str, str], pipeline: int, layers: int, stack: Stack) -> list[int]:
    """Stages of a rank: as stated, else those that divide the layers, if this stack interleaves by default."""
    given = row.get("vpp") or ""
    if pipeline == 1:
        return [1]
    if given not in UNKNOWN:
        return [int(given)]
    if stack.schedule_unknown == "1f1b":
        return [1]
    return [n for n in range(1, layers // pipeline + 1) if layers % (pipeline * n) == 0] or [1]


def _recompute(row: dict[str, str]) -> tuple[Recompute, ...]:
    """What is recomputed. A row that says "stated" doubts the statement."""
    text = (row.get("recompute") or "").lower()
    if "stated" in text:
        return "none", "full"
    if "full" in text:
        return ("full",)
    if "attn" in text or "attention" in text or text in ("selective", "core_attn"):
        return ("attention",)
    return ("operators",) if "selective" in text else ("none",)


def _seconds(row: dict[str, str], job: Job) -> float:
    """The measured time of a step. Rates are converted by the row's own convention of FLOPs."""
    value = float(row["value"])
    if not 0 < value < math.inf:
        raise ConfigError(f"value {row['value']} is invalid: must be a number above 0")
    if row["metric"] == "iter_time":
        return value / (1000 if (row.get("unit") or "s") == "ms" else 1)
    gpus = int(row["n_gpus"])
    if row["metric"] == "tokens_per_s_per_gpu":
        return job.tokens / (value * gpus)
    h, layers, s, v = job.model.d_model, job.model.n_layers, job.seq_len, job.model.padded_vocab_size
    convention = (row.get("flops_convention") or "model").lower()
    if "hardware" in convention:
        flops = 96 * layers * h * h * (1 + s / (6 * h) + v / (16 * layers * h)) * job.tokens
    elif job.model.activation == "gelu" and job.model.ff_width == 4 * h and job.model.kv_heads == job.model.n_heads:
        flops = 72 * layers * h * h * (1 + s / (6 * h) + v / (12 * layers * h)) * job.tokens
    else:
        flops = job.flops
    return flops / (value * 1e12 * gpus)


def _number(text: str | None, default: int) -> int:
    return default if text is None or text in UNKNOWN else int(float(text))
