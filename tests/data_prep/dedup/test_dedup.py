"""Planted copies are found, all that comparing all pairs finds, and which one stays depends on the documents alone."""

import json
import random
import re
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_prep.dedup import exact as dedup_exact
from data_prep.dedup import fuzzy as dedup_minhash
from data_prep.dedup.clusters import EDGE
from data_prep.dedup.copies import Removal, remove_copies
from data_prep.dedup.exact import ExactConfig
from data_prep.dedup.fuzzy import FuzzyConfig, PairTask, find_pairs
from data_prep.dedup.index import DedupConfig
from data_prep.dedup.minhash import (
    band_keys,
    count_bits,
    following,
    jaccard,
    max_differences,
    permutations,
    shingles,
    signature,
    sketches,
    split_words,
)
from data_prep.dedup.signatures import MinHash, SignTask, sign_texts
from data_prep.dedup.sorted_rows import Limits, Range
from data_prep.documents.shards import Document, keyed_hash, read_shard, write_shard
from data_prep.documents.traces import read_trace
from data_prep.execution.progress import ProgressBars
from data_prep.execution.shard_runs import ShardRun
from data_prep.execution.workspace import Workspace
from gpt.errors import ConfigError
from launch.config.recipe import build

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")
pytest.importorskip("zstandard", reason="the extra 'data' is not installed")

SMALL = Limits(bytes_in_memory=2400, rows_per_task=1500, shards_per_group=2)  # everything is cut and merged


def deduplicate(folder: Path, documents, n_shards, config, *, limits=None, against=()):
    """{id of what goes: (reason, detail)} when the documents lie in `n_shards` shards; the work stays in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = {}
    for number in range(n_shards):
        shards[f"shard-{number}"] = folder / f"{number}.jsonl.zst"
        with write_shard(folder / f"{number}.jsonl.zst") as write:
            for document in documents[number::n_shards]:
                write(document)
    exact = isinstance(config, ExactConfig)
    stages = dedup_exact if exact else dedup_minhash
    find = dedup_exact.find_copies if exact else dedup_minhash.find_near_copies
    with Workspace(folder / "work", n_workers=1, progress=ProgressBars(Console(quiet=True))) as workspace:
        run = ShardRun(workspace)
        lists = find(run, config, shards, against=against, limits=limits)
        removal = dedup_exact.COPY if exact else dedup_minhash.NEAR_COPY
        left = run.map(stages.REMOVAL, removal, shards, extra_inputs=lists)
    kept = [document.id for path in left.values() for document in read_shard(path)]
    drops = [drop for path in left.values() for drop in read_trace(Path(str(path).replace(".jsonl", ".dropped.jsonl")))]
    gone = {drop.id: (drop.reason, drop.detail) for drop in drops}
    assert sorted([*kept, *(drop.id for drop in drops)]) == sorted(document.id for document in documents)
    assert run.counts[-1].documents_out == len(kept)
    return gone


def clusters_left(documents, pairs, key):
    """By brute force: {id that goes: id that stays} when the pairs of numbers are copies; `key` is the stage's."""
    parent = list(range(len(documents)))

    def root(i):
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for a, b in pairs:
        parent[root(a)] = root(b)
    members = {}
    for i, document in enumerate(documents):
        members.setdefault(root(i), []).append(document)
    gone = {}
    for cluster in members.values():
        best = min(cluster, key=lambda d: (-len(d.text.encode()), keyed_hash(d.id, key=key)))
        gone |= {d.id: best.id for d in cluster if d is not best}
    return gone


