"""Options that several verbs take, and how they are read."""

from pathlib import Path
from typing import Annotated, Any

import typer

from synthoma.errors import SettingsError

Out = Annotated[Path, typer.Option(help="Folder to create; nothing is ever overwritten.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PART.FIELD=VALUE", help="Replace a setting; repeatable."),
]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings, before --set.")]
Minutes = Annotated[
    float | None, typer.Option(min=0.01, help="Stop at a checkpoint after this long.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
Seed = Annotated[int, typer.Option(min=0, help="Another seed, another run.")]


def only_beside_resume(ctx: typer.Context, *allowed: str) -> None:
    """Refuse what --resume would silently ignore.

    Raises:
        SettingsError: An option was given that the folder already knows.
    """
    for name in ctx.params:
        given = ctx.get_parameter_source(name)
        if given is not None and given.name == "COMMANDLINE" and name not in ("resume", *allowed):
            raise SettingsError(
                f"{name} cannot be changed beside --resume: the folder knows it; allowed: "
                f"{', '.join('--' + option for option in allowed)}"
            )


def read_settings(config: Path | None, replaced: list[str] | None) -> dict[str, dict[str, Any]]:
    """Settings by part and field, from a YAML file and ``part.field=value`` arguments."""
    import yaml

    settings: dict[str, dict[str, Any]] = {}
    if config is not None:
        try:
            read = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise SettingsError(f"{config}: {error}") from None
        if not isinstance(read, dict) or not all(isinstance(v, dict) for v in read.values()):
            raise SettingsError(f"{config}: allowed: parts (system:, train:) with fields below")
        settings = read
    for item in replaced or []:
        path, equals, value = item.partition("=")
        part, dot, field = path.partition(".")
        if not equals or not dot:
            raise SettingsError(f"--set {item}: allowed: PART.FIELD=VALUE, as train.steps=100")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:  # such as a pattern that begins with a star
            parsed = value
        inner = settings.setdefault(part, {})
        *outer, last = field.split(".")
        for name in outer:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise SettingsError(f"--set {item}: {name} was set to {inner!r} before")
        inner[last] = parsed
    return settings


def read_pairs(items: list[str] | None, option: str, form: str = "NAME=VALUE") -> dict[str, str]:
    """A dict from ``name=value`` arguments.

    Raises:
        SettingsError: An argument is not of the form, or a name is given twice.
    """
    pairs: dict[str, str] = {}
    for item in items or []:
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            raise SettingsError(f"{option} {item}: allowed: {option} {form}")
        if name in pairs:
            raise SettingsError(
                f"{option} {item}: {name}={pairs[name]} was given before; allowed: one value a name"
            )
        pairs[name] = value
    return pairs
