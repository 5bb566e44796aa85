"""Links and files planted where a command will write: it replaces or refuses them, and their targets stay unchanged.
Archives of files are not an input, and nothing unpacks them."""

import io
import json
import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch.distributed as dist

from data_prep.documents.records import Page
from data_prep.inputs.config import ENDINGS, InputConfig
from data_prep.inputs.find import find_inputs
from data_prep.readers.readers import read_records
from gpt.errors import ConfigError
from launch.main import main

LEFT_BEHIND = ("step-000000099-0123456789abcdef", "step-000000004-0123456789abcdef")


def train(tiny_corpus, run, *words):
    common = ["train", str(tiny_corpus.recipe), "--run.directory", str(run), "--run.peak_flops_per_s", "1e12"]
    status = main([*common, "--metrics.wandb", "disabled", "--train.total_tokens", "2048", *map(str, words)])
    if dist.is_initialized():  # after an error a run leaves it
        dist.destroy_process_group()
    return status


@pytest.fixture
def outside(tmp_path):
    """A folder with a file and an imitation of a checkpoint, to see whether a command touches it."""
    folder = tmp_path / "outside"
    (folder / "step-000000004").mkdir(parents=True)
    (folder / "precious").write_text("precious")
    (folder / "step-000000004" / "precious").write_text("precious")
    before = state_of(folder)
    yield folder
    assert state_of(folder) == before, "written outside"


def state_of(folder):
    return {path: (path.lstat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")} | {
        folder: (folder.lstat().st_mtime_ns, False)
    }


@pytest.fixture(scope="module")
def finished(tiny_corpus, tmp_path_factory):
    run = tmp_path_factory.mktemp("finished") / "run"
    words = ["--train.sample_every_tokens", 1024, "--train.sample_new_tokens", 2]
    assert train(tiny_corpus, run, *words) == 0
    return run


def test_no_file_of_a_run_is_written_through_a_link(tiny_corpus, finished, outside, tmp_path, capsys):
    """Each name that a run uses, as a link to a file, to a folder, and to nothing."""
    names = sorted(path.name for path in finished.iterdir())
    assert {"config.json", "metrics.jsonl", "events.jsonl", "samples.jsonl", "ledger.jsonl"} < set(names)
    for name in [*names, "wandb", "hangs", "run_id", "metrics.superseded.jsonl"]:
        for target in ("precious", "step-000000004", "nothing"):
            if (name, target) == ("checkpoints", "step-000000004"):
                continue  # allowed: the user's way to a larger disk
            run = tmp_path / "run"
            run.mkdir()
            (run / name).symlink_to(outside / target)
            assert train(tiny_corpus, run) == 2, (name, target)
            line = capsys.readouterr().err
            assert line.startswith(
                f"triaxial: error: {run / name} is a symbolic link. Only the folder of checkpoints may be one."
            )
            assert line.count("\n") == 1
            shutil.rmtree(run)


def test_a_pipe_or_a_folder_in_place_of_a_file_is_refused_at_once(tiny_corpus, finished, tmp_path, capsys):
    """Each file of a run that a start reads or writes; then the recipe, the tokenizer and the corpus."""
    names = {path.name for path in finished.iterdir() if path.is_file()} - {".lock", "train_summary.json"}
    for name in sorted({*names, ".owner.json", ".progress.json", "run_id", "wandb", "tokenizer"}):
        run = tmp_path / "run"
        run.mkdir()
        os.mkfifo(run / name)
        assert train(tiny_corpus, run) == 2, name
        message = f"{run / name} is a named pipe, a socket or a device, not a regular file. Remove it"
        assert capsys.readouterr().err.startswith(f"triaxial: error: {message}")
        shutil.rmtree(run)
    for name in ("metrics.jsonl", "events.jsonl", "config.json"):
        shutil.copytree(finished, run)
        (run / name).unlink()
        (run / name).mkdir()
        assert train(tiny_corpus, run) == 2, name
        assert f"{run / name} is a folder, not a regular file." in capsys.readouterr().err
        shutil.rmtree(run)
    pipe = tmp_path / "pipe.model"
    os.mkfifo(pipe)
    for words in (["--data.tokenizer", f'"{pipe}"'], ["--data.train", f'[{{ path = "{pipe}" }}]']):
        assert train(tiny_corpus, run, *words) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["train", str(pipe)]) == 2
    assert f"{pipe} is a named pipe, not a regular file." in capsys.readouterr().err


def test_links_planted_during_a_run_are_not_followed(finished, outside, tmp_path):
    """By the writer of each file; the check at the start has passed."""
    from gpt.files.atomic import append_to, replace_file
    from gpt.files.line_file import LineFile
    from gpt.telemetry.event_log import append_event
    from gpt.telemetry.superseded import supersede_after
    from gpt.telemetry.time_ledger import TimeLedger

    run = shutil.copytree(finished, tmp_path / "run")
    link = run / "link"
    link.symlink_to(outside / "precious")
    for write in (
        lambda: append_event(link, "ended", step=1, text="x", fields={}),
        lambda: LineFile(link).add(b"x"),
        lambda: append_to(link),
    ):
        with pytest.raises(OSError, match="symbolic links"):
            write()
    TimeLedger(link, world_size=1).write()  # an error of the ledger does not end a run
    replace_file(link, "mine")
    assert (link.read_text(), link.is_symlink()) == ("mine", False)
    (run / "metrics.jsonl.tmp").symlink_to(outside / "precious")
    supersede_after(run / "metrics.jsonl", step=2)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()][-1] == 2


