"""Every system of the toolkit by the name that the command line uses.

`GANS` and `TASKS` name a module for each; it is imported when it is needed. Such a module has

    SYSTEM            the class, a final `System`
    PRESETS           "paper", "small", "smoke": a `Preset` each
    fitted(config, pool) -> config   what the data decides: channels, classes, anchors
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from synthoma.errors import SettingsError
from synthoma.gans import GANS
from synthoma.tasks import TASKS

if TYPE_CHECKING:
    from pydantic import BaseModel

    from synthoma.engine.settings import Preset
    from synthoma.engine.system import System

#: Module by name.
SYSTEMS: dict[str, str] = {**GANS, **TASKS}


@dataclass(frozen=True)
class Entry:
    """What a system's module offers."""

    name: str
    about: str
    system: "Callable[[Any], System]"
    config: "type[BaseModel]"
    presets: "dict[str, Preset]"
    fitted: Callable[[Any, Any], Any]


def load_entry(name: str) -> Entry:
    """Import a system's module.

    Raises:
        SettingsError: There is no such system.
    """
    if name not in SYSTEMS:
        raise SettingsError(f"no system {name!r}; there are: {', '.join(SYSTEMS)}")
    module = import_module(SYSTEMS[name])
    return Entry(
        name=name,
        about=(module.__doc__ or "").strip().splitlines()[0],
        system=module.SYSTEM,
        config=type(module.PRESETS["paper"].system),
        presets=module.PRESETS,
        fitted=module.fitted,
    )


def describe(settings: "BaseModel", indent: str = "") -> list[str]:
    """Settings as lines of YAML, each field under a comment that says what it means."""
    import yaml  # noqa: PLC0415
    from pydantic import BaseModel  # noqa: PLC0415

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
