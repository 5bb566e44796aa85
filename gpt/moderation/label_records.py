"""One record of a file of labelled texts, in our form or in another's. No error quotes a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt.errors import ConfigError, did_you_mean
from gpt.moderation.labels import LabelledText, text_id
from gpt.moderation.taxonomy import Taxonomy
from gpt.token_files.label_states import NEGATIVE, POSITIVE, UNKNOWN, LabelValueError, label_state, record_states

TEXT_FIELDS = ("text", "prompt", "comment_text", "comment", "tweet")
# Characters. An address may be a source or a group, and ids are as long as `moderate score` lets them be.
_MAX_NAME, _MAX_ID, _MAX_SOURCE = 200, 1024, 1 << 13


@dataclass(frozen=True)
class MappedLabel:
    """A field of a file that gives the label of a category; with `value`, the field is positive where it has it."""

    field: str
    category: str
    value: str | None = None


@dataclass(frozen=True)
class LabelMap:
    """The names of a file's fields where they are not ours. Without `labels`, `labels` or the categories' own ids."""

    text: str = ""
    id: str = ""
    labels: tuple[MappedLabel, ...] = ()


def parse_label_map(items: Sequence[str], taxonomy: Taxonomy, *, text: str = "", id: str = "") -> LabelMap:
    """Parse `FIELD=CATEGORY` and `FIELD:VALUE=CATEGORY`. ConfigError: another form, or an unknown category."""
    found = []
    for item in items:
        left, equals, category = item.rpartition("=")
        if not equals or not left:
            raise ConfigError(f"--map {item} is invalid: must be FIELD=CATEGORY or FIELD:VALUE=CATEGORY. Use toxic=H")
        if category not in taxonomy.ids:
            raise ConfigError(f"--map {item} is invalid: {_unknown(category, taxonomy)}")
        name, colon, value = left.partition(":")
        found.append(MappedLabel(name, category, value if colon else None))
    return LabelMap(text, id, tuple(found))


def labelled_text(values: Mapping[str, Any], taxonomy: Taxonomy, names: LabelMap, *, where: str) -> LabelledText | None:
    """Make a labelled text of a record; None if its text is null or blank.

    ConfigError: a field is missing or has another type, a label is outside the taxonomy, or the labels are those of
    another version. `where` names the record.
    """
    given = values.get("taxonomy")
    if given not in (None, taxonomy.label) and not names.labels:
        raise ConfigError(
            f"{where}: taxonomy is not '{taxonomy.label}'. Use that file's own taxonomy, or migrate its labels with "
            "`triaxial moderate taxonomy migrate`"
        )
    text = _text(values, names, where=where)
    if text is None:
        return None
    own = values.get(names.id or "id")
    if own is not None and not (isinstance(own, (str, int)) and 0 < len(str(own)) <= _MAX_ID):
        raise ConfigError(f"{where}: {names.id or 'id'} is invalid: must be a text of at most {_MAX_ID} characters")
    return LabelledText(
        text_id(text) if own is None else str(own),
        text,
        _labels(values, taxonomy, names, where=where),
        _name(values.get("labeller"), "labeller", where=where),
        _groups(values.get("groups"), where=where),
        _severity(values.get("severity"), taxonomy, where=where),
        _name(values.get("source"), "source", where=where, longest=_MAX_SOURCE),
    )


def _text(values: Mapping[str, Any], names: LabelMap, *, where: str) -> str | None:
    field = names.text or next((name for name in TEXT_FIELDS if name in values), "")
    if field not in values:
        wanted = f"field '{names.text}'" if names.text else f"field of a text, such as {' or '.join(TEXT_FIELDS[:2])}"
        raise ConfigError(f"{where}: there is no {wanted}. Name it with --text-field; the fields are {_fields(values)}")
    text = values[field]
    if text is None or (isinstance(text, str) and not text.strip()):
        return None
    if not isinstance(text, str):
        raise ConfigError(f"{where}: {field} is invalid: must be a text")
    try:
        text.encode()
    except UnicodeEncodeError:
        reason = "it has half of a surrogate pair, which is no character"
        raise ConfigError(f"{where}: {field} is invalid: {reason}. Write the file as UTF-8") from None
    return text


def _labels(values: Mapping[str, Any], taxonomy: Taxonomy, names: LabelMap, *, where: str) -> dict[str, bool]:
    if names.labels:
        return _mapped(values, names.labels, where=where)
    try:
        states = record_states(values, taxonomy.ids)
    except TypeError:
        raise ConfigError(
            f'{where}: labels is invalid: must be an object, such as {{"{taxonomy.ids[0]}": 1}}'
        ) from None
    except KeyError as error:
        raise ConfigError(f"{where}: labels: {_unknown(error.args[0], taxonomy)}") from None
    except LabelValueError as error:
        raise _invalid(error, where=where) from None
    return {name: states[name] == POSITIVE for name in taxonomy.ids if states.get(name, UNKNOWN) != UNKNOWN}


def _mapped(values: Mapping[str, Any], labels: Sequence[MappedLabel], *, where: str) -> dict[str, bool]:
    """The labels of mapped fields. A category of several fields is positive if one is, and unknown if none is known."""
    found: dict[str, bool] = {}
    for one in labels:
        if one.field not in values:
            raise ConfigError(f"{where}: --map names '{one.field}', which is no field; they are {_fields(values)}")
        value = values[one.field]
        if one.value is None:
            state = _state(value, one.field, where=where)
        elif value is None:
            state = UNKNOWN
        else:
            state = POSITIVE if str(value) == one.value else NEGATIVE
        if state != UNKNOWN:
            found[one.category] = found.get(one.category, False) or state == POSITIVE
    return found


def _state(value: Any, name: str, *, where: str) -> int:
    try:
        return label_state(value)
    except ValueError:
        raise _invalid(LabelValueError(name), where=where) from None


def _invalid(error: LabelValueError, *, where: str) -> ConfigError:
    return ConfigError(f"{where}: {error}. For a field of several classes use --map {error.name}:VALUE=CATEGORY")


def _groups(given: Any, *, where: str) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f'{where}: groups is invalid: must be an object of texts, such as {{"language": "en"}}')
    return {
        _name(name, "groups", where=where): _name(value, f"groups.{name}", where=where, longest=_MAX_SOURCE)
        for name, value in given.items()
        if value is not None
    }


def _severity(given: Any, taxonomy: Taxonomy, *, where: str) -> dict[str, int]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: severity is invalid: must be an object of whole numbers by category")
    known = {name: value for name, value in given.items() if value is not None}
    for name, value in known.items():
        if name not in taxonomy.ids:
            raise ConfigError(f"{where}: severity: {_unknown(str(name), taxonomy)}")
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1000:
            raise ConfigError(f"{where}: severity of {name} is invalid: must be a whole number from 0 to 1000")
    return known


def _name(value: Any, key: str, *, where: str, longest: int = _MAX_NAME) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > longest:
        raise ConfigError(f"{where}: {key[:40]} is invalid: must be a text of at most {longest} characters")
    return value


def _unknown(name: str, taxonomy: Taxonomy) -> str:
    meant = did_you_mean(name, taxonomy.ids) or f"use one of {', '.join(taxonomy.ids)}"
    return f"'{name[:60]}' is no category of {taxonomy.label}; {meant}"


def _fields(values: Mapping[str, Any]) -> str:
    return ", ".join(str(name)[:40] for name in list(values)[:20]) or "none"
