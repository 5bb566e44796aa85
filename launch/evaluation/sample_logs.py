"""`triaxial evaluate --log-samples`: each question of a task with the model's answer and its metrics, as JSON lines."""

import json
import re
from pathlib import Path
from typing import Any

from gpt.errors import file_error
from gpt.files.atomic import replace_file
from gpt.files.json_text import without_nan


def check_sample_folder(folder: Path) -> None:
    """Make the folder. ConfigError: it cannot be made, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise file_error(error, f"--log-samples {folder} cannot be made: {error.strerror}.") from None


def write_samples(folder: Path, task: str, shots: int, samples: list[dict[str, Any]], *, writes: bool) -> None:
    """Write the items of a task, as the harness describes them, to TASK_K-shot.jsonl. Only the main rank `writes`."""
    if writes:
        name = re.sub(r"[^\w.+-]", "_", task)
        lines = (json.dumps(without_nan(sample), default=str) + "\n" for sample in samples)
        replace_file(folder / f"{name}_{shots}-shot.jsonl", "".join(lines))
