"""Takes secrets out of what a command is about to show or keep; reads neither the environment nor any file."""

import re
from collections.abc import Mapping

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_NO_SECRET_NAME = re.compile(r"_(FILE|PATH|DIR|FOLDER)$|TOKENIZER", re.IGNORECASE)
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:/{1,2})[^/\s'\"]*@")  # up to the last @: one may stand in a password
_SIGNED = re.compile(
    r"([?&][^=&\s]*(?:sign|sig|token|secret|credential|passw|api_?key)[^=&\s]*=)[^&\s'\"]+", re.IGNORECASE
)
_LEAST = 8  # a shorter value would be found in innocent words


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """The text without users and signatures in URLs, and with the names of variables in the place of their secrets."""
    text = _SIGNED.sub(r"\1***", _USER.sub(r"\1***@", text))
    for name, value in environment.items():
        if len(value) >= _LEAST and _SECRET_NAME.search(name) and not _NO_SECRET_NAME.search(name):
            text = text.replace(value, f"<{name}>")
    return text
