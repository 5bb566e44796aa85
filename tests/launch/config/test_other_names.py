"""Names of other programs lead to keys that exist."""

import pytest

from gpt.errors import ConfigError
from launch.config.lengths import IN_TOKENS
from launch.config.other_names import _TABLE, our_name
from launch.config.run_config import RunConfig, read_run_config
from launch.config.settings import settings_of


def test_every_key_exists_and_no_other_name_is_one_of_ours():
    ours = {setting.key for setting in settings_of(RunConfig)} | IN_TOKENS.keys()
    assert _TABLE.keys() <= ours
    for key, (names, _) in _TABLE.items():
        section = key.partition(".")[0]
        assert not {f"{section}.{name}" for name in names} & ours


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("optimizer.lr", "use optimizer.learning_rate"),
        ("train.max_steps", "use train.total_steps"),
        ("schedule.min_lr", "use schedule.final_fraction; it is a share of optimizer.learning_rate"),
        ("train.lr", "use optimizer.learning_rate"),
        ("model.block_size", "use model.n_ctx"),
        ("data.block-size", "use data.seq_len"),
        ("optimizer.betta1", "did you mean 'beta1'?"),
    ],
)
def test_the_error_about_an_unknown_key_names_ours(override, advice):
    key = override.partition(".")[2]
    with pytest.raises(ConfigError) as raised:
        read_run_config("gpt3_125m", [f"--{override}", "3"])
    assert str(raised.value) == f"{override}: unknown key '{key}'; {advice}"


def test_recipes_of_data_preparation_get_no_advice_on_training():
    assert our_name("input", "steps") == ""
