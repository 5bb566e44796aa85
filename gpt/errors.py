"""ConfigError for mistakes of the user, the valid values that its message suggests, and text made safe to print."""

import difflib
import errno
import importlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # the system's errors for a full disk and a full quota
# Errors of the machine, its disk or network, which may pass. By name, because not every system has each of them.
_FAULTS = (
    *("EIO", "EREMOTEIO", "ENODEV", "EUCLEAN", "EBADMSG", "ENOMEM", "ENFILE", "ESTALE", "ETIMEDOUT", "ENOTCONN"),
    *("ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ESHUTDOWN", "EHOSTDOWN", "EHOSTUNREACH"),
    *("ENETDOWN", "ENETUNREACH", "ENETRESET", "ENOLINK", "ECOMM"),
)
MACHINE_FAULTS = (*NO_ROOM, *(getattr(errno, name) for name in _FAULTS if hasattr(errno, name)))


MAX_LINE = 4000  # characters of an error; a file may have a name of 100 MB in it
# Control characters except newline and tab, line separators, marks that reverse the direction of text, and halves of
# surrogate pairs. A terminal would obey them, show other text than there is, or refuse to print them.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    """Replace each character that could control a terminal by its escape, such as \\x1b. Newlines and tabs stay.

    Every text that a command prints from a file or a model passes this function: both may come from a stranger.
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Escape a text, newlines and tabs too, and cut out its middle if it is longer than MAX_LINE."""
    if len(text) > MAX_LINE:
        text = f"{text[: MAX_LINE * 3 // 4]} ... {text[-MAX_LINE // 4 :]}"
    return escaped(text).replace("\n", "\\n").replace("\t", "\\t")


class ConfigError(Exception):
    """A setting, file or argument is invalid. The message names it, its value, the rule and what to use instead.

    Commands print the message without a traceback and exit with `exit_status`. Our launchers do not restart after
    status 2; a subclass with status 1 says that a restart may succeed. The message is always `one_line`, because it
    may quote a file of a stranger.
    """

    exit_status = 2

    def __str__(self) -> str:
        return one_line(super().__str__())


class MachineFault(ConfigError):
    """The machine, its disk or network failed: no setting is wrong, and a later try may succeed."""

    exit_status = 1


class DiskFull(MachineFault):
    """A disk is full. A restart may succeed, because space may be freed in the meantime."""


def passing_fault(error: BaseException) -> MachineFault | None:
    """Return a MachineFault if the machine ran out of memory or threads, else None."""
    no_thread = isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    if not (no_thread or isinstance(error, MemoryError)):
        return None
    return MachineFault(
        f"the machine has no {'thread' if no_thread else 'memory'} left ({type(error).__name__}: {error}). "
        "Run the same command again, with fewer workers: finished work is kept"
    )


def file_error(error: OSError, message: str) -> ConfigError:
    """Return an error with this message. Its class, and so the exit status, tells a user's mistake from a fault."""
    if error.errno in NO_ROOM:
        return DiskFull(message)
    return MachineFault(message) if error.errno in MACHINE_FAULTS else ConfigError(message)


def nearest(wanted: int, allowed: Iterable[int]) -> list[int]:
    """Return the largest allowed value up to `wanted` and the smallest from `wanted` on: one, two or no values."""
    values = list(allowed)
    below = [value for value in values if value <= wanted]
    above = [value for value in values if value >= wanted]
    return sorted({*([max(below)] if below else []), *([min(above)] if above else [])})


def nearest_divisors(number: int, wanted: int) -> str:
    """Name the divisors of `number` that are nearest to `wanted`: "4 or 6"."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return either(nearest(wanted, (*small, *(number // d for d in small))))


def nearest_multiples(unit: int, wanted: int) -> str:
    """Name the positive multiples of `unit` that are nearest to `wanted`: "4096 or 6144"."""
    below = wanted // unit * unit
    return either(nearest(wanted, (value for value in (below, below + unit) if value > 0)))


def either(values: Iterable[int]) -> str:
    """Join values for a message: "4 or 6"."""
    return " or ".join(map(str, values))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Name the known word that is most similar: "did you mean 'tensor'?", or "" if none is similar."""
    near = difflib.get_close_matches(name[:200], list(known), n=1)  # the search is quadratic in the length
    return f"did you mean '{near[0]}'?" if near else ""


def import_extra(module: str, *, extra: str) -> ModuleType:
    """Import an optional package, or raise ConfigError with the pip command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != root:
            raise
        raise missing_extra(root, extra=extra) from error


def missing_extra(package: str, *, extra: str) -> ConfigError:
    """Return the error for an optional package that is not installed, with the pip command."""
    return ConfigError(
        f"the package '{package}' is not installed; it comes with the extra '{extra}': {install_command(extra)}"
    )


def install_command(extra: str = "") -> str:
    """Return the pip command that installs Triaxial with an extra: from this checkout, else from the user's wheel."""
    checkout, brackets = Path(__file__).resolve().parents[1], f"[{extra}]" if extra else ""
    if (checkout / "pyproject.toml").is_file():
        return f"pip install -e '{checkout}{brackets}'"
    return f"pip install 'WHEEL{brackets}', where WHEEL is the path of the triaxial-*.whl that you installed"
