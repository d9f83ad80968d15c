"""What studies train: a system with its settings at a scale."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict

from synthoma.data.store import read_json
from synthoma.engine.settings import TrainSettings
from synthoma.errors import SettingsError
from synthoma.settings import replaced
from synthoma.zoo import load_entry

if TYPE_CHECKING:
    from synthoma.gans.pggan import PGGANConfig


class Trained(BaseModel):
    """A system and how it is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    system: dict[str, Any]
    train: TrainSettings

    def settings(self) -> tuple[BaseModel, TrainSettings]:
        """As `fit` takes them."""
        return load_entry(self.name).config.model_validate(self.system), self.train


def preset(
    part: str, system: str, scale: str, overrides: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The fields of a `Trained`: a system's settings at a scale, those of its part replaced."""
    own = load_entry(system).presets[scale]
    return {
        "name": system,
        "system": replaced(own.system, overrides.get(part, {}), part).model_dump(mode="json"),
        "train": replaced(own.train, overrides.get(f"{part}_train", {}), f"{part}_train"),
    }


def checked(ratios: Any) -> tuple[float, ...]:
    """Some positive, different numbers."""
    try:
        found = tuple(float(ratio) for ratio in ratios)
    except (TypeError, ValueError):
        found = ()
    if not found or min(found) <= 0 or len(set(found)) < len(found):
        raise SettingsError(f"study.ratios={ratios}; allowed: some numbers above 0, each once")
    return found


def check_that_it_finishes(name: str, source: Trained) -> None:
    """Refuse a generator whose training would end while it grows, or before its last part."""
    steps, last = source.train.steps, source.system.get("projected_from", 0)
    if steps < last:
        raise SettingsError(
            f"{name}_train.steps={steps}, but its second part begins at step {last} "
            f"({name}.projected_from)"
        )
    if "stable_images" in source.system:
        from synthoma.gans.pggan import phase  # noqa: PLC0415 (imports torch)

        config, _ = source.settings()
        side_px, _ = phase(cast("PGGANConfig", config), steps)
        if side_px != source.system["side_px"]:
            raise SettingsError(
                f"{name}_train.steps={steps}: by then it has grown to {side_px} of "
                f"{source.system['side_px']} px; train it longer, or with fewer stable_images and "
                "fade_images"
            )


def paints(run: Path) -> bool:
    """Whether the generator of a run folder paints into real images."""
    entry = load_entry(read_json(run / "run.json")["name"])
    return "background" in getattr(entry.system, "conditions", ())
