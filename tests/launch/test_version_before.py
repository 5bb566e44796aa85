"""Checkpoints, run directories and recipes of version 0.1 load, and its runs resume bit for bit.

tests/fixtures/make_version_0_1.py made tests/fixtures/version_0_1 with that version: a run of one process, one on
tensor 2 x pipeline 2, and a checkpoint of the local tier. Its expected.json holds what version 0.1 read from these
files, and what it recorded in each step that it trained from there on. Here the present version does the same, through
its commands.

Losses are equal bit for bit where the processor and torch are those of expected.json. Elsewhere sums may differ in
their last bits: with AVX2 and with SSE4 the losses of such a run differed by at most 7e-8 over 12 steps, and the
gradient norms by 1.3e-6, both relative.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)  # the first tests wait for commands that all run at once

Present = Callable[[str], Any]

RELATIVE = {"loss": 1e-6, "loss_nats": 1e-6, "z_loss": 1e-5, "gradient_norm": 1e-5, "perplexity": 1e-5}


@pytest.fixture(scope="module")
def recorded(version_before: Any) -> dict[str, Any]:
    return json.loads((version_before.FIXTURE / "expected.json").read_text())


@pytest.fixture(scope="module")
def expected(recorded: dict[str, Any]) -> dict[str, Any]:
    """What version 0.1 read and trained."""
    return recorded["results"]


@pytest.fixture(scope="module")
def present(version_before: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Present]:
    """present(name) is what the present version reads or trains, which all begins at once."""
    with ThreadPoolExecutor(2) as pool:  # two jobs at a time, for two cores
        jobs = version_before.start(pool, tmp_path_factory.mktemp("before"), version_before.ROOT)
        yield lambda name: jobs[name].result()


@pytest.fixture(scope="module")
def same_bits(version_before: Any, recorded: dict[str, Any]) -> bool:
    """Whether this machine computes the very bits that were recorded."""
    return version_before.machine() == recorded["machine"]


def check_values(found: dict[str, Any], expected: dict[str, Any], *, same_bits: bool, where: str) -> None:
    """Compare each value recorded by version 0.1; the present version may record more."""
    for key, value in expected.items():
        tolerance = None if same_bits else RELATIVE.get(key.rpartition("/")[2])
        wanted = value if tolerance is None else pytest.approx(value, rel=tolerance, abs=0)
        assert found.get(key) == wanted, f"{where}: {key}"


@pytest.mark.parametrize("run", ["one", "four"])
def test_weights_and_moments_are_loaded_bit_for_bit(present: Present, expected: dict[str, Any], run: str) -> None:
    assert present("read")["tensors"][run] == expected["read"]["tensors"][run]


@pytest.mark.parametrize("run", ["one", "four"])
def test_the_loop_state_is_loaded(present: Present, expected: dict[str, Any], run: str) -> None:
    assert present("read")["state"][run] == expected["read"]["state"][run]


@pytest.mark.parametrize("run", ["one", "four", "four, later epochs"])
def test_the_same_data_come_next(present: Present, expected: dict[str, Any], run: str) -> None:
    assert present("read")["audit"][run] == expected["read"]["audit"][run]


@pytest.mark.parametrize("run", ["one", "one, from the local tier", "one, on tensor 2 x pipeline 2", "four"])
def test_a_run_continues(present: Present, expected: dict[str, Any], same_bits: bool, run: str) -> None:
    now, before = present(run), expected[run]
    assert now["from_step"] == before["from_step"]
    assert now["steps"].keys() == before["steps"].keys()
    for step, values in before["steps"].items():
        check_values(now["steps"][step], values, same_bits=same_bits, where=f"step {step}")
    assert now["spikes"] == before["spikes"]
    assert now["samples"] == before["samples"]
    unlike = set() if same_bits else {"weights_sha256"}
    summary = {key: value for key, value in before["summary"].items() if key not in unlike}
    check_values(now["summary"], summary, same_bits=same_bits, where="train_summary.json")


def test_commands_read_the_runs(present: Present, expected: dict[str, Any], same_bits: bool) -> None:
    now, before = present("read"), expected["read"]
    for run, corpora in before["evaluation"].items():
        for corpus, values in corpora.items():
            check_values(now["evaluation"][run][corpus], values, same_bits=same_bits, where=f"{run}, {corpus}")
    assert now["generation"] == before["generation"]
    assert now["report"] == before["report"]


def test_recipes_are_read_and_make_the_same_corpus(present: Present, expected: dict[str, Any]) -> None:
    pytest.importorskip("resiliparse", reason="needs the extra 'data'")
    assert present("recipes") == expected["recipes"]