def planted(prose, *, n=30, sentences=10):
    """Texts with copies edited more and more, so that similarities of all sizes occur, in an order of no meaning."""
    documents = []
    for seed in range(n):
        text = prose(seed, sentences)
        documents.append(Document(f"{seed}", text))
        for copy, share in enumerate((0.0, 0.01, 0.03, 0.08, 0.2)[: seed % 6]):
            documents.append(Document(f"{seed}/{copy}", edited(text, share, 7 * seed + copy)))
    documents += [
        Document("nothing a", "?! …"),
        Document("nothing b", "?! ..."),
        Document("ünïcode", "Ünïcodé ‘words’ é"),
    ]
    documents += [Document("ünïcode 2", "ÜNÏCODÉ “words” é"), Document("few", "just three words")]
    random.Random(0).shuffle(documents)
    return documents


def edited(text: str, share: float, seed: int) -> str:
    """The text with a share of its words exchanged."""
    rng = random.Random(seed)
    return " ".join(f"edit{rng.randrange(9999)}" if rng.random() < share else word for word in text.split(" "))


def test_exact_copies(tmp_path, prose):
    texts = [prose(seed) for seed in range(8)]
    documents = [Document(f"{seed}-{copy}", texts[seed]) for copy in range(3) for seed in range(8) if copy <= seed]
    documents += [Document("shout", texts[0].upper()), Document("wide", texts[1].replace(" ", "  "))]
    documents += [Document(f"boilerplate {i}", "All rights reserved.") for i in range(1000)]
    pairs = [(a, b) for (a, x), (b, y) in combinations(enumerate(documents), 2) if x.text == y.text]
    expected = clusters_left(documents, pairs, "exact")
    for trial, (n_shards, limits) in enumerate([(1, None), (5, SMALL)]):
        random.Random(trial).shuffle(documents)
        gone = deduplicate(tmp_path / str(trial), documents, n_shards, ExactConfig(), limits=limits)
        assert gone == {name: ("duplicate", f"copy of {best}") for name, best in expected.items()}
    loose = deduplicate(tmp_path / "loose", documents, 3, ExactConfig(ignore_case_and_space=True))
    assert len(loose) == len(expected) + 2


def words_of(config, text):
    """Independent of ours: sets of word tuples."""
    words = text.lower().split() if config.tokens == "whitespace" else re.findall(r"\w+", text.lower())
    n = min(config.ngram_words, len(words))
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} if words else set()


@pytest.mark.parametrize(
    "config",
    [
        FuzzyConfig(method="gpt3", neighbours=3),  # buckets hold half of the texts: similar ones stand together
        FuzzyConfig(ngram_words=3, bands=40, rows=2, min_jaccard=0.7, neighbours=1000),
    ],
    ids=["gpt3", "compared"],
)
def test_clusters_are_those_of_comparing_all_pairs(tmp_path, prose, config):
    """Enough bands that no similar pair escapes them (less than one in 10^6 at the threshold)."""
    documents = planted(prose)
    sets = [words_of(config, document.text) for document in documents]
    similar = [
        (a, b)
        for (a, x), (b, y) in combinations(enumerate(sets), 2)
        if x and y and len(x & y) / len(x | y) >= config.min_jaccard
    ]
    expected = clusters_left(documents, similar, "minhash")
    assert 50 < len(expected) < len(documents) - 30
    for trial, (n_shards, limits) in enumerate([(1, None), (5, SMALL)]):
        random.Random(trial).shuffle(documents)
        gone = deduplicate(tmp_path / str(trial), documents, n_shards, config, limits=limits)
        assert gone == {name: ("near_duplicate", f"copy of {best}") for name, best in expected.items()}


