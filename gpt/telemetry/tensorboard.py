"""Record metrics as TensorBoard's event files. A failure to write them does not stop the run.

TensorBoard's own writer is a thread that dies at the first error, with a traceback. This one has no thread.
"""

import io
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt.errors import import_extra
from gpt.files.line_file import LineFile


class TensorBoardRun:
    """An event file in a folder, with one write for each step. Steps wait in memory while the disk is full.

    A folder that is deleted is made again, with one warning, unless the run directory is gone too. After any other
    failure it warns once and records nothing more. `resume_step`: the step from which a run continues; TensorBoard then
    hides the later steps. ConfigError: the package tensorboard is not installed.
    """

    def __init__(self, directory: Path, *, resume_step: int | None, warn: Callable[[str], None]) -> None:
        import_extra("tensorboard", extra="tensorboard")
        self._directory = directory
        self._warn = warn
        self._was_deleted = False
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self._file: LineFile | None = LineFile(directory / name, is_text=False)
        self._write(_record(file_version="brain.Event:2"))
        if resume_step is not None:
            self.rewind(resume_step)

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        """Record the values of a step."""
        if self._file is not None and values:
            scalars = [{"tag": name, "simple_value": float(value)} for name, value in values.items()]
            self._write(_record(step=step, summary={"value": scalars}))

    def log_text(self, step: int, name: str, text: str) -> None:
        """Record a text of a step. TensorBoard's page of texts shows it as it is, and not as Markdown."""
        if self._file is not None:
            from tensorboard.plugins.text.metadata import create_summary_metadata

            shown = "".join(f"    {line}\n" for line in text.splitlines())  # a block of code in Markdown
            value = {
                "tag": name,
                "metadata": create_summary_metadata(display_name=name, description=""),
                "tensor": {
                    "dtype": "DT_STRING",
                    "string_val": [shown.encode(errors="backslashreplace")],  # a text may hold lone surrogates
                    "tensor_shape": {"dim": [{"size": 1}]},
                },
            }
            self._write(_record(step=step, summary={"value": [value]}))

    def rewind(self, step: int) -> None:
        """Continue from an earlier step."""
        self._write(_record(step=step + 1, session_log={"status": "START"}))

    def finish(self) -> None:
        """Write everything and close the file."""
        self._write(b"")
        if self._file is not None:
            if self._file.is_waiting:
                self._give_up(self._file.error or OSError("records still wait"))
            else:
                self._file.close()
        self._file = None

    def _write(self, data: bytes) -> None:
        if self._file is None:
            return
        try:
            try:
                self._file.add(data)
            except FileNotFoundError:  # the folder is not there, or not any more; `data` waits
                self._directory.mkdir(exist_ok=True)
                self._file.add(b"")
            deleted = self._file.was_replaced and not self._was_deleted
        except Exception as error:  # none may end the run
            self._give_up(error)
            return
        if deleted:
            self._was_deleted = True
            self._warn(
                f"TensorBoard's files in {self._directory} were deleted during the run; it continues in new ones"
            )

    def _give_up(self, error: Exception) -> None:
        file, self._file = self._file, None
        with suppress(Exception):
            if file is not None:
                file.close()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        self._warn(f"TensorBoard's files in {self._directory} cannot be written ({reason}); the run continues without")


def _record(**fields: Any) -> bytes:
    """Return an event in the form that TensorBoard reads: length, event, and a checksum of each."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    event = Event(wall_time=time.time(), **fields)
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
