"""Settings as people meet them: replaced by field, checked again, printed with their meaning."""

from collections.abc import Mapping
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
        allowed = ", ".join(type(settings).model_fields)
        raise SettingsError(
            f"{what}.{name}: {first['msg']} (given {first['input']!r}); fields: {allowed}"
        ) from None


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
