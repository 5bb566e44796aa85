"""A corpus is compared with earlier ones; a damaged or different index is an error."""

import json
import re
import shutil
from pathlib import Path

import pytest
from dedup_cases import SMALL, deduplicate, edited

from data_prep.dedup.exact import ExactConfig
from data_prep.dedup.fuzzy import FuzzyConfig
from data_prep.dedup.index import DedupConfig
from data_prep.documents.shards import Document
from gpt.errors import ConfigError

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")
pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


@pytest.mark.parametrize("kind", ["duplicate", "near_duplicate"])
def test_copies_of_other_corpora_are_removed_by_priority(tmp_path, prose, kind):
    """Copies of a corpus of higher priority are removed, the longest too, and the reason names that corpus."""
    exact = kind == "duplicate"
    config = ExactConfig() if exact else FuzzyConfig(method="gpt3")
    wiki, books = tmp_path / "wiki", tmp_path / "books"
    text = [prose(seed, 30) for seed in range(6)]
    deduplicate(wiki, [Document("w1", text[1]), Document("w2", text[2]), Document("w1 again", text[1])], 2, config)
    gone = deduplicate(books, [Document("b2", text[2]), Document("b3", text[3])], 1, config, against=[wiki])
    assert gone == {"b2": (f"{kind}_of_other_corpus", f"copy of w2 in {wiki}")}
    wiki = Path(shutil.move(wiki, tmp_path / "moved"))  # a corpus is one folder and can be moved
    documents = [
        Document("1", text[1]),
        Document("2", text[2] if exact else edited(text[2], 0.02, 0)),  # both corpora have it: the first one counts
        Document("3", text[3]),
        Document("3 longer", text[3] if exact else text[3] + " and more"),  # longer, but removed too
        Document("4", text[4]),
        Document("4 again", text[4]),
        Document("5", text[5]),
    ]
    gone = deduplicate(tmp_path / "web", documents, 3, config, against=[wiki / "work", books], limits=SMALL)
    first, second = f"in {wiki / 'work'}", f"in {books}"
    four, four_kept = sorted(["4", "4 again"], key=lambda name: name not in gone)
    other = f"{kind}_of_other_corpus"
    assert {name: reason for name, (reason, _) in gone.items()} == dict.fromkeys(["1", "2", "3", "3 longer"], other) | {
        four: kind
    }
    assert gone[four][1] == f"copy of {four_kept}"
    assert gone["2"][1] == f"copy of w2 {first}"
    assert gone["1"][1] in (f"copy of w1 {first}", f"copy of w1 again {first}")
    assert gone["3"][1] == gone["3 longer"][1] == f"copy of b3 {second}"


def test_corpora_that_cannot_be_compared_are_errors(tmp_path, prose):
    documents = [Document("a", prose(1)), Document("b", prose(2))]
    deduplicate(tmp_path / "a", documents, 1, FuzzyConfig())

    def is_error(pattern, config, against):
        with pytest.raises(ConfigError, match=pattern):
            deduplicate(tmp_path / "b", documents, 1, config, against=[against])

    is_error(r"ngram_words = 5 in dedup_minhash, this recipe says 3", FuzzyConfig(ngram_words=3), tmp_path / "a")
    is_error(r"min_jaccard > 0 = False in dedup_minhash, .* True", FuzzyConfig(min_jaccard=0.5), tmp_path / "a")
    is_error(r"has exact_index\.json", ExactConfig(), tmp_path / "a")
    is_error(r"has minhash_index\.json", FuzzyConfig(), tmp_path / "nowhere")
    deduplicate(tmp_path / "b", documents, 1, FuzzyConfig())
    is_error(r"this run's own", FuzzyConfig(), tmp_path / "b")
    index = json.loads((tmp_path / "a/work/minhash_index.json").read_text())
    group = tmp_path / "a/work" / index["groups"][0]["path"]
    group.write_bytes(group.read_bytes()[:-1])
    is_error(re.escape(f"{group} is missing or cut"), FuzzyConfig(), tmp_path / "a")
    index["setting"]["hash_version"] = 0
    (tmp_path / "a/work/minhash_index.json").write_text(json.dumps(index))
    is_error(r"hash_version = 0 in dedup_minhash, this recipe says 1", FuzzyConfig(), tmp_path / "a")
    assert DedupConfig().against == ()
