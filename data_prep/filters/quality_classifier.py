"""Compute GPT-3's quality features of a text, and score them from 0 to 1 by a logistic regression.

The features are those of appendix A of arXiv 2005.14165: Spark's Tokenizer, then HashingTF with its 2^18 buckets,
which counts terms. The hash is that of Spark 3 and later, MurmurHash3_x86_32 with seed 42. Spark 2 treated the last 1
to 3 bytes of a word differently; its buckets differ, but are no better or worse.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt.errors import ConfigError, file_error, import_extra
from gpt.files.json_text import decode_json

N_BUCKETS = 1 << 18
FEATURES = (
    f"lower case, split at each of [ \\t\\n\\v\\f\\r], counts in {N_BUCKETS} buckets of MurmurHash3_x86_32 (seed 42)"
)
_SEED = 42
_BLANKS = " \t\n\x0b\x0c\r"  # Java's \s: Unicode's other blanks are parts of words
_BLANK = re.compile(f"[{_BLANKS}]")
_PIECE = 1 << 18
_FORMAT = "triaxial-quality-model"


@dataclass(frozen=True)
class QualityModel:
    """Logistic regression over the buckets: `weights` (N_BUCKETS,) float64, `bias`, and its training report (JSON)."""

    weights: npt.NDArray[np.float64]
    bias: float
    about: Mapping[str, Any]


def words(text: str) -> Iterator[list[str]]:
    """Yield the words of Spark's Tokenizer, that is of Java's `text.toLowerCase().split("\\s")`, some at a time.

    Each blank ends a word, so there is an empty word between two blanks, and it counts. As in Java, the empty words at
    the end are left out. A long text comes in lists of about _PIECE characters, since all words of a text of 64 MiB
    together would take gigabytes.
    """
    end = len(text.rstrip(_BLANKS))
    if text and not end:
        return
    start = 0
    while start <= end:
        blank = _BLANK.search(text, start + _PIECE, end)
        stop = blank.start() if blank else end
        lowered = text[start:stop].lower()
        for character in _BLANKS[1:]:
            lowered = lowered.replace(character, " ")
        yield lowered.split(" ")
        start = stop + 1


def word_buckets(text: str) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the bucket of each word, one array for each list of `words`; empty words come last in each.

    Indented text has very many empty words, so their hash is computed only once.
    """
    murmur_hash = import_extra("mmh3", extra="data").hash
    text.encode()  # raises on half a character, on which mmh3 ends the process
    for found in words(text):
        filled = list(filter(None, found))
        hashes = np.full(len(found), murmur_hash("", _SEED), dtype=np.int64)
        hashes[: len(filled)] = np.fromiter(map(murmur_hash, filled, repeat(_SEED)), dtype=np.int64, count=len(filled))
        yield hashes & (N_BUCKETS - 1)  # the non-negative remainder of signed hashes too: N_BUCKETS is a power of two


def term_counts(text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return (the buckets that occur, sorted; the number of words in each)."""
    parts = [np.unique(buckets, return_counts=True) for buckets in word_buckets(text)]
    if len(parts) == 1:
        return parts[0]
    total = np.zeros(N_BUCKETS, dtype=np.int64)
    for buckets, counts in parts:
        total[buckets] += counts
    found = np.flatnonzero(total)
    return found, total[found]


def scorer(model: QualityModel) -> Callable[[str], float]:
    """Return the function from a text to its score: the probability that it belongs to the positive class.

    Scores are rounded to 6 decimals. A shard's `quality_score` is therefore exactly the number used for the decision.
    The last bits of a sum, which differ between machines, do not matter.
    """

    def score(text: str) -> float:
        margin = sum(float(model.weights[buckets].sum()) for buckets in word_buckets(text)) + model.bias
        return round(probability(margin), 6)

    return score


def probability(margin: float) -> float:
    """1 / (1 + exp(-margin)), for margins of any size."""
    if margin >= 0:
        return 1 / (1 + math.exp(-margin))
    small = math.exp(margin)
    return small / (1 + small)


def save_model(model: QualityModel, path: Path) -> None:
    """Write a `.safetensors` file: tensors `weights` and `bias`, and a description of the model (JSON) as metadata."""
    from safetensors.numpy import save

    about = {"format": _FORMAT, "version": 1, "features": FEATURES, **model.about}
    tensors = {"weights": model.weights, "bias": np.array([model.bias])}
    path.write_bytes(save(tensors, {"triaxial": json.dumps(about, sort_keys=True)}))


def load_model(path: Path) -> QualityModel:
    """Load a model that `save_model` wrote. ConfigError: the file is missing or is something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = decode_json((file.metadata() or {}).get("triaxial", "{}"))
            if about.get("format") != _FORMAT:
                raise ConfigError(f"{path} is not a quality model. Make one with `triaxial prepare train-quality`")
            if about.get("features") != FEATURES:
                raise ConfigError(f"{path} was trained on other features ({about.get('features')}). Train it again")
            weights, bias = file.get_tensor("weights"), file.get_tensor("bias")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such quality model. Make one with `triaxial prepare train-quality --output {path}`"
        ) from None
    except OSError as error:  # "No such device": it is a folder
        wrong = ConfigError(f"{path} is not a quality model ({error})")
        raise (wrong if path.is_dir() else file_error(error, f"{path} cannot be read ({error})")) from None
    except (SafetensorError, ValueError) as error:
        raise ConfigError(f"{path} is not a quality model ({error})") from None
    if weights.shape != (N_BUCKETS,) or bias.shape != (1,) or not np.isfinite(weights).all():
        raise ConfigError(f"{path} is not a quality model: its weights are not {N_BUCKETS} finite numbers")
    return QualityModel(weights, float(bias[0]), about)


def model_digest(path: Path) -> str:
    """Return the SHA-256 of a model's file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