def test_hidden_names_of_checkpoints_may_exist_already(tiny_corpus, outside, tmp_path):
    """In a folder of checkpoints that is itself a link to a larger disk."""
    (tmp_path / "large_disk").mkdir()
    (tmp_path / "run").mkdir()
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.symlink_to(tmp_path / "large_disk")
    for number, name in enumerate((*LEFT_BEHIND, "anything")):
        for prefix in (".saving-", ".deleting-", ".replaced-"):
            planted = checkpoints / f"{prefix}{name}"
            [planted.symlink_to, planted.write_text, planted.symlink_to][number](
                str(outside / "step-000000004") if number != 2 else str(outside / "precious")
            )
    assert train(tiny_corpus, tmp_path / "run") == 0
    assert [path.name for path in checkpoints.iterdir()] == ["step-000000004"]
    assert not (checkpoints / "step-000000004").is_symlink()
    assert checkpoints.is_symlink()


def test_a_run_whose_only_checkpoint_is_a_link_is_refused_and_the_target_stays(tiny_corpus, outside, tmp_path, capsys):
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "step-000000004").symlink_to(outside / "step-000000004")
    assert train(tiny_corpus, tmp_path / "run") == 2
    assert "step-000000004: it is a symbolic link, which is not followed" in capsys.readouterr().err


def test_the_writer_of_a_corpus_follows_no_link(outside, tmp_path):
    from data_prep.corpus.corpus import publish
    from gpt.token_files.files import TokenFileWriter, make_sums

    for suffix in (".bin", ".idx", ".sums"):
        (tmp_path / f"train{suffix}").symlink_to(outside / "precious")
    with TokenFileWriter(tmp_path / "train", vocab_size=9) as writer:
        writer.add_document([1, 2])
    assert not any(path.is_symlink() for path in tmp_path.glob("train.*"))
    (tmp_path / "train.sums").unlink()
    (tmp_path / "train.sums").symlink_to(outside / "precious")
    make_sums(tmp_path / "train")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("train.bin", "corpus.json", f".tmp-{os.getpid()}-train.bin", f".tmp-{os.getpid()}-corpus.json"):
        (corpus / name).symlink_to(outside / "precious")
    (corpus / "validation.bin").symlink_to(outside / "nothing")
    (corpus / ".tmp-folder").symlink_to(outside)
    publish(corpus, {"train.bin": tmp_path / "train.bin"}, {"tokens": 2})
    assert sorted(path.name for path in corpus.iterdir()) == ["corpus.json", "train.bin"]
    assert json.loads((corpus / "corpus.json").read_text()) == {"tokens": 2}


HOSTILE = ("../out.jsonl", "/tmp/triaxial-test-out.jsonl", "a/../../out.jsonl", "link", "hard", "device", "fine.jsonl")


def archives(folder):
    """A tar, a compressed tar and a zip, whose members have paths outside the folder."""
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.jsonl.tar", "w")):
        with tarfile.open(folder / name, mode) as tar:
            for member in HOSTILE:
                info = tarfile.TarInfo(member)
                kinds = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
                info.type, info.linkname = kinds.get(member, tarfile.REGTYPE), "../outside/precious"
                data = b'{"id": "1", "text": "planted"}\n' if info.type == tarfile.REGTYPE else b""
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(folder / "a.zip", "w") as file:
        for member in HOSTILE:
            file.writestr(member, '{"id": "1", "text": "planted"}\n')
    return [folder / name for name in ("a.tar", "a.tar.gz", "a.jsonl.tar", "a.zip")]


def test_archives_of_files_are_not_an_input(outside, tmp_path):
    """Their names are refused; under an accepted name, their bytes are text or damage, and no member is created."""
    home = tmp_path / "home"
    home.mkdir()
    paths = archives(home)
    for path in paths:
        with pytest.raises(ConfigError, match="the ending is unknown"):
            find_inputs([str(path)])
    endings = [ending for ending, kind in ENDINGS.items() if kind not in ("parquet", "page")]
    named = [path.with_name(f"{path.name}{ending}") for path in paths for ending in endings]
    for path in named:
        shutil.copy(next(p for p in paths if path.name.startswith(f"{p.name}.")), path)
    before = sorted(tmp_path.rglob("*"))
    for path in named:
        for record in read_records(path, InputConfig(paths=("x",))):
            assert not isinstance(record, Page), "no member looks like a page"
    assert sorted(tmp_path.rglob("*")) == before
    assert not os.path.lexists("/tmp/triaxial-test-out.jsonl")


def test_nothing_unpacks_archives():
    """torch_archive.py asks zipfile for the position of a tensor's bytes, and reads them itself."""
    root = Path(__file__).resolve().parents[3]
    for package in ("gpt", "parallel", "data_prep", "launch"):
        for path in (root / package).rglob("*.py"):
            words = r"tarfile|unpack_archive|extractall|" + (
                r"extract\(" if path.stem == "torch_archive" else "zipfile"
            )
            found = re.search(rf"\b({words})", path.read_text(encoding="utf-8"))
            assert found is None, f"{path}: {found[0]}: members may lead outside (docs/guides/reliability/security.md)"
