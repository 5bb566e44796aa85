"""Taxonomies: the shipped one, plain values and back, and every rule that a file can break."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.moderation.taxonomy import parse_taxonomy, read_taxonomy, shipped_taxonomies

HEAD = 'name = "fruit"\nversion = 2\n'


def category(name: str, more: str = "") -> str:
    return f'[[category]]\nid = "{name}"\ntitle = "T"\ndefinition = "D"\n{more}\n'


def refused(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "taxonomy.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as error:
        read_taxonomy(path)
    message = str(error.value)
    assert "\n" not in message
    assert "taxonomy.toml" in message
    return message


def test_the_papers_taxonomy_is_shipped():
    taxonomy = read_taxonomy(Path("moderation_openai"))
    assert taxonomy.ids == ("S", "H", "V", "SH", "HR", "S3", "H2", "V2")
    assert taxonomy.parents == (-1, -1, -1, -1, -1, 0, 1, 2)
    assert taxonomy.label == "openai 1"
    assert taxonomy.ancestors("H2") == ("H",)
    assert {one.id: one.severity for one in taxonomy.categories if one.parent} == {"S3": 3, "H2": 2, "V2": 2}


@pytest.mark.parametrize("name", shipped_taxonomies())
def test_plain_values_make_the_same_taxonomy(name):
    taxonomy = read_taxonomy(Path(name))
    again = parse_taxonomy(taxonomy.values(), where="values")
    assert again == taxonomy
    assert again.digest == taxonomy.digest


def test_the_digest_follows_the_content_and_not_the_layout(tmp_path):
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    one.write_text(HEAD + category("A") + category("B", 'parent = "A"'))
    two.write_text("# a comment\n" + HEAD + category("A") + category("B", 'parent   =   "A" # why'))
    three.write_text(HEAD + category("A") + category("B"))
    digests = [read_taxonomy(path).digest for path in (one, two, three)]
    assert digests[0] == digests[1] != digests[2]


def test_a_migration_survives_plain_values(tmp_path):
    path = tmp_path / "t"
    path.write_text(
        HEAD
        + "".join(map(category, "ABCDE"))
        + '[migration]\nfrom = 1\nrenamed = {old = "A"}\nmerged = {B = ["x", "y"]}\nsplit = {z = ["C", "D"]}\n'
        + 'removed = ["gone"]\n'
    )
    taxonomy = read_taxonomy(path)
    assert taxonomy.migration is not None
    assert taxonomy.migration.merged == {"B": ("x", "y")}
    assert parse_taxonomy(taxonomy.values(), where="values") == taxonomy


def test_grandparents(tmp_path):
    path = tmp_path / "t"
    path.write_text(HEAD + category("C", 'parent = "B"') + category("B", 'parent = "A"') + category("A"))
    taxonomy = read_taxonomy(path)
    assert taxonomy.parents == (1, 2, -1)
    assert taxonomy.ancestors("C") == ("B", "A")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD, ["category is missing"]),
        (HEAD + "category = []\n", ["0 categories", "1 to 100"]),
        (HEAD + "".join(category(f"c{i}") for i in range(101)), ["101 categories"]),
        (category("A"), ["name is missing"]),
        ('name = "a b"\nversion = 1\n' + category("A"), ["name = 'a b'"]),
        ('name = "a"\nversion = 0\n' + category("A"), ["version = 0", "at least 1"]),
        ('name = "a"\nversion = true\n' + category("A"), ["version", "whole number"]),
        (HEAD + category("A", "colour = 1"), ["category A", "colour"]),
        (HEAD + category("A", 'perent = "A"'), ["did you mean 'parent'"]),
        (HEAD + category("A b"), ["id = 'A b'"]),
        (HEAD + category("A") + category("a"), ["id = 'a'", "'A' exists"]),
        (HEAD + '[[category]]\nid = "A"\ntitle = "T"\ndefinition = "  "\n', ["category A", "definition is empty"]),
        (HEAD + '[[category]]\nid = "A"\n', ["category A", "title is missing"]),
        (HEAD + "[[category]]\n", ["category 1", "id is missing"]),
        (HEAD + category("Hate") + category("B", 'parent = "hate"'), ["category B", "did you mean 'Hate'"]),
        (HEAD + category("A", 'parent = "A"'), ["cycle", "A -> A"]),
        (HEAD + category("A", 'parent = "B"') + category("B", 'parent = "A"'), ["cycle", "A -> B -> A"]),
        (HEAD + category("A", "severity = 0"), ["severity = 0"]),
        (HEAD + category("A", "severity = 2") + category("B", 'parent = "A"\nseverity = 2'), ["above 2", "Use 3"]),
        (
            HEAD
            + category("A", "severity = 2")
            + category("B", 'parent = "A"')
            + category("C", 'parent = "B"\nseverity = 1'),
            ["category C", "above 2, that of A"],
        ),
        (HEAD + category("A", 'examples = [{text = "x", label = 2}]'), ["label of example 1", "0 or 1"]),
        (HEAD + category("A", 'examples = [{text = "x"}]'), ["examples", "label is missing"]),
        (HEAD + category("A", 'examples = [{text = "x", label = 1}, {text = " x", label = 0}]'), ["two labels"]),
        (
            HEAD
            + category("A", 'examples = [{text = "x", label = 0}]')
            + category("B", 'parent = "A"\nexamples = [{text = "x", label = 1}]'),
            ["positive for B and negative for A"],
        ),
        (HEAD + category("A") + "[migration]\n", ["[migration]", "from is missing"]),
        (HEAD + category("A") + "[migration]\nfrom = 2\n", ["from = 2", "Use 1"]),
        (HEAD + category("A") + '[migration]\nfrom = 1\nrenamed = {x = "B"}\n', ["'B' is no category"]),
        (HEAD + category("A") + '[migration]\nfrom = 1\nmerged = {A = "x"}\n', ["merged.A", "list of ids"]),
        (HEAD + category("A") + '[migration]\nfrom = 1\nremoved = ["x"]\nmerged = {A = ["x"]}\n', ["'x' is in two"]),
        (HEAD + category("A") + '[migration]\nfrom = 1\nrenamed = {x = "A", y = "A"}\n', ["new category 'A'"]),
        (HEAD + category("A").replace("[[category]]", "[category]"), ["category", "list"]),
        ("category = 3\n" + HEAD, ["category", "list"]),
        (b'name = "\xff"', ["not valid TOML"]),
        ("a = " + "[" * 3000, ["not valid TOML"]),
    ],
)
def test_every_broken_rule_is_one_clear_line(tmp_path, text, words):
    message = refused(tmp_path, text)
    assert all(word in message for word in words), message


def test_a_missing_file_names_the_shipped_ones(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'moderation_openai'"):
        read_taxonomy(Path("moderation_opennai"))
    with pytest.raises(ConfigError, match="no such taxonomy file"):
        read_taxonomy(tmp_path / "none.toml")


def test_taxonomies_and_labels_need_no_torch():
    program = "import sys, gpt.moderation.taxonomy, gpt.moderation.labels; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
