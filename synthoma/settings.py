"""Settings as people meet them: replaced by field, checked again, printed with their meaning."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from synthoma.errors import SettingsError

Settings = TypeVar("Settings", bound=BaseModel)


def replaced(settings: Settings, fields: Mapping[str, Any], what: str) -> Settings:
    """`settings` with some fields replaced, nested ones too, and all checked again.

    Args:
        what: Names the settings in the message.

    Raises:
        SettingsError: A field or value that is not allowed.
    """
    try:
        return type(settings).model_validate(merged(settings.model_dump(), fields))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise SettingsError(f"{what}.{name}: {unknown(settings, first['loc'])}") from None
        if not name:  # fields that do not go together
            said = first["msg"].removeprefix("Value error, ")
            raise SettingsError(f"{what}: {said}") from None
        allowed = ", ".join(type(settings).model_fields)
        raise SettingsError(
            f"{what}.{name}: {first['msg']} (given {first['input']!r}); fields: {allowed}"
        ) from None


def unknown(settings: BaseModel, place: Sequence[int | str]) -> str:
    """That there is no setting at a place, the nearest by name, and those that there are.

    Args:
        place: The fields on the way, and the one that is not there.

    Example:
        >>> from pydantic import create_model
        >>> unknown(create_model("Loop", steps=(int, 1), threads=(int, 0))(), ["step"])
        "there is no setting 'step'; did you mean steps? There are: steps, threads"
    """
    *way, last = place
    own: Any = settings
    for part in way:
        own = own.get(part) if isinstance(own, Mapping) else getattr(own, str(part), None)
    said = f"there is no setting {str(last)!r}"
    if not isinstance(own, BaseModel):
        return said
    names = list(type(own).model_fields)
    nearest = get_close_matches(str(last), names, 1)
    said += f"; did you mean {nearest[0]}? There" if nearest else "; there"
    return f"{said} are: {', '.join(names)}"


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested dicts; where both have a value, `above` wins.

    Example:
        >>> merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 5}})
        {'a': {'b': 5, 'c': 2}, 'd': 3}
    """
    result = dict(below)
    for name, value in above.items():
        own = result.get(name)
        both = isinstance(own, Mapping) and isinstance(value, Mapping)
        result[name] = merged(own, value) if both else value  # type: ignore[arg-type]
    return result


def describe(settings: BaseModel, indent: str = "") -> list[str]:
    """Settings as lines of YAML, each field under a comment that says what it means."""
    import yaml  # noqa: PLC0415

    lines = []
    for name, field in type(settings).model_fields.items():
        if field.description:
            lines.append(f"{indent}# {field.description}")
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            lines.append(f"{indent}{name}:")
            lines += describe(value, indent + "  ")
        else:
            plain = settings.model_dump(mode="json", include={name})[name]
            text = yaml.safe_dump(plain, default_flow_style=True, width=10_000).strip()
            lines.append(f"{indent}{name}: {text.removesuffix('...').strip()}")
    return lines
