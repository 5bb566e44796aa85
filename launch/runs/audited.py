"""Open a run to name the corpus, file and documents that each of its sequences is read from."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

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
    id: str | None = None  # the document's, in the run of `triaxial prepare` that made the corpus
    url: str | None = None  # of its page; "" if it has none


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


def with_sources(
    sequences: Iterable[SequenceSource],
    work: Path | None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[SequenceSource]:
    """Add each document's id and URL, from the work folder of the run of `triaxial prepare` that made the corpus.

    `work`: that folder; None: `work` in the corpus's folder. ConfigError: it is not there, or is of another corpus.
    """
    from data_prep.corpus.corpus import TOKEN_FILE  # with the packages of the extra `data`
    from data_prep.reports.origins import sources_of

    found = list(sequences)
    numbers: dict[tuple[Path, str], set[int]] = {}  # (folder of a corpus, split): documents
    for part in (part for sequence in found for part in sequence.documents):
        file = Path(part.file)
        if (match := TOKEN_FILE.fullmatch(file.name)) is None:
            raise ConfigError(f"{file}: its name is not one that `triaxial prepare` gives, so it has no work folder")
        numbers.setdefault((file.parent, match[1]), set()).add(part.document)
    sources = {
        (folder, split): sources_of(
            folder, work or folder / "work", split=split, documents=documents, progress=progress
        )
        for (folder, split), documents in numbers.items()
    }

    def named(part: DocumentPart) -> DocumentPart:
        file = Path(part.file)
        split = next(split for folder, split in sources if folder == file.parent and file.name.startswith(split))
        source = sources[file.parent, split][part.document]
        return replace(part, id=source.id, url=source.url)

    return [replace(sequence, documents=tuple(map(named, sequence.documents))) for sequence in found]


def beginning(file: TokenFile, first_token: int, n_tokens: int, tokenizer: Tokenizer) -> str:
    """The first words of a part of a sequence, which are the sequence's own text and not the document's start."""
    text = tokenizer.decode(file.read(first_token, first_token + min(n_tokens, _TEXT_TOKENS)).tolist())
    return " ".join(text.split())[:_TEXT_CHARACTERS]


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
