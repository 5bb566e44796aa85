"""Record in each checkpoint what the order of its data depends on, and compare two records."""

from typing import Any

from gpt.data.dataset import TrainingData
from gpt.data.order import ORDER_VERSION
from gpt.data.sampling import CorpusFiles

_LABELS = {
    "order_version": "the version of the data order",
    "seed": "the seed",
    "seq_len": "seq_len",
    "sampling": "data.sampling",
    "document_mask": "data.document_mask",
}
_DEFAULTS = {"sampling": "window", "document_mask": False}  # left out of the record, as by earlier versions
_CORPUS_LABELS = {
    "weight": "weight",
    "sampling": "sampling",
    "n_tokens": "number of tokens",
    "n_documents": "number of documents",
}


def fingerprint(data: TrainingData) -> dict[str, Any]:
    """Everything that the order and the samples depend on, as JSON for a checkpoint."""
    settings = {key: getattr(data.config, key) for key in _DEFAULTS}
    return {
        "order_version": ORDER_VERSION,
        "seed": data.seed,
        "seq_len": data.seq_len,
        **{key: value for key, value in settings.items() if value != _DEFAULTS[key]},
        "corpora": [
            {
                "name": corpus.name,
                "weight": corpus.weight,
                "n_tokens": files.tokens.n_tokens,
                "n_documents": files.tokens.n_documents,
                **({"sampling": corpus.sampling} if corpus.sampling is not None else {}),
                **_streams(files),
            }
            for corpus, files in zip(data.corpora, data.files, strict=True)
        ],
    }


def _streams(files: CorpusFiles) -> dict[str, Any]:
    """The number of tokens of each stream; nothing without streams, as in records of earlier versions."""
    streams = {name: stream.n_tokens for name, stream in files.streams.items()}
    return {"streams": streams} if streams else {}


def fingerprint_differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """The differences between the data of a checkpoint and those of this run, one phrase each.

    Any difference means that the resumed run would read samples twice or leave some out.
    """
    saved, current = {**_DEFAULTS, **saved}, {**_DEFAULTS, **current}
    if not _by_window(saved) and not _by_window(current):  # documents are kept apart in any case
        saved["document_mask"] = current["document_mask"]
    found = [
        f"{label} was {saved.get(key)} and is now {current.get(key)}"
        for key, label in _LABELS.items()
        if saved.get(key) != current.get(key)
    ]
    before = {corpus["name"]: corpus for corpus in saved.get("corpora", [])}
    after = {corpus["name"]: corpus for corpus in current.get("corpora", [])}
    found += [f"corpus '{name}' is gone" for name in before if name not in after]
    found += [f"corpus '{name}' is new" for name in after if name not in before]
    for name in (name for name in after if name in before):
        for key, label in _CORPUS_LABELS.items():
            old, new = before[name].get(key), after[name].get(key)
            if old != new:
                found.append(f"the {label} of corpus '{name}' was {old} and is now {new}")
        found += _stream_differences(name, before[name].get("streams", {}), after[name].get("streams", {}))
    return found


def _by_window(record: dict[str, Any]) -> bool:
    """Whether any corpus of a record is cut into windows."""
    return any(corpus.get("sampling", record["sampling"]) == "window" for corpus in record.get("corpora", []))


def _stream_differences(corpus: str, before: dict[str, int], after: dict[str, int]) -> list[str]:
    found = [f"stream '{name}' of corpus '{corpus}' is gone" for name in before if name not in after]
    found += [f"stream '{name}' of corpus '{corpus}' is new" for name in after if name not in before]
    for name in (name for name in after if name in before and before[name] != after[name]):
        was, now = before[name], after[name]
        found.append(f"the number of tokens of stream '{name}' of corpus '{corpus}' was {was} and is now {now}")
    return found
