"""A recipe's own mistakes are errors."""

from pathlib import Path

import pytest

from data_prep.recipe import OutputConfig
from gpt.errors import ConfigError


def test_invalid_settings_are_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"validation_fraction = 1\.0"):
        OutputConfig(tmp_path, validation_fraction=1.0)
    with pytest.raises(ConfigError, match=r"shard_tokens = 0 is invalid: must be at least 1"):
        OutputConfig(tmp_path, shard_tokens=0)


def test_a_remote_folder_needs_a_local_work_folder():
    with pytest.raises(ConfigError, match=r"output\.work is missing: output\.folder = s3://b/x is remote"):
        OutputConfig(Path("s3://b/x"))
    with pytest.raises(ConfigError, match=r"output\.work = s3://b/x is invalid: must be a local folder"):
        OutputConfig(Path("x"), work=Path("s3://b/x"))
