"""Parse JSON that another program, a crash or a stranger may have written, and write JSON that any program reads."""

import json
import math
import re
from typing import Any

# Characters that json.dumps does not escape, and that control a terminal or change the order of its text.
_STEERING = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def decode_json(data: bytes | str) -> Any:
    """Parse JSON. ValueError for every kind of damage, also for bad UTF-8 and for brackets nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def without_nan(value: Any) -> Any:
    """Return the value with null for NaN and infinity, which JSON does not have and other programs refuse."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list | tuple) else value


def escaped_json(text: str) -> str:
    """Return the same JSON with escapes for characters that a terminal would obey."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
