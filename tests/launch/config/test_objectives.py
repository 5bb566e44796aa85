"""The kinds of [objective] that a recipe can name."""

import typing

import pytest

from gpt.errors import ConfigError
from gpt.training.config import NextTokenConfig
from launch.config.objectives import DEFAULT, OBJECTIVES, PROGRAMS, program_of
from launch.config.run_config import as_dict, from_dict, read_run_config


def test_a_recipe_reads_with_its_objective_and_without_one() -> None:
    silent = read_run_config("demo", [])
    assert silent.objective == NextTokenConfig()
    assert read_run_config("demo", ["--objective.kind", "next_token"]) == silent
    assert as_dict(silent)["objective"] == {"kind": "next_token"}, "a checkpoint keeps it"
    assert from_dict(as_dict(silent)) == silent


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective.kind", "next_tokn"], "objective.kind = 'next_tokn': unknown kind.*did you mean 'next_token'"),
        (["--objective.kind", "3"], "objective.kind = 3: unknown kind '3'; known: .*next_token"),
        (["--objective", "'next_token'"], "objective = 'next_token' is invalid: must be a table of keys"),
        (["--objective.kind", "next_token", "--objective.knd", "1"], "objective.knd: unknown key.*did you mean 'kind'"),
    ],
)
def test_a_wrong_objective_is_refused(words: list[str], message: str) -> None:
    if words[0] == "--objective":  # an override names a key, so this one can only be in a file
        with pytest.raises(ConfigError, match=message):
            from_dict({**as_dict(read_run_config("demo", [])), "objective": "next_token"})
        return
    with pytest.raises(ConfigError, match=message):
        read_run_config("demo", words)


def test_every_kind_is_listed_under_its_own_name_and_can_be_built() -> None:
    assert DEFAULT in OBJECTIVES
    for name, config in OBJECTIVES.items():
        assert typing.get_args(typing.get_type_hints(config)["kind"]) == (name,)
        objective = config().build(z_loss=0.0)
        assert objective.loss(compile=False).metric_names is not None


def test_every_kind_has_a_program_that_trains_it() -> None:
    assert set(PROGRAMS) <= set(OBJECTIVES)
    for config in OBJECTIVES.values():
        program = program_of(config())
        assert callable(program.prepare)
        assert callable(program.train_joined)
        assert callable(program.dry_run_notes)


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        OBJECTIVES["other"] = NextTokenConfig  # type: ignore[index]
