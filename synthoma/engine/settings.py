"""How a training run is run, apart from what is trained; and presets, which pair the two."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainSettings(BaseModel):
    """Settings of the one training loop, the same for every system."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1, description="Steps in all; each player makes its moves in each.")
    epochs: int = Field(
        0,
        ge=0,
        description="Epochs in all, at most `steps` steps, for systems that count epochs; "
        "validation is then after each, unless validate_every says otherwise. 0: count steps.",
    )
    precision: Literal["float32", "bf16"] = Field(
        "float32",
        description="bf16: convolutions and matrix products in bfloat16, weights in float32.",
    )
    threads: int = Field(0, ge=0, description="CPU threads; 0: all cores.")
    log_every: int = Field(50, ge=1, description="Steps between rows of log.jsonl.")
    sample_every: int = Field(0, ge=0, description="Steps between sample grids; 0: at the end.")
    checkpoint_every: int = Field(500, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that are kept.")
    validate_every: int = Field(
        0, ge=0, description="Steps between validations; 0: at the end only."
    )
    validate_from: int = Field(0, ge=0, description="First step whose weights may be the best.")
    keep_best: str = Field("", description="Validation metric (higher is better) to keep by.")
    patience: int = Field(
        0, ge=0, description="Validations without a better value before stopping; 0: never stop."
    )


@dataclass(frozen=True)
class Preset:
    """A named scale of a system: what it is and how it is trained."""

    system: BaseModel
    train: TrainSettings
