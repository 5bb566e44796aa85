"""A sequence of a run leads to the documents, ids and URLs of the texts that it was made of."""

import json

import pytest

from gpt.token_files.files import TokenFile
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.main import main

pytest.importorskip("resiliparse", reason="needs the extra 'data'")


def audit(capsys, folder, *words):
    capsys.readouterr()
    status = main(["data", "audit", str(folder / "run"), "--steps", "1-4", "--json", "-", *words])
    return status, capsys.readouterr()


def test_each_part_is_a_piece_of_the_document_that_is_named(prepared, capsys):
    folder, texts = prepared
    status, said = audit(capsys, folder, "--text", "--source")
    assert status == 0, said.err
    tokenizer = load_tokenizer(folder / "corpus")
    seen = set()
    for sequence in map(json.loads, said.out.splitlines()):
        for part in sequence["documents"]:
            ids = [*tokenizer.encode(texts[part["id"]]), tokenizer.end_of_document_id]
            piece = ids[part["offset_tokens"] : part["offset_tokens"] + part["n_tokens"]]
            assert len(piece) == part["n_tokens"]
            file = TokenFile(folder / "corpus" / ("train" if part["file"].endswith("train.bin") else "validation"))
            start = file.document_start(part["document"]) + part["offset_tokens"]
            assert file.read(start, start + part["n_tokens"]).tolist() == piece
            assert part["text"] == " ".join(tokenizer.decode(piece[:32]).split())[:40]
            assert part["url"] == f"https://example.org/{part['id']}"
            seen.add((part["file"], part["id"]))
    assert len({file for file, _ in seen}) == 2, "both splits were read"
    assert len(seen) > 20


def test_without_the_option_no_source_is_read(prepared, capsys):
    folder, _ = prepared
    status, said = audit(capsys, folder)
    assert status == 0
    assert {part["id"] for line in said.out.splitlines() for part in json.loads(line)["documents"]} == {None}


def test_another_work_folder_is_refused(prepared, capsys, tmp_path):
    folder, _ = prepared
    status, said = audit(capsys, folder, "--source", str(tmp_path))
    assert (status, said.out) == (2, "")
    assert "Run `triaxial prepare` on this recipe first" in said.err
