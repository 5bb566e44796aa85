"""Targets: taxonomies and files of labelled texts."""

import json
from functools import partial
from pathlib import Path

from fuzzing import Target

from gpt.moderation.label_files import read_labelled, write_labelled
from gpt.moderation.labels import LabelledText, label_matrix, merged
from gpt.moderation.migration import check_complete
from gpt.moderation.taxonomy import Taxonomy, read_taxonomy, shipped_taxonomies
from launch.labelling.instructions import instructions_page

_MIGRATION = """
[[category]]
id = "N"
title = "new"
definition = "new"
[[category]]
id = "M"
title = "new, of a split"
definition = "new"
[migration]
from = 1
renamed = { S = "N" }
merged = { H = ["H", "HR"] }
split = { SH = ["SH", "M"] }
removed = ["S3"]
"""


def shipped() -> Taxonomy:
    return read_taxonomy(Path("moderation_openai"))


def write_taxonomy(folder: Path) -> None:
    text = shipped_taxonomies()["moderation_openai"].read_text(encoding="utf-8").replace("version = 1", "version = 2")
    (folder / "taxonomy.toml").write_text(text + _MIGRATION, encoding="utf-8")


def use_taxonomy(folder: Path) -> None:
    taxonomy = read_taxonomy(folder / "taxonomy.toml")
    instructions_page(taxonomy)
    check_complete(shipped(), taxonomy)


def write_lines(folder: Path, name: str) -> None:
    texts = [
        LabelledText(
            f"t{i % 3}", f"text {i % 3}", {"H": bool(i % 2), "V": True}, "ana", {"language": "en"}, {"H": i}, "s"
        )
        for i in range(6)
    ]
    if name.endswith(".csv"):
        rows = "".join(f'{one.id},"{one.text}",{int(one.labels["H"])},0.5\n' for one in texts)
        (folder / name).write_text("id,text,H,V\n" + rows, encoding="utf-8")
    elif name.endswith(".parquet"):
        import pyarrow
        from pyarrow import parquet

        rows = [json.loads(json.dumps({"text": one.text, "labels": {"H": 1, "V": None}})) for one in texts]
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
    else:
        write_labelled(folder / name, texts, shipped())


def use_lines(folder: Path, name: str) -> None:
    taxonomy = shipped()
    label_matrix(merged(read_labelled(folder / name, taxonomy)), taxonomy, contradictory="unknown")


TARGETS = (
    Target("taxonomy", write_taxonomy, use_taxonomy, cases=100),
    *(
        Target(f"labels_{name}", partial(write_lines, name=name), partial(use_lines, name=name), cases=cases)
        for name, cases in (("a.jsonl", 80), ("a.jsonl.gz", 20), ("a.csv", 60))
    ),
    Target(
        "labels_a.parquet",
        partial(write_lines, name="a.parquet"),
        partial(use_lines, name="a.parquet"),
        cases=20,
        needs=("pyarrow",),
    ),
)
