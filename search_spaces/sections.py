"""A YAML document as checked sections: what is wrong with it in one line."""

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from search_spaces.errors import InputError, did_you_mean

SHOWN_ERRORS = 3


class Section(BaseModel):
    """A part of a document: unknown keys and wrong types are refused, values do not change once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=Section)


def checked(kind: type[AnySection], document: object, place: str) -> AnySection:
    """The document as a section.

    Args:
        kind: of section.
        document: plain data.
        place: that names the document in an error.

    Raises:
        InputError: in one line, which keys break which rules with which values.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        details = error.errors(include_url=False)
    lines = [_explained(kind, detail) for detail in details[:SHOWN_ERRORS]]
    if len(details) > SHOWN_ERRORS:
        lines.append(f"and {len(details) - SHOWN_ERRORS} more")
    raise InputError(f"{place}: {'; '.join(lines)}")


def _explained(kind: type[Section], detail: ErrorDetails) -> str:
    location, value = detail["loc"], detail["input"]
    key = ".".join(str(part) for part in location)
    if detail["type"] == "extra_forbidden":
        return f"unknown key {key!r}{did_you_mean(str(location[-1]), _known_keys(kind, location[:-1]))}"
    if detail["type"] == "missing":
        return f"the key {key!r} is missing"
    if detail["type"] == "value_error":  # raised by a validator: the message shows the value where one is to blame
        rule = str(detail["ctx"]["error"])
        return f"{key}: {rule}" if key else rule
    rule = "should be a section (a mapping)" if detail["type"] == "model_type" else detail["msg"].removeprefix("Input ")
    return f"{key}: {rule}, got {shown(value)}"


def _known_keys(kind: type[Section], location: Sequence[str | int]) -> list[str]:
    """Keys of the section at that place of a document; a key between that is the user's own leads to any section."""
    section: Any = kind
    for part in location:
        field = section.model_fields.get(str(part))
        if field is None:
            continue
        candidates = getattr(field.annotation, "__args__", (field.annotation,))
        section = next(each for each in candidates if isinstance(each, type) and issubclass(each, Section))
    return [field.alias or name for name, field in section.model_fields.items()]


def shown(value: object) -> str:
    """A value as it stands in an error."""
    text = "a mapping" if isinstance(value, dict) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
