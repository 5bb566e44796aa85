"""Reading the flight recorder of a rank, and finding collectives that leave the pattern of training."""

import socket
import threading

from hang_reports import collective

from parallel.health.collective_record import RecordedCollective, departures, parse_collectives, read_collectives


def test_a_recent_collective_that_was_left_out_is_a_departure_and_an_old_one_is_not():
    def step(number: int, *, without: str = "") -> list[RecordedCollective]:
        kinds = ["gather_a", "gather_b", "reduce_a", "reduce_b", "sum", "norm", "flags"]
        return [collective(kind, 10 * number + i) for i, kind in enumerate(kinds) if kind != without]

    usual = [c for number in range(6) for c in step(number)]
    assert departures(usual) == []
    found = departures([*usual, *step(6, without="sum")])
    assert any("norm" in words and "where sum" in words for words in found)
    assert departures([*step(0), *step(1), *step(2, without="sum"), *usual]) == []
    assert departures([*step(0), *step(1, without="sum")]) == [], "one step makes no pattern"


def entry(record, *, number, done, p2p=False, about="data"):
    return {
        "record_id": record,
        "process_group": ["7", about],
        "profiling_name": "gloo:all_reduce",
        "is_p2p": p2p,
        "p2p_seq_id": 10 * number,
        "collective_seq_id": number,
        "input_sizes": [[8]],
        "input_dtypes": ["Float", "Float"],
        "retired": done,
        "state": "scheduled",
        "time_created_ns": str(record),
    }


def test_entries_are_parsed_oldest_first_with_the_number_of_their_kind():
    trace = {"entries": [entry(2, number=5, done=False, about="undefined"), entry(1, number=4, done=True, p2p=True)]}
    first, second = parse_collectives(trace)
    assert (first.number, first.done, first.about) == (40, True, "data"), "sends and receives are counted apart"
    assert (second.number, second.done, second.about) == (5, False, "7"), "a group without a purpose keeps its name"
    assert str(second) == "all_reduce [[8]] Float, number 5 of group 7"


def test_a_recorder_that_answers_nonsense_or_is_gone_gives_none(tmp_path):
    path = str(tmp_path / "recorder")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nno JSON")

        thread = threading.Thread(target=answer)
        thread.start()
        assert read_collectives(path) is None
        thread.join()
    assert read_collectives(str(tmp_path / "nobody")) is None
