"""Estimate what the unreadable parts of a file held."""

from dataclasses import asdict
from pathlib import Path

from data_prep.documents.losses import FileLoss, at_path, estimate_loss, losses_in, sum_of_losses
from data_prep.documents.records import Dropped, Unread


def loss(*parts: Unread, n_read: int = 100) -> tuple[int, int | None] | None:
    records = [Dropped("damaged", 0, detail=str(part.n_bytes), unread=part) for part in parts]
    found = estimate_loss("a.jsonl.gz", 1000, [*records, Dropped("malformed", 7)], n_read=n_read)
    return None if found is None else (found.unread_bytes, found.records)


def test_records_are_estimated_from_the_mean_size_of_the_others():
    assert loss() is None
    assert loss(Unread(500)) == (500, 100)
    assert loss(Unread(300), Unread(200)) == (500, 100)
    assert loss(Unread(0, 40), Unread(0, 2), n_read=0) == (0, 42), "a Parquet file tells how many rows it has"
    assert loss(Unread(500), Unread(0, 40)) == (500, 140)
    assert loss(Unread(1000), n_read=0) == (1000, None)
    assert loss(Unread(0)) == (0, None), "a file that was cut does not tell what is missing"


def test_the_largest_part_gives_the_reason():
    parts = [Dropped("damaged", 0, detail="a", unread=Unread(1)), Dropped("too_large", 0, detail="b", unread=Unread(9))]
    assert estimate_loss("x", 100, parts, n_read=9) == FileLoss("x", 100, 10, 1, "too_large", "b")


def test_losses_are_found_among_the_facts_and_summed():
    losses = [FileLoss("a", 10, 5, 3, "damaged", ""), FileLoss("b", 10, 2, None, "truncated", "")]
    assert losses_in([{"unread": asdict(losses[0])}, {"other": 1}, {"unread": asdict(losses[1])}]) == losses
    assert sum_of_losses(losses) == {"files": 2, "bytes": 7, "records": 3}
    whole = [{"records": 8, "read_bytes": 4}, {"records": 0, "read_bytes": 0, "unread": asdict(losses[1])}]
    assert [loss.records for loss in losses_in(whole)] == [4], "the mean of the run: two records a byte"
    assert at_path(whole[1], Path("/new"))["unread"]["path"] == "/new"
    assert at_path(whole[0], Path("/new")) == whole[0]
    remote = {"unread": {"path": "https://x/a.gz"}}
    assert at_path(remote, Path("/stub")) == remote
