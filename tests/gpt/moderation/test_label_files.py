"""Files of labelled texts: every format gives the same texts, ours is written back, faults name their line."""

import gzip
import json
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.moderation.label_files import LabelCounts, read_labelled, write_labelled
from gpt.moderation.label_records import parse_label_map
from gpt.moderation.labels import LabelledText, label_matrix
from gpt.moderation.taxonomy import parse_taxonomy, read_taxonomy

ROWS = [{"id": name, "title": name, "definition": name} for name in ("H", "V")]
TAXONOMY = parse_taxonomy({"name": "small", "version": 1, "category": ROWS}, where="test")
TEXTS = [
    LabelledText("a", 'one, "two"\nthree', {"H": True, "V": False}, "ana", {"language": "en"}, {"H": 2}, "chat"),
    LabelledText("b", "d\u00e9j\u00e0 vu", {"V": True}),
    LabelledText("c", "plain", {}),
]
SAMPLES = Path(__file__).parents[4] / "shared" / "data" / "other" / "moderation"


@pytest.mark.parametrize("name", ["labels.jsonl", "labels.jsonl.gz"])
def test_our_files_are_read_back(tmp_path, name):
    counts = LabelCounts()
    assert write_labelled(tmp_path / name, TEXTS, TAXONOMY) == 3
    first = (tmp_path / name).read_bytes()
    assert list(read_labelled(tmp_path / name, TAXONOMY, counts=counts)) == TEXTS
    assert (counts.lines, counts.without_text, counts.without_labels) == (3, 0, 1)
    write_labelled(tmp_path / name, TEXTS, TAXONOMY)
    assert (tmp_path / name).read_bytes() == first
    line = json.loads((gzip.decompress(first) if name.endswith("gz") else first).splitlines()[1])
    assert line == {"id": "b", "text": "d\u00e9j\u00e0 vu", "labels": {"V": 1}, "taxonomy": "small 1"}


def test_csv_tsv_and_parquet_give_the_same_texts(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "x.csv").write_bytes(
        b'\xef\xbb\xbfid,text,H,V\na,"one, ""two""\nthree",1,0\nb,d\xc3\xa9j\xc3\xa0 vu,,1\n'
    )
    (tmp_path / "x.tsv.gz").write_bytes(
        gzip.compress(b'id\ttext\tH\tV\na\t"one, ""two""\nthree"\ttrue\t0.2\nb\td\xc3\xa9j\xc3\xa0 vu\t-1\t1.0\n')
    )
    table = {
        "id": ["a", "b"],
        "text": [one.text for one in TEXTS[:2]],
        "labels": [{"H": 1, "V": 0}, {"H": None, "V": 1}],
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "x.parquet")
    for name in ("x.csv", "x.tsv.gz", "x.parquet"):
        found = [(one.id, one.text, one.labels) for one in read_labelled(tmp_path / name, TAXONOMY)]
        assert found == [(one.id, one.text, one.labels) for one in TEXTS[:2]], name


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.jsonl", b'{"text": "a", "H": 1}\n\n{"text": \n', ["x.jsonl, line 3 is no JSON"]),
        ("x.jsonl", b'{"text": "a", "H": 1}\n[1]\n', ["line 2", "JSON object"]),
        ("x.jsonl", b'{"text": "a\xff", "H": 1}\n', ["line 1 is not UTF-8"]),
        ("x.jsonl", b'{"text": "a", "labels": {"Q": 1}}\n', ["line 1: labels: 'Q' is no category"]),
        ("x.jsonl", b"[" * 100_000, ["line 1 is no JSON"]),
        ("x.jsonl", b"x" * (1 << 24), ["line 1 has more than"]),
        ("x.csv", b"text,H\nb,1,2\n", ["line 2 has another number of cells"]),
        ("x.csv", b"text,H\nb\n", ["line 2 has another number of cells"]),
        ("x.csv", b'text,H\n"b"x,1\n', ["line 2 is no CSV"]),
        ("x.csv", b"text,H\n" + b"x" * 200_000 + b",1\n", ["line 2 is no CSV", "field limit"]),
        ("x.csv", b"text,H,,H,\nb,1,,0,\n", ["two columns with the name 'H'", "Rename one"]),
        ("x.csv", b"a,H\nb,1\n", ["there is no field of a text", "fields are a, H"]),
        ("x.jsonl.gz", b"no gzip", ["cannot be unpacked"]),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a", "H": 1}\n' * 1000, mtime=0)[:-20], ["cannot be unpacked"]),
        ("x.parquet", b"PAR1 no PAR1", ["no Parquet file"]),
        ("x.txt", b"a", ["must end with .jsonl"]),
    ],
)
def test_every_fault_is_one_line_that_names_its_place(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError) as error:
        list(read_labelled(tmp_path / name, TAXONOMY))
    assert all(word in str(error.value) for word in (str(tmp_path / name), *words)), str(error.value)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path / "none.parquet"):
        with pytest.raises(ConfigError, match="cannot be read: no such file"):
            list(read_labelled(path, TAXONOMY))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ConfigError, match="a folder"):
        list(read_labelled(tmp_path / "folder.jsonl", TAXONOMY))


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="needs ../shared/data/other/moderation")
@pytest.mark.parametrize(
    ("name", "items", "n_texts", "without_text", "positive"),
    [
        (
            "openai-samples-1680-s3-text-removed.jsonl.gz",
            [],
            1595,
            85,
            {"S": 152, "H": 161, "V": 92, "SH": 51, "HR": 75, "S3": 0, "H2": 41, "V2": 22},
        ),
        ("davidson-labeled_data.csv.gz", ["class:0=H"], 24783, 0, {"H": 1430}),
        ("wikipedia-toxicity-testset.csv.gz", ["toxic=HR"], 1492, 0, {"HR": 248}),
    ],
)
def test_public_data_sets_are_read_whole(name, items, n_texts, without_text, positive):
    taxonomy = read_taxonomy(Path("moderation_openai"))
    counts = LabelCounts()
    texts = list(read_labelled(SAMPLES / name, taxonomy, names=parse_label_map(items, taxonomy), counts=counts))
    matrix = label_matrix(texts, taxonomy)
    found = {one: int((matrix[:, taxonomy.index(one)] == 1).sum()) for one in positive}
    assert (len(texts) == n_texts, counts.without_text, found) == (True, without_text, positive)
