"""The error a user's mistake raises, and the one line that mends a missing optional package."""

import errno
import importlib
from types import ModuleType

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # the system's errors that mean a full disk


class ConfigError(Exception):
    """A setting, file or argument is wrong: the message names it, its value, the rule and what to try.

    Commands print the message alone, without a traceback, and exit with `exit_status`: 2, which no launcher of ours
    starts again, unless a subclass says that another start may well succeed.
    """

    exit_status = 2


class DiskFull(ConfigError):
    """There is no room on a disk, but somebody may be making some: another start may well succeed."""

    exit_status = 1


def import_extra(module: str, *, extra: str) -> ModuleType:
    """Import an optional package, or raise ConfigError with the pip line that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != root:
            raise
        raise ConfigError(
            f"the package '{root}' is not installed; it comes with the extra '{extra}': "
            f"pip install 'triaxial[{extra}]' (in a checkout: pip install -e '.[{extra}]')"
        ) from error
