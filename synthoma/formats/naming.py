"""File names for cases: from the case's id, safe on every file system, each once."""

import re

LONGEST = 120
#: Names that Windows keeps for devices.
DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(1, 10))}


class FileNames:
    """Deals names without suffix.

    Example:
        >>> names = FileNames()
        >>> names.of("images/1.jpg"), names.of("images_1.png"), names.of("../a b#axial-3")
        ('images_1', 'images_1-2', 'a_b-axial-3')
    """

    def __init__(self) -> None:
        self.used: dict[str, int] = {}

    def of(self, case_id: str) -> str:
        """A name that was not dealt before, upper and lower case taken as one."""
        name = re.sub(r"\.(png|jpe?g|tiff?|nii|nii\.gz)(?=$|#)", "", case_id, flags=re.IGNORECASE)
        name = re.sub(r"[^A-Za-z0-9._-]+", lambda m: "-" if "#" in m[0] else "_", name)
        name = name.strip("._-")[:LONGEST].rstrip(".") or "case"
        if name.lower().split(".")[0] in DEVICES:
            name = f"case_{name}"
        n = self.used.get(name.lower(), 0) + 1
        fresh = name if n == 1 else f"{name}-{n}"
        while fresh.lower() in self.used:
            n += 1
            fresh = f"{name}-{n}"
        self.used[name.lower()] = n
        self.used.setdefault(fresh.lower(), 1)
        return fresh
