"""A run folder: settings, log, samples, checkpoints, and the model to share.

    RUN/run.json            resolved settings, versions, seed, dataset digest, command
    RUN/log.jsonl           one row each `log_every` steps
    RUN/tensorboard/        the same for TensorBoard
    RUN/samples/*.png       grids from fixed noise
    RUN/checkpoints/        the newest few steps and the best, safetensors too
    RUN/model.safetensors   weights to use and share (averaged where the system averages)
    RUN/model.json          which system, its settings, what the weights saw

Checkpoints are written to a hidden name, synced and renamed: a killed run leaves the last whole
one. Files of equal content have equal bytes.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from synthoma.data.store import new_folder, read_json, write_json
from synthoma.engine.versions import versions
from synthoma.errors import DataError, SettingsError

#: Nested dicts and lists of tensors, numbers, strings and None.
State = dict[str, Any]


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and make it last."""
    draft = path.with_name(f".{path.name}.partial")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def pack(state: State) -> bytes:
    """A state as bytes that depend on its content alone (pickled bytes depend on identities)."""
    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[f"{len(tensors):06}"] = value.detach().cpu().clone().contiguous()
            return {"tensor": f"{len(tensors) - 1:06}"}
        if isinstance(value, Mapping):
            return {"items": [[key, plain(own)] for key, own in value.items()]}
        if isinstance(value, (list, tuple)):
            return [plain(own) for own in value]
        return value

    return save(tensors, {"state": json.dumps(plain(state))})


def unpack(path: Path) -> State:
    """What `pack` made of a state; tuples have become lists."""
    with safe_open(str(path), framework="pt") as file:

        def rich(value: Any) -> Any:
            if isinstance(value, list):
                return [rich(own) for own in value]
            if not isinstance(value, dict):
                return value
            if "tensor" in value:
                return file.get_tensor(value["tensor"])
            return {key: rich(own) for key, own in value["items"]}

        state: State = rich(json.loads(file.metadata()["state"]))
    return state


class Run:
    """A run folder, new or resumed."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        self.samples = self.folder / "samples"
        self.log_path = self.folder / "log.jsonl"

    @classmethod
    def create(cls, folder: Path, facts: Mapping[str, Any]) -> "Run":
        """Begin a run.

        Args:
            facts: What run.json shall say beside versions: system, settings, seed, data, command.

        Raises:
            SettingsError: The folder exists; a run is continued with `train --resume`.
        """
        run = cls(folder)
        if run.folder.exists():
            raise SettingsError(
                f"{folder} exists already; nothing is overwritten: give another --out, or continue "
                f"it with `synthoma train --resume {folder}`"
            )
        with new_folder(run.folder) as draft:
            (draft / "checkpoints").mkdir()
            (draft / "samples").mkdir()
            write_json(draft / "run.json", {**facts, "versions": versions()})
        return run

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Open a run to use or resume it; changes nothing.

        Raises:
            DataError: It is not a run folder.
        """
        if not (Path(folder) / "run.json").is_file():
            raise DataError(f"{folder}: not a run folder (no run.json)")
        return cls(folder)

    def clean(self) -> None:
        """Remove what a killed process left half written; for whoever goes on with the run."""
        with self.locked():
            for partial in (*self.folder.glob(".*.partial"), *self.folder.glob("*/.*.partial")):
                partial.unlink()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Train alone: a second process that wants the same run is refused.

        Raises:
            SettingsError: Another process trains this run.
        """
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SettingsError(f"{self.folder}: another process trains this run") from None
            yield

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json says."""
        facts: dict[str, Any] = read_json(self.folder / "run.json")
        return facts

    @property
    def finished(self) -> bool:
        """Whether the model to share has been written, which ends a run."""
        return (self.folder / "model.json").is_file()

    def save(self, name: str, state: State) -> None:
        """Write a checkpoint."""
        write_bytes(self.checkpoints / f"{name}.safetensors", pack(state))

    def load(self, name: str) -> State:
        """Read a checkpoint of one's own.

        Raises:
            DataError: It cannot be read.
        """
        path = self.checkpoints / f"{name}.safetensors"
        try:
            return unpack(path)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a readable checkpoint ({error})") from error

    def steps_saved(self) -> list[int]:
        """Steps of the numbered checkpoints, rising."""
        return sorted(
            int(path.stem.split("-")[1]) for path in self.checkpoints.glob("step-*.safetensors")
        )

    def save_step(self, step: int, state: State, *, keep: int) -> None:
        """Write the checkpoint of a step and remove all but the newest `keep`."""
        self.save(f"step-{step:08}", state)
        for old in self.steps_saved()[:-keep]:
            (self.checkpoints / f"step-{old:08}.safetensors").unlink()

    def load_newest(self) -> State | None:
        """The newest checkpoint that can be read, or None where there is none yet.

        Raises:
            DataError: There are some, and none can be read.
        """
        damaged: DataError | None = None
        for step in reversed(self.steps_saved()):
            try:
                return self.load(f"step-{step:08}")
            except DataError as error:  # an older one ends in the same bytes
                damaged = damaged or error
        if damaged is not None:
            raise damaged
        return None

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to log.jsonl."""
        with self.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The rows of log.jsonl; a half-written last row is left out."""
        rows = []
        if self.log_path.is_file():
            for line in self.log_path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    rows.append(json.loads(line))
        return rows

    def cut_log(self, step: int) -> None:
        """Forget what was logged after `step`, when a run is resumed from there."""
        kept = [row for row in self.read_log() if row["step"] <= step]
        write_bytes(self.log_path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def finish(self, weights: Mapping[str, Tensor], model: Mapping[str, Any]) -> None:
        """Write the model to share: weights as safetensors, its facts and digest as JSON."""
        content = save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        )
        write_bytes(self.folder / "model.safetensors", content)
        digest = hashlib.sha256(content).hexdigest()
        write_json(self.folder / "model.json", {**model, "sha256": digest})

    def read_model(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Facts and weights of a finished run.

        Raises:
            DataError: The run is not finished, or the weights are not those that model.json names.
        """
        if not self.finished:
            raise DataError(
                f"{self.folder}: this run is not finished; `synthoma train --resume {self.folder}`"
            )
        facts: dict[str, Any] = read_json(self.folder / "model.json")
        path = self.folder / "model.safetensors"
        if hashlib.sha256(path.read_bytes()).hexdigest() != facts.get("sha256"):
            raise DataError(f"{path}: its SHA-256 is not the one in model.json; it was changed")
        return facts, load_file(path)
