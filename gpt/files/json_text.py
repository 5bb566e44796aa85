"""Parse JSON that another program, a crash or a stranger may have written."""

import json
from typing import Any


def decode_json(data: bytes | str) -> Any:
    """Parse JSON. ValueError for every kind of damage, also for bad UTF-8 and for brackets nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
