"""Read published measurements of training runs, one a line, as jobs of the time model."""

import csv
import io
import math
import re
import statistics
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from gpt.errors import ConfigError, file_error
from gpt.files.regular import read_text
from gpt.model.config import ModelConfig
from parallel.layout.split import balanced_split
from parallel.planner.hardware.tables import Cluster, Hardware, Stack, find
from parallel.planner.published.cluster import UNKNOWN, cluster_of
from parallel.planner.published.measured import METRICS, measured_seconds
from parallel.planner.step_time.job import Job, Recompute
from parallel.planner.step_time.step import step_time

NEEDED = ("id", "gpu", "n_gpus", "layers", "hidden", "heads", "vocab", "seq", "gbs", "metric", "value")
MAX_FILE_BYTES = 1 << 24
MAX_LAYERS, MAX_COUNT = 2000, 1 << 30  # of a row's numbers
MAX_STAGE_PASSES = 1_000_000  # stages x micro-batches, which are simulated one by one
MIN_SECONDS, MAX_SECONDS = 1e-9, 1e9  # of a step
MICRO_BATCH_SIZES = (1, 2, 4, 8)  # tried where a row states none


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
        """The fastest job and the predicted seconds: their geometric mean over the readings of a doubtful row."""
        found = self.readings(stack)
        return min(found, key=lambda each: each[1])[0], math.exp(statistics.mean(math.log(s) for _, s in found))

    def readings(self, stack: Stack) -> list[tuple[Job, float]]:
        """The fastest job of each kind of recomputation: publishers tune the settings that they do not state."""
        best: dict[str, tuple[Job, float]] = {}
        for job in self.jobs:
            seconds = step_time(job, self.cluster, stack).seconds
            if job.recompute not in best or seconds < best[job.recompute][1]:
                best[job.recompute] = (job, seconds)
        return list(best.values())


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file. ConfigError: it cannot be read, or lacks a column that every row needs."""
    try:
        text = read_text(path, max_bytes=MAX_FILE_BYTES).removeprefix("\ufeff")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
        rows = [row for row in rows if any(row.values())]  # spreadsheets end in rows of commas
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
    """The rows that state a time or a rate, and one line for each other one that does not state a memory."""
    runs, left_out = [], []
    for row in rows:
        if "mem" in row["metric"]:
            continue
        try:
            runs.append(_run(row, hardware))
        except (ConfigError, ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
            left_out.append(f"row {row['id']}: {error}")
    return runs, left_out


def _run(row: dict[str, str], hardware: Hardware) -> PublishedRun:
    if not row["metric"]:
        raise ConfigError("metric is missing")
    if row["metric"] not in METRICS:
        raise ConfigError(f"metric {row['metric'][:100]!r} is unknown. Use {', '.join(METRICS)}, or a name with mem")
    stack = stack_of(row, hardware)
    jobs, cluster = jobs_of(row, stack), cluster_of(row, hardware)
    cluster.gpu.product_flops_per_s(jobs[0].precision)  # raises
    seconds = measured_seconds(row, jobs[0], cluster)
    if not MIN_SECONDS < seconds < MAX_SECONDS:
        raise ConfigError(f"value {row['value'][:100]} is invalid: a step of {seconds:g} s cannot be")
    return PublishedRun(row["id"], source_of(row), jobs, cluster, stack, seconds)


def jobs_of(row: dict[str, str], stack: Stack) -> tuple[Job, ...]:
    """The settings that agree with a row, at least one. ConfigError: a needed value is missing, or none agrees."""
    empty = [key for key in NEEDED if row[key] in UNKNOWN]
    if empty:
        raise ConfigError(f"{', '.join(empty)} {'are' if len(empty) > 1 else 'is'} missing")
    jobs = tuple(_jobs(row, stack, _precision(row.get("precision") or "")))
    if not jobs:
        raise ConfigError("no setting of micro-batch and stages fits it")
    return jobs


def source_of(row: dict[str, str]) -> str:
    """The work that a row's source names."""
    return _source(row.get("source") or "")


def _precision(text: str) -> str:
    words = "bf16" if text in UNKNOWN else text.lower()
    if "fp8" in words or "float8" in words:
        return "fp8"
    if words in ("fp32", "float32"):
        return "fp32"
    if any(word in words for word in ("bf16", "bfloat16", "fp16", "float16", "half", "mixed")):
        return "bf16"
    raise ConfigError(f"precision {text[:100]} is not modelled. Use rows in bf16, fp16, fp8 or fp32")


def stack_of(row: dict[str, str], hardware: Hardware) -> Stack:
    """The profile that a row names, else the one whose words its source and note contain."""
    if row.get("stack"):
        return find("stack", row["stack"], hardware.stacks)
    note = f"{row.get('note') or ''} {row.get('recompute') or ''}".lower()
    source = row.get("source") or ""  # its work first: the source of a paper may also name a program
    fitting = _longest(_source(source), hardware) or _longest(source, hardware) or [hardware.stacks["plain"]]
    exact = [s for s in fitting if s.words and any(word in note for word in s.words)]
    return (exact or [s for s in fitting if not s.words] or fitting)[0]