def test_clusters_are_those_of_equal_bands(tmp_path, prose):
    """The default, without comparison: every pair that shares a band, from signatures compared band by band."""
    documents, config, functions = planted(prose), FuzzyConfig(), permutations(14 * 8)
    bands = [
        {(i, band.tobytes()) for i, band in enumerate(signature(grams, functions).reshape(14, 8)) if len(grams)}
        for grams in (shingles(document.text, 5) for document in documents)
    ]
    expected = clusters_left(
        documents, [p for p in combinations(range(len(bands)), 2) if bands[p[0]] & bands[p[1]]], "minhash"
    )
    assert 50 < len(expected) < len(documents) - 30
    for trial, (n_shards, limits) in enumerate([(7, None), (2, SMALL)]):
        gone = deduplicate(tmp_path / str(trial), documents, n_shards, config, limits=limits)
        assert {name: detail for name, (_, detail) in gone.items()} == {
            name: f"copy of {best}" for name, best in expected.items()
        }
    manifest = tmp_path / "0/work/manifest.jsonl"
    n_tasks = manifest.read_text().count('"key"')
    assert deduplicate(tmp_path / "0", documents, 7, config).keys() == expected.keys()
    assert manifest.read_text().count('"key"') == n_tasks, "a second run finds all done"


@pytest.mark.parametrize("kind", ["duplicate", "near_duplicate"])
def test_other_corpora_come_first(tmp_path, prose, kind):
    """What a corpus of higher priority holds goes, with all that is a copy of it, and the reason names it."""
    exact = kind == "duplicate"
    config = ExactConfig() if exact else FuzzyConfig(method="gpt3")
    wiki, books = tmp_path / "wiki", tmp_path / "books"
    text = [prose(seed, 30) for seed in range(6)]
    deduplicate(wiki, [Document("w1", text[1]), Document("w2", text[2]), Document("w1 again", text[1])], 2, config)
    gone = deduplicate(books, [Document("b2", text[2]), Document("b3", text[3])], 1, config, against=[wiki])
    assert gone == {"b2": (f"{kind}_of_other_corpus", f"copy of w2 in {wiki}")}
    wiki = Path(shutil.move(wiki, tmp_path / "moved"))  # a corpus is one folder, wherever it lies
    documents = [
        Document("1", text[1]),
        Document("2", text[2] if exact else edited(text[2], 0.02, 0)),  # both corpora had it: the first one counts
        Document("3", text[3]),
        Document("3 longer", text[3] if exact else text[3] + " and more"),  # longer, and goes all the same
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


def test_other_corpora_that_cannot_be_compared(tmp_path, prose):
    documents = [Document("a", prose(1)), Document("b", prose(2))]
    deduplicate(tmp_path / "a", documents, 1, FuzzyConfig())

    def refused(pattern, config, against):
        with pytest.raises(ConfigError, match=pattern):
            deduplicate(tmp_path / "b", documents, 1, config, against=[against])

    refused(r"ngram_words = 5 in dedup_minhash, this recipe says 3", FuzzyConfig(ngram_words=3), tmp_path / "a")
    refused(r"min_jaccard > 0 = False in dedup_minhash, .* True", FuzzyConfig(min_jaccard=0.5), tmp_path / "a")
    refused(r"has exact_index\.json", ExactConfig(), tmp_path / "a")
    refused(r"has minhash_index\.json", FuzzyConfig(), tmp_path / "nowhere")
    deduplicate(tmp_path / "b", documents, 1, FuzzyConfig())
    refused(r"this run's own", FuzzyConfig(), tmp_path / "b")
    index = json.loads((tmp_path / "a/work/minhash_index.json").read_text())
    group = tmp_path / "a/work" / index["groups"][0]["path"]
    group.write_bytes(group.read_bytes()[:-1])
    refused(re.escape(f"{group} is missing or cut"), FuzzyConfig(), tmp_path / "a")
    index["setting"]["hash_version"] = 0
    (tmp_path / "a/work/minhash_index.json").write_text(json.dumps(index))
    refused(r"hash_version = 0 in dedup_minhash, this recipe says 1", FuzzyConfig(), tmp_path / "a")
    assert DedupConfig().against == ()


@pytest.mark.parametrize("config", [FuzzyConfig(), FuzzyConfig(min_jaccard=0.7)], ids=["bands", "compared"])
def test_a_bucket_of_boilerplate_costs_no_more_than_its_size(tmp_path, config):
    """n documents in the same buckets make n or n x neighbours pairs, not n^2, and are never in memory at once."""
    n, limits = 3000, Limits(bytes_in_memory=16000)
    with write_shard(tmp_path / "shard") as write:
        for i in range(n):
            write(Document(str(i), "We use cookies to give you the best experience on our site."))
    setting = config.setting
    outputs = [tmp_path / name for name in ("rows", "about", "notes")]
    sign_texts(SignTask(setting, limits), (tmp_path / "shard",), tuple(outputs))
    index = {"format": "triaxial-dedup-index", "version": 1, "kind": "minhash", "setting": {}, "folder": "."}
    index |= {"shards": [], "groups": [{"path": "rows", "bytes": 0, "digest": ""}]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    rows = np.fromfile(tmp_path / "rows", setting.row_type)
    assert len(rows) == 14 * n
    rows["position"] += np.uint64(4095 << 52)
    rows.tofile(tmp_path / "rows")
    find_pairs(PairTask(Range(), setting, limits), (tmp_path / "index.json",), (tmp_path / "pairs",))
    pairs = np.fromfile(tmp_path / "pairs", EDGE)
    assert len(np.unique([pairs["node"], pairs["other"]])) == n
    if config.min_jaccard == 0:
        assert len(pairs) == n - 1
    else:  # in every bucket the same order, so each document has the same 16 before it, the first ones fewer
        assert len(pairs) == 16 * n - sum(range(17))


def test_a_list_ends_where_the_shard_does(tmp_path, prose):
    """Removal reads its list as a stream beside the shard."""
    documents = [Document(str(i), prose(i, 2)) for i in range(6)]
    with write_shard(tmp_path / "shard") as write:
        for document in documents:
            write(document)
    lines = [[0, "x", None], [4, "y", "wiki"], [5, "x", None]]
    (tmp_path / "list").write_text("".join(json.dumps(line) + "\n" for line in lines))
    remove_copies(Removal("s", "r"), (tmp_path / "shard", tmp_path / "list"), (tmp_path / "out", tmp_path / "trace"))
    assert list(read_shard(tmp_path / "out")) == documents[1:4]
    drops = [(d.id, d.reason, d.detail) for d in read_trace(tmp_path / "trace")]
    assert drops == [
        ("0", "r", "copy of x"),
        ("4", "r_of_other_corpus", "copy of y in wiki"),
        ("5", "r", "copy of x"),
    ]


def test_signatures_estimate_jaccard(prose):
    functions = permutations(1024)
    text = prose(1, 80)
    for share in (0.005, 0.02, 0.06):
        a, b = shingles(text, 5), shingles(edited(text, share, 3), 5)
        exact = jaccard(a, b)
        assert exact == len(set(a.tolist()) & set(b.tolist())) / len(set(a.tolist()) | set(b.tolist()))
        same = signature(a, functions) == signature(b, functions)
        assert abs(float(np.mean(same)) - exact) < 4 * np.sqrt(exact * (1 - exact) / 1024) + 0.01
        assert 0 < exact < 1
        pair = sketches(np.stack([signature(a, functions), signature(b, functions)])[:, -64:])
        assert (
            abs(int(count_bits(pair[:1] ^ pair[1:])[0]) / 64 - (1 - exact) / 2)
            < 4 * np.sqrt((1 - exact**2) / 4 / 64) + 0.01
        )
    assert jaccard(a, a[:0]) == jaccard(a[:0], a[:0]) == 0


def test_what_sieves_pairs():
    numbers = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64, endpoint=False)
    assert count_bits(numbers).tolist() == [int(n).bit_count() for n in numbers]
    # By scipy.stats.binom.isf(1e-6, 64, (1 - j) / 2).
    assert [max_differences(j) for j in (0.0, 0.5, 0.7, 0.8, 0.9, 1.0)] == [50, 34, 25, 20, 14, 0]
    keys = np.arange(12, dtype=np.uint64).reshape(1, 12) << np.uint64(56)
    assert f"{following(keys)[0, 6]:016x}" == "0708090a0b000102", "the next eight, round and round"


def test_candidates_follow_the_banding_curve():
    """Share of pairs that 14 x 8 bands catch, against 1 - (1 - J^8)^14, for sets of numbers of a known similarity."""
    rng = np.random.default_rng(0)
    functions = permutations(14 * 8)
    for j in (0.5, 0.7, 0.8, 0.9):
        shared = round(400 * j)
        rest = (400 - shared) // 2
        caught = 0
        for _ in range(150):
            numbers = rng.integers(0, 2**64, size=shared + 2 * rest, dtype=np.uint64)
            signed = [
                signature(numbers[: shared + rest], functions),
                signature(np.concatenate([numbers[:shared], numbers[shared + rest :]]), functions),
            ]
            a, b = band_keys(np.stack(signed), 14, 8)
            assert np.array_equal(a == b, (signed[0] == signed[1]).reshape(14, 8).all(axis=1))
            caught += bool((a == b).any())
        expected = 1 - (1 - j**8) ** 14
        assert abs(caught / 150 - expected) < 4 * np.sqrt(expected * (1 - expected) / 150) + 0.01


def test_words_and_shingles():
    assert len(shingles("One two, three four five six", 5)) == 2
    assert len(shingles("one TWO three", 5)) == 1
    assert np.array_equal(shingles("one two three", 5), shingles("One, two: THREE!", 5))
    assert len(shingles("", 5)) == len(shingles("?!", 5)) == 0
    assert len(shingles("a b a b a b", 2)) == 2
    for text in (
        "snake_case don't x-y 3.5",
        "“Schöne” Grüße—überall…½ ٣٤",
        "漢字かな、混じり İstanbul\u2028ΑΣ ΟΔΟΣ",
        "a\x00b\x7fc\x1cd",
    ):
        assert split_words(text) == [word.encode() for word in re.findall(r"\w+", text.lower())]
    assert split_words("A\u00a0b, C\td", "whitespace") == ["a\u00a0b,".encode(), b"c", b"d"]
    # Pinned: signatures of today must be comparable with those of any later version.
    assert shingles("one two three", 2).tolist() == PINNED_GRAMS
    assert signature(shingles("one two three", 2), permutations(3)).tolist() == PINNED_SIGNATURE
    assert band_keys(np.array([[1, 2, 3, 4]], np.uint32), 2, 2).tolist() == PINNED_KEYS


PINNED_GRAMS = [14802987826439165835, 17931599150886288687]
PINNED_SIGNATURE = [1497102204, 975938226, 2897591941]
PINNED_KEYS = [[8782490742677292569, 11581850119474528618]]


def test_settings_that_make_no_sense():
    with pytest.raises(ConfigError, match=r"dedup_minhash\.bands = 0"):
        FuzzyConfig(bands=0)
    with pytest.raises(ConfigError, match=r"min_jaccard = 1\.5"):
        FuzzyConfig(min_jaccard=1.5)
    with pytest.raises(ConfigError, match=r"min_jaccard = 0\.0 with rows = 1"):
        FuzzyConfig(method="gpt3", min_jaccard=0.0)
    with pytest.raises(
        ConfigError, match=r"dedup_minhash\.method = 'gpt4' is invalid: must be one of .*; did you mean 'gpt3'"
    ):
        build(FuzzyConfig, {"method": "gpt4"}, where="dedup_minhash")
    table = {"method": "gpt3", "min_jaccard": 1, "tokens": "words"}
    assert build(FuzzyConfig, table, where="").setting == MinHash("words", 1, 10, 1, min_jaccard=1.0, neighbours=16)
    assert (FuzzyConfig(method="gpt3", bands=20).setting.bands, FuzzyConfig(method="gpt3").rows) == (20, 1)
