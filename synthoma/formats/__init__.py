"""Every file format that synthoma reads and writes, by the name that the command line uses.

To add one: write `formats/<name>.py` with `Settings`, `read` and `write` (see `Format`), then add
a line here. Modules are loaded when they are asked for, so that importing this package loads no
reader.
"""

from importlib import import_module
from typing import TYPE_CHECKING, cast

from synthoma.errors import SettingsError

if TYPE_CHECKING:
    from synthoma.formats.source import Format

FORMATS: dict[str, str] = {
    "csv": "synthoma.formats.csv",
    "folder": "synthoma.formats.folder",
    "coco": "synthoma.formats.coco",
    "yolo": "synthoma.formats.yolo",
    "voc": "synthoma.formats.voc",
    "nifti": "synthoma.formats.nifti",
    "dicom": "synthoma.formats.dicom",
    "brats": "synthoma.formats.brats",
    "medmnist": "synthoma.formats.medmnist",
    "lidc": "synthoma.formats.lidc",
    "luna": "synthoma.formats.luna",
}


def load_format(name: str) -> "Format":
    """The module of a format: its `Settings`, `read` and `write`.

    Raises:
        SettingsError: There is no such format.

    Example:
        >>> sorted(load_format("voc").Settings.model_fields)
        ['colour', 'drop_difficult']
    """
    if name not in FORMATS:
        raise SettingsError(f"format {name!r}; allowed: {', '.join(FORMATS)}")
    return cast("Format", import_module(FORMATS[name]))