def _longest(source: str, hardware: Hardware) -> list[Stack]:
    """The stacks with the longest word in a source: "Megatron-Bridge" also contains "Megatron"."""
    lengths = [
        (max((len(w) for w in s.sources if w.lower() in source.lower()), default=0), s)
        for s in hardware.stacks.values()
    ]
    longest = max(length for length, _ in lengths)
    return [s for length, s in lengths if length == longest > 0]


def _split(model: ModelConfig, stages: int, row: dict[str, str]) -> tuple[int, ...]:
    """Blocks of each stage: those of the column `split`, else the same number if it divides.

    With "embed|" in the note, embedding and head count as a block each.
    """
    layers = model.n_layers
    if given := row.get("split"):
        split = tuple(int(n) for n in re.findall(r"\d+", given))
        if len(split) != stages or sum(split) != layers:
            raise ConfigError(f"split {given} is invalid: it needs {stages} stages with {layers} layers in all")
        return split
    if "embed|" in (row.get("note") or "") and stages > 1 and (layers + 2) % stages == 0:
        each = (layers + 2) // stages
        return (each - 1, *(each,) * (stages - 2), each - 1)
    if layers % stages == 0:
        return (layers // stages,) * stages
    return balanced_split(model, stages=stages, seq_len=_number(row["seq"], 0), recompute=False)


def _source(text: str) -> str:
    """The work that a source names: a paper, or a repository without the path in it."""
    words = re.split(r"[,;:]", text)[0].split()
    return " ".join(words[: 2 if words[:1] == ["arXiv"] else 1])


def _jobs(row: dict[str, str], stack: Stack, precision: str) -> list[Job]:
    model = _model(row)
    tensor, pipeline, context = (_number(row.get(key), 1) for key in ("tp", "pp", "cp"))
    gpus = _number(row["n_gpus"], 0)
    data = _number(row.get("dp"), gpus // (tensor * pipeline * context))
    if tensor * pipeline * context * data != gpus:
        raise ConfigError(
            f"n_gpus = {gpus} is invalid: tp {tensor} x pp {pipeline} x cp {context} x dp {data} is "
            f"{tensor * pipeline * context * data}"
        )
    seqs, seq_len = (_number(row[key], 0) for key in ("gbs", "seq"))
    per_rank = seqs // data
    stated = row.get("mbs") or ""
    sizes = [_number(stated, 1)] if stated not in UNKNOWN else [n for n in MICRO_BATCH_SIZES if per_rank % n == 0]
    if seqs % data or any(per_rank % size for size in sizes):
        raise ConfigError(f"gbs = {seqs} is invalid: it must be a multiple of dp {data} x mbs {stated or 1}")
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
        if count * pipeline * per > MAX_STAGE_PASSES:
            raise ConfigError(f"{count} micro-batches on {pipeline * per} stages are more than can be simulated")
        split = _split(model, pipeline * per, row)
        job = Job(model, seq_len, size, count, split, tensor, pipeline, data, context, data, zero, schedule)
        jobs.append(replace(job, recompute=recompute, sequence_parallel=sequence, precision=precision))
    return jobs


def _model(row: dict[str, str]) -> ModelConfig:
    heads, hidden = (_number(row[key], 0) for key in ("heads", "hidden"))
    wide = _number(row.get("ffn"), 4 * hidden)
    note = (row.get("note") or "").lower()
    gated = "swiglu" in note or "gated" in note or (wide != 4 * hidden and wide % hidden != 0)
    return ModelConfig(
        vocab_size=_number(row["vocab"], 0),
        n_ctx=_number(row["seq"], 0),
        n_layers=_number(row["layers"], 0, limit=MAX_LAYERS),
        d_model=hidden,
        n_heads=heads,
        n_kv_heads=_number(row.get("kv_groups"), heads),
        d_ff=wide,
        activation="swiglu" if gated else "gelu",
        positions="rope" if gated or "rope" in note else "learned",
        tied=(row.get("tied_emb") or "1") != "0",
    )


def _stages(row: dict[str, str], pipeline: int, layers: int, stack: Stack) -> list[int]:
    """Stages of a rank: as stated, else those that divide the layers, if this stack interleaves by default."""
    given = row.get("vpp") or ""
    if pipeline == 1:
        return [1]
    if given not in UNKNOWN:
        return [_number(given, 1, limit=MAX_LAYERS)]
    if stack.schedule_unknown == "1f1b":
        return [1]
    return [n for n in range(1, layers // pipeline + 1) if layers % (pipeline * n) == 0] or [1]


def _recompute(row: dict[str, str]) -> tuple[Recompute, ...]:
    """What is recomputed. A row that says "stated" doubts it: whole-model compilation may drop a part of the work."""
    text = (row.get("recompute") or "").lower()
    eager = "not compiled" in text or "eager" in (row.get("note") or "").lower()
    if "stated" in text and not eager:
        return "none", "full"
    if "full" in text:
        return ("full",)
    if "attn" in text or "attention" in text or text in ("selective", "core_attn"):
        return ("attention",)
    return ("operators",) if "selective" in text else ("none",)


def _number(text: str | None, default: int, *, limit: int = MAX_COUNT) -> int:
    """A whole number, also written as 8.0. ConfigError: it is none, or out of range."""
    if text is None or text in UNKNOWN:
        return default
    number = float(text)
    if not 1 <= number <= limit or number != int(number):
        raise ConfigError(f"{text[:100]} is invalid: must be a whole number from 1 to {limit}")
    return int(number)
