"""Write a recipe for a corpus: names of files and fields may come from a stranger."""

import tomllib
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from launch.start.corpus_choice import CorpusChoice
from launch.start.corpus_recipe import corpus_recipe
from launch.start.look import Survey

CHOICE = CorpusChoice("curated", 20, None, "", {"en": 1.0}, ("en",), (), 320, 3.0, 0.1, 1000, b"")
HOSTILE = 'a"\r\n[output]\rfolder = "/tmp/x"\n#\x00\x0b\x1b\x7f\x85\u2028'


def survey(**fields) -> Survey:
    about = {
        "paths": ("texts",),
        "kinds": {},
        "files": 1,
        "file_bytes": 1,
        "text_bytes": 1,
        "documents": 1,
        "sample": (),
    }
    return Survey(**{**about, "endings": {}, **fields})


def test_names_of_a_stranger_stay_texts():
    found = survey(
        paths=(HOSTILE,), endings={f".{HOSTILE}": "text"}, text_field=HOSTILE, fields=(HOSTILE, f"b{HOSTILE}")
    )
    text = corpus_recipe(found, CHOICE, folder=Path("out/corpus"), title=f"texts\n{HOSTILE!r}")
    recipe = tomllib.loads(text)
    assert recipe["input"] == {"paths": [HOSTILE], "text_field": HOSTILE, "endings": {f".{HOSTILE}": "text"}}
    assert recipe["output"]["folder"] == "out/corpus"
    assert "\r" not in text, "an editor could make it a line's end"


@pytest.mark.parametrize(
    "given", [{"paths": ("caf\udce9",)}, {"text_field": "\ud800"}, {"endings": {".\udce9": "text"}}]
)
def test_a_name_that_is_not_utf8_is_refused(given):
    with pytest.raises(ConfigError, match=r"is invalid in a recipe: must be UTF-8"):
        corpus_recipe(survey(**given), CHOICE, folder=Path("out"), title="")
