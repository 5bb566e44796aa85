"""`triaxial data audit`: name the corpus, file and documents that each sequence of a past or future step is read from.

The order of the data is computed (gpt/data/order.py), so every step costs the same. The command needs only the run's
configuration, its skipped ranges, and the index of the token files. It starts no process group.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from gpt.data.dataset import TrainingData
from gpt.data.fingerprint import fingerprint, fingerprint_differences
from gpt.data.skipped import SkippedData
from gpt.errors import ConfigError
from gpt.files.json_rules import Fields, ValuesOf
from gpt.files.json_text import decode_json
from gpt.files.regular import read_text
from gpt.token_files.files import TokenFile
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer
from launch.config.recipe import apply_overrides
from launch.config.run_config import RunConfig, from_dict
from launch.processes.terminal import table_console
from launch.reports.written import NO_FILE, STANDARD_OUTPUT, Emit, add_json_option, json_destination
from launch.runs.saved_run import section, tokenizer_file
from launch.training.resume import check_is_training, loop_state
from parallel.checkpoint.folders import list_checkpoints
from parallel.checkpoint.handle import read_checkpoint_header
from parallel.errors import CheckpointError
from parallel.layout.config import ParallelConfig

_TEXT_TOKENS, _TEXT_CHARACTERS = 32, 40  # shown from the start of a part


@dataclass(frozen=True)
class DocumentPart:
    """The part of a document that lies in a sequence."""

    file: str  # the file of the corpus that holds its tokens
    document: int  # its number in the corpus
    offset_tokens: int  # from the start of the document to the part
    n_tokens: int
    text: str | None = None  # the start of the part


@dataclass(frozen=True)
class SequenceSource:
    """The source of one sequence of a step. Numbers count from 0, but steps from 1, as in metrics.jsonl."""

    step: int | None  # None for a skipped position, which no step reads
    sequence: int  # within the step, over all data ranks
    data_rank: int | None
    sample: int | None  # number within the run; None for a skipped position
    position: int  # in the order of the data
    corpus: str
    epoch: int
    window: int
    first_token: int  # in the token stream of the corpus
    documents: tuple[DocumentPart, ...]  # in reading order; their tokens add up to seq_len + 1


@dataclass(frozen=True)
class AuditedRun:
    """Everything that the answers depend on."""

    config: RunConfig
    data: TrainingData
    skipped: SkippedData
    saved_step: int | None  # of the newest checkpoint
    data_ranks: int | None
    tokenizer: Tokenizer | None
    notes: tuple[str, ...]

    def samples(self, step: int) -> range:
        """The samples of the run that a step reads."""
        ramp, seq_len = self.config.batch.ramp, self.config.data.seq_len
        first = ramp.tokens_seen(step - 1) // seq_len
        return range(first, first + ramp.step_tokens(step - 1) // seq_len)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory such as runs/demo")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--step", metavar="N", help="a past or future step, as in metrics.jsonl")
    which.add_argument("--steps", metavar="A-B", help="steps A to B, both included")
    which.add_argument("--positions", metavar="A-B", help="positions in the order of the data, read or skipped")
    parser.add_argument(
        "--rank",
        metavar="R[/N]",
        help="only sequences of data rank R, in the newest checkpoint's layout or with N data ranks",
    )
    parser.add_argument("--text", action="store_true", help="show the start of each part of a sequence")
    add_json_option(parser, "one JSON object for each sequence", was_switch=True)
    parser.epilog = 'If the data has moved: --data.train \'[{ path = "elsewhere/train", name = "web" }]\''
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    with json_destination(args.json, indent=None) as emit:
        audited = open_audited_run(args.run, args.overrides, rank=args.rank, text=args.text)
        console = table_console()
        tables = None if args.json in (STANDARD_OUTPUT, NO_FILE) else console
        for note in audited.notes:
            console.print(note, highlight=False)
        for heading, sources in _asked_for(args, audited):
            show(heading, sources, tables, emit, text=args.text)
        if args.positions is None:
            first, last = _steps(args)
            positions = [audited.skipped.position(n) for n in (audited.samples(first)[0], audited.samples(last)[-1])]
            console.print(f"to skip these: data.skip = [[{positions[0]}, {positions[1] + 1}]]", highlight=False)
    return 0


def _asked_for(args: argparse.Namespace, audited: AuditedRun) -> Iterator[tuple[str, Iterator[SequenceSource]]]:
    """The tables that the options ask for: their titles and sequences."""
    if args.positions is not None:
        first, last = _span("--positions", args.positions, minimum=0)
        yield "positions " + args.positions, positions_of_order(audited, range(first, last + 1))
        return
    first, last = _steps(args)
    train, steps = audited.config.train, audited.config.train.steps(audited.config.batch.ramp)
    if last > steps:
        total = f"train.total_tokens = {train.total_tokens:,} are {steps:,} steps"
        raise ConfigError(f"step {last:,} is after the end of the run: {total}")
    for step in range(first, last + 1):
        yield title(audited, step), sequences_of_step(audited, step, rank=_rank(args.rank))


def open_audited_run(path: Path, overrides: list[str], *, rank: str | None, text: bool) -> AuditedRun:
    """Open the run of a run directory. ConfigError if there is no run, or its data is missing or has changed."""
    try:
        table = decode_json(read_text(path / "config.json"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: no config.json, so no run was started there. Name a run directory") from None
    except ValueError as error:
        raise ConfigError(f"{path / 'config.json'}: damaged ({error})") from None
    if fault := ValuesOf(Fields()).fault(table, "config.json"):
        raise ConfigError(f"{path / 'config.json'}: damaged ({fault})")
    config = from_dict(apply_overrides(table, overrides))
    try:
        data = TrainingData(config.data, seed=config.run.seed, vocab_size=config.model.vocab_size)
    except ConfigError as error:
        raise ConfigError(f"{error} (if the data has moved, name it with --data.train)") from None
    skipped, saved_step, ranks, notes = SkippedData.stated(config.data.skip), None, None, []
    for candidate in list_checkpoints(path / "checkpoints"):
        try:
            header = read_checkpoint_header(candidate)
        except CheckpointError as error:
            notes.append(f"skipped: {error}")
            continue
        state = header.state
        check_is_training(candidate, state)
        if differences := fingerprint_differences(state["data"], fingerprint(data)):
            raise ConfigError(f"the data differ from those of {candidate}: {'; '.join(differences)}")
        skipped, saved_step = loop_state(config, state)[0].skipped, state["step"]
        parallel = section(ParallelConfig, state["config"], "parallel")
        ranks = header.manifest.ranks // (parallel.tensor * parallel.pipeline)
        break
    if rank is not None:
        ranks = _data_ranks(rank, ranks)
    notes += [f"skipped: positions {r.first:,} to {r.stop - 1:,} ({r.why})" for r in skipped.ranges]
    return AuditedRun(
        config=config,
        data=data,
        skipped=skipped,
        saved_step=saved_step,
        data_ranks=ranks,
        tokenizer=load_tokenizer(tokenizer_file(path, config.data)) if text else None,
        notes=tuple(notes),
    )


def sequences_of_step(audited: AuditedRun, step: int, *, rank: int | None = None) -> Iterator[SequenceSource]:
    """The source of each sequence of a step, counted from 1; only those of data rank `rank`, if it is given."""
    samples, ranks = audited.samples(step), audited.data_ranks
    if ranks is not None and len(samples) % ranks:
        raise ConfigError(f"step {step} has {len(samples)} sequences, not divisible by {ranks} data ranks")
    for sequence, position in enumerate(audited.skipped.positions(samples.start, len(samples)).tolist()):
        data_rank = None if ranks is None else sequence * ranks // len(samples)
        if rank is None or rank == data_rank:
            yield source_of(audited, position, step=step, sequence=sequence, data_rank=data_rank)


def positions_of_order(audited: AuditedRun, positions: range) -> Iterator[SequenceSource]:
    """The source of each position in the order of the data, and the step that reads it."""
    ramp, seq_len = audited.config.batch.ramp, audited.config.data.seq_len
    for position in positions:
        sample = audited.skipped.sample_at(position)
        step = None if sample is None else ramp.steps_to((sample + 1) * seq_len)
        sequence = 0 if sample is None or step is None else sample - audited.samples(step).start
        yield source_of(audited, position, step=step, sequence=sequence)


def source_of(
    audited: AuditedRun, position: int, *, step: int | None, sequence: int, data_rank: int | None = None
) -> SequenceSource:
    place = audited.data.locate(position)
    file = next(files.tokens for files in audited.data.files if files.name == place.corpus)
    parts, at = [], place.first_token
    for span in place.documents:
        text = None if audited.tokenizer is None else beginning(file, at, span.n_tokens, audited.tokenizer)
        parts.append(DocumentPart(str(file.bin_path(at)), span.document, span.offset_tokens, span.n_tokens, text))
        at += span.n_tokens
    return SequenceSource(
        step=step,
        sequence=sequence,
        data_rank=data_rank,
        sample=audited.skipped.sample_at(position),
        position=position,
        corpus=place.corpus,
        epoch=place.epoch,
        window=place.window,
        first_token=place.first_token,
        documents=tuple(parts),
    )


def beginning(file: TokenFile, first_token: int, n_tokens: int, tokenizer: Tokenizer) -> str:
    """The first words of a part of a sequence, which are the sequence's own text and not the document's start."""
    text = tokenizer.decode(file.read(first_token, first_token + min(n_tokens, _TEXT_TOKENS)).tolist())
    return " ".join(text.split())[:_TEXT_CHARACTERS]


def title(audited: AuditedRun, step: int) -> str:
    """One line about the data of a step."""
    samples = audited.samples(step)
    positions = audited.skipped.positions(samples.start, len(samples))
    when = ""
    if audited.saved_step is None or step > audited.saved_step:
        newest = "there is none yet" if audited.saved_step is None else f"step {audited.saved_step:,}"
        when = f"; after the newest checkpoint ({newest}), so this is the plan"
    return (
        f"step {step:,}: {len(samples)} sequences of {audited.config.data.seq_len:,} tokens, positions "
        f"{positions[0]:,} to {positions[-1]:,}{when}"
    )


def show(heading: str, sources: Iterator[SequenceSource], console: Console | None, emit: Emit, *, text: bool) -> None:
    """Emit each sequence, and print them as a table if there is a console."""
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("sequence", "rank", "position", "corpus", "epoch", "window", "file", "document", "offset", "tokens"):
        is_name = header in ("corpus", "file")
        table.add_column(header, justify="left" if is_name else "right", no_wrap=not is_name)
    if text:
        table.add_column("text")
    for source in sources:
        emit(asdict(source))
        if console is not None:
            table_rows(table, source, text=text)
    if console is not None:
        console.print(table)


def table_rows(table: Table, source: SequenceSource, *, text: bool) -> None:
    """A row a document; those after the first leave out what is the same."""
    where = "skipped" if source.sample is None else str(source.sequence)
    rank = "" if source.data_rank is None else str(source.data_rank)
    own: list[Any] = [where, rank, source.position, source.corpus, source.epoch, source.window]
    for part in source.documents:
        row = [*own, Path(part.file).name, part.document, part.offset_tokens, part.n_tokens]
        table.add_row(*map(str, row), *([part.text or ""] if text else []))
        own = [""] * len(own)


def _steps(args: argparse.Namespace) -> tuple[int, int]:
    if args.steps is not None:
        return _span("--steps", args.steps, minimum=1)
    if not args.step.isdecimal() or int(args.step) < 1:
        raise ConfigError(f"--step {args.step} is invalid: must be a whole number of at least 1, as in metrics.jsonl")
    return int(args.step), int(args.step)


def _span(option: str, text: str, *, minimum: int) -> tuple[int, int]:
    """Both ends of A-B."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and minimum <= int(first) <= int(last)):
        raise ConfigError(f"{option} {text} is invalid: must be A-B, whole numbers with {minimum} <= A <= B")
    return int(first), int(last)


def _rank(text: str | None) -> int | None:
    return None if text is None else int(text.partition("/")[0])


def _data_ranks(text: str, saved: int | None) -> int:
    """The number of data ranks: N of `--rank R/N`, or for `--rank R` that of the newest checkpoint (`saved`)."""
    rank, slash, ranks = text.partition("/")
    number = int(ranks) if ranks.isdecimal() else None if slash else saved
    if number is None and not slash:
        raise ConfigError(f"--rank {text}: no checkpoint gives the number of data ranks. Add it: --rank {text}/N")
    if number is None or not rank.isdecimal() or int(rank) >= number:
        raise ConfigError(
            f"--rank {text} is invalid: must be R or R/N with 0 <= R < N, the number of data ranks ({saved or 'N'})"
        )
    return number
