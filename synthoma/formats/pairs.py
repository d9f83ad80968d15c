"""Which mask belongs to which volume, and what a file's name says of it.

By pattern: ``image="*/*_Scan_T1.nii.gz"`` chooses volumes and numbers its stars, and
``mask="{1}/{2}_Mask.nii.gz"`` fills them in; ``{folder}`` and ``{stem}`` are the volume's own.
A star stands for anything within one folder's name, ``**`` for any folders.

By habit, where no pattern is given: in the same folder, ``X_mask`` (or seg, segmentation, label,
lesion, roi, tumour) belongs to ``X``, to ``X_t1`` (any sequence), to ``X_scan``, ``X_bet`` and so
on; ``mask`` alone belongs to every volume of its folder; ``X_brain_mask`` is a mask of the brain.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from synthoma.errors import DataError, SettingsError

MASK_WORDS = frozenset(
    {
        "mask",
        "seg",
        "segmentation",
        "label",
        "labels",
        "lesion",
        "lesions",
        "roi",
        "tumor",
        "tumour",
    }
)
SEQUENCES = {
    "t1": "T1", "t1w": "T1", "t1n": "T1",
    "t1c": "T1c", "t1ce": "T1c", "t1gd": "T1c", "t1post": "T1c", "t1km": "T1c",
    "t2": "T2", "t2w": "T2",
    "flair": "FLAIR", "fla": "FLAIR", "t2f": "FLAIR", "t2flair": "FLAIR",
}  # fmt: skip
#: Words at the end of a volume's name that its mask's name does not have.
SCAN_WORDS = frozenset(
    {"scan", "image", "img", "volume", "vol", "bet", "brain", "stripped", "orig", *SEQUENCES}
)


@dataclass(frozen=True)
class Pair:
    """A volume and its masks, by name; a mask that a pattern names may not be there."""

    image: str
    mask: str | None = None
    brain: str | None = None
    problem: str = ""
    """Why it cannot be told which mask is meant."""


def pair(names: Sequence[str], *, image: str = "", mask: str = "", brain: str = "") -> list[Pair]:
    """Volumes with their masks, sorted.

    Args:
        names: NIfTI files, relative paths.
        image: Pattern of volumes; empty for all that are not masks.
        mask: Pattern of a volume's mask; empty for the habit.
        brain: Pattern of a volume's mask of the brain; empty for the habit.

    Raises:
        SettingsError: A pattern has an unknown place, or no file matches.

    Example:
        >>> for found in pair(["a/Pre_T1.nii", "a/Pre_Mask.nii", "b/x.nii"]):
        ...     print(found.image, found.mask)
        a/Pre_T1.nii a/Pre_Mask.nii
        b/x.nii None
    """
    habits = Habits(names)
    if image:
        expression = star_expression(image)
        matches = {name: match for name in names if (match := expression.fullmatch(name))}
        if not matches:
            raise DataError(f"no file matches image={image!r}; files are {', '.join(names[:5])} …")
    else:
        if re.search(r"\{\d", mask + brain):
            raise SettingsError("a mask pattern with {1} wants an image pattern with a star")
        anything = re.compile(".*")
        matches = {name: match for name in names if (match := anything.fullmatch(name))}
    masks = {fill(template, match) for template in (mask, brain) if template
             for match in matches.values()}  # fmt: skip
    if not image:
        masks |= set(habits.kinds)
    pairs = []
    for name, match in sorted(matches.items()):
        if name in masks:
            continue
        found, problem = (fill(mask, match), "") if mask else habits.find(name, "lesion")
        around, other = (fill(brain, match), "") if brain else habits.find(name, "brain")
        pairs.append(Pair(name, found, around, problem or other))
    return pairs


def star_expression(pattern: str) -> re.Pattern[str]:
    """A file pattern as a regular expression with a group for each star.

    Example:
        >>> star_expression("**/*_t1.nii").fullmatch("a/b/x_t1.nii").groups()
        ('a/b', 'x')
    """
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    said = {"**/": "(?:(.*)/)?", "**": "(.*)", "*": "([^/]*)", "?": "[^/]"}
    return re.compile("".join(said.get(part, re.escape(part)) for part in parts))


def fill(template: str, match: re.Match[str]) -> str:
    """A template with the stars of a match filled in."""
    path = PurePosixPath(match.string)
    places = {str(i): text or "" for i, text in enumerate(match.groups(), 1)}
    places |= {"folder": path.parent.as_posix(), "stem": stem_of(match.string)}

    def place(found: re.Match[str]) -> str:
        if found[1] not in places:
            raise SettingsError(
                f"{template!r}: {{{found[1]}}} is not a place; allowed: "
                + ", ".join(f"{{{name}}}" for name in places)
            )
        return places[found[1]]

    return PurePosixPath(re.sub(r"\{(\w*)\}", place, template).lstrip("/")).as_posix()


class Habits:
    """Masks by their names: see the top of this file."""

    def __init__(self, names: Sequence[str]) -> None:
        self.kinds: dict[str, str] = {}
        self.known: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
        for name in names:
            kind, rest = mask_kind(stem_of(name))
            if kind:
                self.kinds[name] = kind
                folder = PurePosixPath(name).parent.as_posix()
                self.known.setdefault((folder, kind, rest), []).append(name)

    def find(self, image: str, kind: str) -> tuple[str | None, str]:
        """The mask of a volume, None where there is none; and why it cannot be told."""
        folder = PurePosixPath(image).parent.as_posix()
        words = words_of(stem_of(image))
        candidates = [words]
        while words and words[-1] in SCAN_WORDS:
            words = words[:-1]
            candidates.append(words)
        for rest in (*candidates, ()):
            masks = self.known.get((folder, kind, rest), [])
            if len(masks) == 1:
                return masks[0], ""
            if masks:
                return None, f"{image}: which is its mask, {' or '.join(masks)}? Give mask=PATTERN"
        return None, ""


def mask_kind(stem: str) -> tuple[str, tuple[str, ...]]:
    """Whether a name is a mask's ("lesion", "brain" or ""), and the words that say of what.

    Example:
        >>> mask_kind("p1_tumour_mask"), mask_kind("p1_brain_mask"), mask_kind("p1_t1")[0]
        (('lesion', ('p1',)), ('brain', ('p1',)), '')
    """
    words = words_of(stem)
    if words[-1:] == ("brainmask",):
        return "brain", words[:-1]
    if words[-2:] == ("brain", "mask"):
        return "brain", words[:-2]
    rest = words
    while rest and rest[-1] in MASK_WORDS:
        rest = rest[:-1]
    return ("lesion", rest) if rest != words else ("", words)


def stem_of(name: str) -> str:
    """A NIfTI file's name without folder and suffix.

    Example:
        >>> stem_of("a/b.c.nii.gz")
        'b.c'
    """
    return re.sub(r"\.nii(\.gz)?$", "", PurePosixPath(name).name, flags=re.IGNORECASE)


def words_of(stem: str) -> tuple[str, ...]:
    """The words of a name, in lower case."""
    return tuple(word for word in re.split(r"[_\-. ]+", stem.lower()) if word)


def sequence_of(name: str) -> str | None:
    """The MR sequence that a file's name tells.

    Example:
        >>> sequence_of("p1_t1ce.nii.gz"), sequence_of("p1_bet_fla.nii"), sequence_of("p1.nii")
        ('T1c', 'FLAIR', None)
    """
    told = [SEQUENCES[word] for word in words_of(stem_of(name)) if word in SEQUENCES]
    return told[-1] if told else None


def patient_of(name: str) -> str:
    """The first folder of a path; without one the file's name up to the sequence.

    Example:
        >>> patient_of("p1/a/t1.nii"), patient_of("P-01_t1c_bet.nii.gz"), patient_of("scan.nii")
        ('p1', 'P-01', 'scan')
    """
    first, *rest = PurePosixPath(name).parts
    if rest:
        return first
    stem = stem_of(name)
    sequences = sorted(SEQUENCES, key=len, reverse=True)
    told = re.match(rf"(.+?)[_\-. ]+(?:{'|'.join(sequences)})(?=$|[_\-. ])", stem, re.IGNORECASE)
    return told[1] if told else stem
