"""Write a file of scores that grows chunk by chunk, so that an interrupted run continues where it stopped.

FILE.jsonl           one line for each text; gzip for FILE.jsonl.gz, a table for FILE.parquet
FILE.summary.json    the model's version, the taxonomy, counts
FILE.set_aside.jsonl the records that gave no text, with the reason

While the run is not done, the lines are in .FILE.part and .FILE.aside, and their lengths in .FILE.progress.json. One
process at a time writes them, the one that holds .FILE.lock.
"""

import gzip
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError, import_extra
from gpt.files.atomic import open_replacement, replace_file, sync_file
from gpt.files.held import held
from gpt.files.json_text import decode_json
from launch.moderation.score_inputs import SetAside

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
_TABLE_ROWS = 4096


@dataclass
class Progress:
    """The records that are done, and the lengths of the files that hold them. `request`: equal for the same run."""

    request: dict[str, Any]
    records: int = 0  # texts, and records set aside
    texts: int = 0
    in_windows: int = 0  # texts of more than one window
    part_bytes: int = 0
    aside_bytes: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


class ScoreFile:
    """The files of one run. `resumed`: an earlier run of the same request got somewhere. Only the main rank writes."""

    def __init__(self, output: Path, request: dict[str, Any]) -> None:
        self.output = output
        self.stem = stem_of(output)
        hidden = output.with_name(f".{output.name}")
        self._part, self._aside = Path(f"{hidden}.part"), Path(f"{hidden}.aside")
        self._progress = Path(f"{hidden}.progress.json")
        self.progress = self._read(request)
        self.resumed = self.progress.records > 0

    @property
    def summary_path(self) -> Path:
        return summary_path(self.output)

    @property
    def aside_path(self) -> Path:
        return self.output.with_name(f"{self.stem}.set_aside.jsonl")

    def _read(self, request: dict[str, Any]) -> Progress:
        """The progress of an earlier run of this request, or none."""
        try:
            values = decode_json(self._progress.read_bytes())
            found = Progress(**values)
            sizes = (self._part.stat().st_size, self._aside.stat().st_size)
        except (OSError, ValueError, TypeError, KeyError):
            return Progress(request)
        is_whole = sizes[0] >= found.part_bytes and sizes[1] >= found.aside_bytes
        return found if found.request == request and is_whole else Progress(request)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the files, and truncate them to the recorded lengths. Call `add` and `finish` inside.

        ConfigError: another command writes them, or has written to them since this object was made.
        """
        self.output.parent.mkdir(parents=True, exist_ok=True)
        name = f"--output {self.output} is invalid: another `triaxial moderate score`"
        lock = self.output.with_name(f".{self.stem}.lock")
        with held(lock, message=f"{name} is writing it. Wait for that one, or name another file"):
            if self._read(self.progress.request) != self.progress:
                raise ConfigError(f"{name} has just written it. Run the command again, or name another file")
            for path, size in ((self._part, self.progress.part_bytes), (self._aside, self.progress.aside_bytes)):
                with open(path, "ab") as file:
                    file.truncate(size)
            yield

    def add(self, lines: Sequence[bytes], aside: Sequence[SetAside], *, in_windows: int) -> None:
        """Append a chunk, and record it once it is on disk."""
        now = self.progress
        rejected = [json.dumps(asdict(one), ensure_ascii=True).encode() + b"\n" for one in aside]
        for path, more in ((self._part, lines), (self._aside, rejected)):
            with open(path, "ab") as file:
                file.writelines(more)
                sync_file(file)
        now.records += len(lines) + len(aside)
        now.texts += len(lines)
        now.in_windows += in_windows
        now.part_bytes, now.aside_bytes = self._part.stat().st_size, self._aside.stat().st_size
        for one in aside:
            now.reasons[one.reason] = now.reasons.get(one.reason, 0) + 1
        replace_file(self._progress, json.dumps(asdict(now)))

    def finish(self, facts: Mapping[str, Any], categories: Sequence[str]) -> None:
        """Give the files their names, the summary last."""
        if self.output.name.endswith(".gz"):
            with (
                open(self._part, "rb") as lines,
                open_replacement(self.output) as raw,
                gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, compresslevel=6) as packed,
            ):
                shutil.copyfileobj(lines, packed, 1 << 20)
            self._part.unlink()
        elif self.output.suffix == ".parquet":
            _write_table(self._part, self.output, categories)
            self._part.unlink()
        else:
            os.replace(self._part, self.output)
        if self.progress.reasons:
            os.replace(self._aside, self.aside_path)
        else:
            self._aside.unlink()
            self.aside_path.unlink(missing_ok=True)
        replace_file(self.summary_path, json.dumps(facts, indent=2) + "\n")
        self._progress.unlink(missing_ok=True)


def summary_path(scores: Path) -> Path:
    """The file with the summary of a file of scores. ConfigError: the name of `scores` has another ending."""
    return scores.with_name(f"{stem_of(scores)}.summary.json")


def stem_of(output: Path) -> str:
    """The name without its ending. ConfigError: the ending is unknown."""
    for ending in ENDINGS:
        if output.name.endswith(ending) and output.name != ending:
            return output.name.removesuffix(ending)
    raise ConfigError(f"--output {output} is invalid: the ending must be one of {', '.join(ENDINGS)}")


def _write_table(lines: Path, output: Path, categories: Sequence[str]) -> None:
    """Parquet: id, text, scores (a struct of doubles), windows, groups (JSON), source."""
    arrow = import_extra("pyarrow", extra="data")
    parquet = import_extra("pyarrow.parquet", extra="data")
    schema = arrow.schema(
        [
            ("id", arrow.string()),
            ("text", arrow.string()),
            ("scores", arrow.struct([(name, arrow.float64()) for name in categories])),
            ("windows", arrow.int32()),
            ("groups", arrow.string()),
            ("source", arrow.string()),
        ]
    )
    with open_replacement(output) as raw, parquet.ParquetWriter(raw, schema) as writer, open(lines, "rb") as file:
        rows: list[dict[str, Any]] = []
        for line in file:
            row = decode_json(line)
            rows.append({**row, "groups": json.dumps(row["groups"])})
            if len(rows) == _TABLE_ROWS:
                writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
                rows = []
        if rows:
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
