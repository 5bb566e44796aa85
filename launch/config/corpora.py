"""Say how missing token files of a training recipe are made."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from gpt.data.config import DataConfig
from gpt.errors import ConfigError
from gpt.files.toml_files import read_toml
from gpt.token_files.files import shard_prefixes
from gpt.token_files.index import MissingTokenFile


@contextmanager
def naming_the_maker() -> Iterator[None]:
    """Add the command that makes the files to an error about missing token files."""
    try:
        yield
    except MissingTokenFile as error:
        raise ConfigError(f"{error}. {maker_of(error.prefix)}") from None


def check_token_files(data: DataConfig) -> None:
    """Raise ConfigError, with the command that makes them, if token files are missing. Opens none of them."""
    with naming_the_maker():
        corpora = (*data.train, *data.validation)
        named = [Path(path) for corpus in corpora for path in (corpus.path, *corpus.streams.values())]
        for prefix in (prefix for path in named for prefix in shard_prefixes(path)):
            for file in (Path(f"{prefix}.idx"), Path(f"{prefix}.bin")):
                if not file.is_file():
                    raise MissingTokenFile(file, prefix)


def maker_of(prefix: Path) -> str:
    """Name the shipped recipe whose output folder holds these token files, or else the guide."""
    for recipe in sorted((Path(str(resources.files("launch"))) / "recipes").glob("*.toml")):
        table = read_toml(recipe, kind="recipe")
        if Path(table.get("output", {}).get("folder", "")) == prefix.parent:
            return f"`triaxial prepare {recipe.stem}` makes them"
    return "`triaxial prepare` makes them from your texts, see docs/guides/data/prepare.md"
