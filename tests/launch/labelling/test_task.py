"""Every text reaches the right labellers, once each, and no window overwrites what another wrote."""

import threading

import pytest

from gpt.errors import ConfigError
from launch.labelling.task import AlreadyAnsweredError, WrongAnswerError, check_labellers

NO = {"A": 0, "B": 0, "L": 0, "L3": 0, "X": 0}


def answer(task, item, *, labeller="ana", window="w", **values):
    return task.answer(labeller, window, {"id": item["id"], "labels": NO, "seconds": 4.04, **values})


def test_an_answer_is_a_labelled_text_and_the_next_text_follows(task_of, lines):
    task = task_of(3)
    first = task.state("ana", "w")
    assert (first["item"], first["done"], first["left"], first["seconds_left"]) == (
        {"id": "t0", "text": "Text number 0."},
        0,
        3,
        None,
    )
    second = answer(task, first["item"], labels={**NO, "L": 1}, severity={"L": 2})
    assert (second["item"]["id"], second["done"], second["left"], second["seconds_left"]) == ("t1", 1, 2, 8.0)
    (record,) = lines()
    assert record.pop("time").endswith("+00:00")
    assert record == {
        "id": "t0",
        "text": "Text number 0.",
        "labeller": "ana",
        "taxonomy": "zoo 2",
        "pipeline": "random",
        "seconds": 4.0,
        "labels": {**NO, "L": 1},
        "severity": {"L": 2},
    }


def test_another_process_continues_where_the_first_stopped(task_of):
    first = task_of(3)
    answer(first, first.state("ana", "w")["item"])
    state = task_of(3).state("ana", "w2")
    assert (state["item"]["id"], state["done"], state["left"]) == ("t1", 1, 2)


def test_undo_gives_the_text_back_with_its_labels(task_of, lines):
    task = task_of(3)
    answer(task, task.state("ana", "w")["item"], labels={**NO, "A": 1})
    back = task.undo("ana", "w")
    assert back["item"] == {"id": "t0", "text": "Text number 0.", "labels": {**NO, "A": 1}, "severity": {}}
    assert (back["done"], back["left"]) == (0, 3)
    assert lines()[-1]["undone"] is True
    answer(task, back["item"])
    assert lines()[-1]["labels"] == NO
    assert task.state("ben", "w")["item"]["id"] == "t0", "another labeller sees nothing of it"
    assert task.undo("ben", "w")["item"] == {"id": "t0", "text": "Text number 0."}, "nothing of ben's to undo"
    later = task_of(3)
    assert later.undo("ana", "new")["item"]["id"] == "t0", "an earlier session's answer can be undone"


def test_two_windows_of_a_labeller_get_different_texts_and_undo_their_own(task_of):
    task = task_of(3)
    one, two = task.state("ana", "1")["item"], task.state("ana", "2")["item"]
    assert (one["id"], two["id"]) == ("t0", "t1")
    answer(task, one, window="1")
    answer(task, two, window="2")
    assert task.undo("ana", "1")["item"]["id"] == "t0"
    assert task.undo("ana", "2")["item"]["id"] == "t1"
    assert task.state("ana", "1")["item"]["id"] == "t0", "a reload keeps the window's text"
    assert [task.state("ana", w)["item"]["id"] for w in "34"] == ["t2", "t0"], (
        "shown elsewhere, if nothing else is left"
    )


def test_a_stale_window_cannot_overwrite_an_answer(task_of, lines):
    now = [0.0]
    task = task_of(2, clock=lambda: now[0])
    stale = task.state("ana", "old")["item"]
    now[0] = 1e4  # the old window's claim is over
    assert task.state("ana", "new")["item"] == stale
    answer(task, stale, window="new", labels={**NO, "A": 1})
    with pytest.raises(AlreadyAnsweredError):
        answer(task, stale, window="old")
    assert answer(task, stale, window="new", labels={**NO, "A": 1})["done"] == 1, "the same answer again is no fault"
    assert len(lines()) == 1


def test_skipped_texts_come_back_only_on_request(task_of):
    task = task_of(2)
    task.answer("ana", "w", {"id": "t0", "skipped": True})
    state = answer(task, {"id": "t1"})
    assert (state["item"], state["done"], state["left"], state["skipped"]) == (None, 2, 0, 1)
    state = task.ask_skipped("ana", "w")
    assert (state["item"]["id"], state["done"], state["left"], state["skipped"]) == ("t0", 1, 1, 0)
    assert answer(task, state["item"])["left"] == 0


def test_overlap_says_how_many_texts_get_two_labels(task_of):
    done = {"ana": frozenset(f"t{i}" for i in range(200))}
    left = [task_of(200, overlap=overlap, others=done).state("ben", "w")["left"] for overlap in (1.0, 0.0, 0.3)]
    assert left[:2] == [200, 0]
    assert 40 <= left[2] <= 80  # 60 in the mean


def test_labellers_at_the_same_time_do_not_get_one_text_that_needs_one_label(task_of):
    task = task_of(4, overlap=0.0)
    assert [task.state(name, name)["item"]["id"] for name in ("ana", "ben", "eva")] == ["t0", "t1", "t2"]
    other = task_of(4, overlap=0.0, file="other.jsonl", others={"zoe": frozenset({"t0", "t1"})})
    assert other.state("ana", "w")["item"]["id"] == "t2", "the input says that zoe has labelled the others"


def test_threads_answer_every_text_once(task_of, lines):
    task = task_of(40)

    def work(name, window):
        state = task.state(name, window)
        while state["item"]:
            state = answer(task, state["item"], labeller=name, window=window)

    threads = [threading.Thread(target=work, args=(name, w)) for name in ("ana", "ben") for w in ("1", "2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    found = [(line["labeller"], line["id"]) for line in lines()]
    assert len(found) == len(set(found)) == 80


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"id": "t9"}, "unknown text"),
        ({"labels": {"A": 1}}, "the labels lack B"),
        ({"labels": {**NO, "Z": 1}}, "'Z' is no category of"),
        ({"labels": [1]}, "must be objects by category"),
        ({"labels": {**NO, "A": 2}}, "0, 1 or null"),
        ({"labels": {**NO, "A": True}}, "0, 1 or null"),
        ({"labels": {**NO, "A": "1"}}, "0, 1 or null"),
        ({"labels": {**NO, "B": 1}}, "its parent is not"),
        ({"severity": {"L": 12}}, "from 0 to 9"),
        ({"severity": {"L": 1.5}}, "from 0 to 9"),
        ({"severity": {"Z": 1}}, "from 0 to 9"),
    ],
)
def test_a_wrong_answer_writes_nothing(task_of, tmp_path, given, why):
    task = task_of(1)
    with pytest.raises(WrongAnswerError, match=why):
        answer(task, {"id": "t0"}, **given)
    assert not (tmp_path / "labels.jsonl").exists()


def test_an_endless_time_is_left_out(task_of, lines):
    answer(task_of(1), {"id": "t0"}, seconds=float("inf"))
    assert "seconds" not in lines()[0]


@pytest.mark.parametrize("names", [[""], ["a\nb"], ["x" * 81], ["ana", "ana"]])
def test_a_wrong_name_is_refused(names):
    with pytest.raises(ConfigError, match="--labeller"):
        check_labellers(names)
