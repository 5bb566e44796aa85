"""Names of categories and limits are checked before the server starts."""

import pytest

from gpt.errors import ConfigError
from launch.moderation_server.forms import category_names
from launch.moderation_server.limits import ServerLimits


def test_names_of_categories():
    found = category_names(("H", "V"), ["TOXICITY=H", "V=H"])
    assert found == {"H": "H", "TOXICITY": "H", "V": "H"}  # a given name goes before a category's own


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["TOXICITY"], "must be NAME=CATEGORY, such as TOXICITY=H"),
        (["=H"], "must be NAME=CATEGORY"),
        (["TOXICITY=X"], "the taxonomy has no category 'X'; use one of H, V"),
        (["T=H", "T=V"], "T is given twice"),
    ],
)
def test_wrong_names_are_refused(given, error):
    with pytest.raises(ConfigError, match=error):
        category_names(("H", "V"), given)


def test_limits_are_positive():
    with pytest.raises(ConfigError, match="--max-texts 0 is invalid: must be at least 1"):
        ServerLimits(max_texts=0)
