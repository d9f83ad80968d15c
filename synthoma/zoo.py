"""Every system of the toolkit by the name that the command line uses.

`GANS`, `REFINERS` and `TASKS` name a module for each; it is imported when it is needed. Such a
module has

    SYSTEM            the class, a final `System`
    PRESETS           "paper", "small", "smoke": a `Preset` each
    fitted(config, pools) -> config   what the data decides: channels, classes, anchors; `pools`
                      by domain, of which a system of one domain looks at "real"
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from synthoma.errors import SettingsError
from synthoma.gans import GANS, REFINERS
from synthoma.tasks import TASKS

if TYPE_CHECKING:
    from pydantic import BaseModel

    from synthoma.data.batches import Pool
    from synthoma.engine.settings import Preset
    from synthoma.engine.system import System

#: Module by name.
SYSTEMS: dict[str, str] = {**GANS, **REFINERS, **TASKS}


@dataclass(frozen=True)
class Entry:
    """What a system's module offers."""

    name: str
    about: str
    system: "Callable[[Any], System]"
    config: "type[BaseModel]"
    presets: "dict[str, Preset]"
    fitted: "Callable[[Any, dict[str, Pool]], Any]"
    """(config, pools by domain) -> config, with what the data decides."""


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
