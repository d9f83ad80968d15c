"""Which files of a BraTS folder are one case, whose it is, and how its tumour is graded.

    2012       HG/BRATS_HG0001/BRATS_HG0001_T1C.mha, .._truth.mha
    2013       HG/0001/VSD.Brain.XX.O.MR_T1c/VSD.Brain.XX.O.MR_T1c.686.mha, ..OT.. the mask
    2014-2016  HGG/brats_tcia_pat101_0001/VSD.Brain.XX.O.MR_T1c.54514/..mha
    2017-2019  HGG/Brats18_TCIA01_131_1/Brats18_TCIA01_131_1_t1ce.nii.gz, .._seg.nii.gz
    2020       BraTS20_Training_001/BraTS20_Training_001_t1ce.nii
    2021       BraTS2021_00000/BraTS2021_00000_t1ce.nii.gz
    2023-      BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1c.nii.gz

A file's last word that names a sequence or a mask is its role; what stands before it is the case,
in whatever folders; files named by role alone (`t1.nii.gz`) and those of 2013 to 2016 are their
folder's. A mask whose name fits no case (`W39_1998.09.19_Segm.nii` of 2020) belongs to the only
case of its folder.

Patients: until 2019 and from 2023 on the last number of a case is the visit, not the patient.
Where numbers begin anew in HGG and LGG, the grade belongs to the patient's name. A case that is
called otherwise than in BraTS (`03/Pre_Scan_T1.nii.gz`) is of the patient of its folder.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from synthoma.formats.metaimage import SUFFIX
from synthoma.formats.pairs import MASK_WORDS, SCAN_WORDS, SEQUENCES, mask_kind

SUFFIXES = (".nii", ".nii.gz", SUFFIX)
MASK = "mask"
ROLES = SEQUENCES | dict.fromkeys(MASK_WORDS | {"ot", "truth", "segm"}, MASK)
#: A case's name whose last number is a visit; the group is the patient.
VISITS = re.compile(
    r"(BraTS-[A-Z]+-\d+)-\d+|(brats_(?:2013|tcia)_pat\d+)_\d+|(Brats1[789]_.+)_\d+"
    r"|(TCGA-\w\w-\w{4})[-_].*",
    re.IGNORECASE,
)
#: A case's name that says whose it is; any other is within its patient's folder.
NAMED = re.compile(r"brats|tcga-|upenn-|\d+$", re.IGNORECASE)
#: A patient's name that a patient of the other grade may have too.
NUMBERED = re.compile(r"\d+|brats_2013_pat\d+", re.IGNORECASE)
GRADES = {"hgg": "HGG", "hg": "HGG", "lgg": "LGG", "lg": "LGG"}


@dataclass(frozen=True)
class BratsCase:
    """The files of one visit of a patient."""

    name: str
    """Its path: a folder, or a folder and what its files' names begin with."""
    patient: str
    grade: str | None
    """HGG or LGG."""
    files: dict[str, list[str]] = field(default_factory=dict)
    """By role: T1, T1c, T2, FLAIR, mask. Several for one role are one too many."""


def find_cases(names: Sequence[str], folder: str = "") -> tuple[list[BratsCase], list[str]]:
    """Cases sorted by name, and the volumes that belong to none.

    Args:
        names: Files with `SUFFIXES`, relative paths.
        folder: The name of the folder that they are relative to, which may be a grade.

    Example:
        >>> cases, _ = find_cases(["HGG/Brats18_A_1_1/Brats18_A_1_1_t1ce.nii.gz"])
        >>> cases[0].patient, cases[0].grade, list(cases[0].files)
        ('Brats18_A_1', 'HGG', ['T1c'])
    """
    cases: dict[str, BratsCase] = {}
    homes: dict[str, list[str]] = {}
    strays = []
    for name in names:
        told = role_of(name)
        if told is None:
            strays.append(name)
            continue
        role, home, own = told
        key = home if own.lower() in ("", PurePosixPath(home).name.lower()) else f"{home}/{own}"
        key = key.removeprefix("./")
        if key not in cases:
            grade = grade_of(f"{folder}/{key}")
            called, parent = PurePosixPath(key).name or folder, PurePosixPath(home).name
            if not NAMED.match(called) and parent.lower() not in ("", *GRADES):
                called = parent
            cases[key] = BratsCase(key, patient_of(called, grade), grade)
            homes.setdefault(home, []).append(key)
        cases[key].files.setdefault(role, []).append(name)
    for keys in homes.values():
        masks = [key for key in keys if list(cases[key].files) == [MASK]]
        others = [key for key in keys if key not in masks]
        if len(others) == 1 and MASK not in cases[others[0]].files and len(masks) == 1:
            cases[others[0]].files[MASK] = cases.pop(masks[0]).files[MASK]
    return [cases[key] for key in sorted(cases)], strays


def role_of(name: str) -> tuple[str, str, str] | None:
    """A file's role, the folder of its case, and how its case is called there; None for others.

    Example:
        >>> role_of("HG/0001/VSD.Brain_3more.XX.XX.OT/VSD.Brain_3more.XX.XX.OT.6560.mha")
        ('mask', 'HG/0001', '')
        >>> role_of("flat/BraTS-GLI-00000-000-t2f.nii.gz")
        ('FLAIR', 'flat', 'BraTS-GLI-00000-000')
    """
    path = PurePosixPath(name)
    stem = re.sub(r"(\.nii(\.gz)?|\.mha)$", "", path.name, flags=re.IGNORECASE)
    if mask_kind(stem)[0] == "brain":
        return None
    parts = re.split(r"([_\-. ]+)", stem)  # words, and what stands between them
    places = [i for i in range(0, len(parts), 2) if parts[i].lower() in ROLES]
    if not places:
        return None
    end = places[-1]
    while end >= 2 and parts[end - 2].lower() in SCAN_WORDS:  # Pre_Scan_T1 is of the case Pre
        end -= 2
    role, own = ROLES[parts[places[-1]].lower()], "".join(parts[:end]).rstrip("_-. ")
    home = path.parent
    if own.startswith("VSD."):
        home, own = (home.parent if home.name.startswith("VSD.") else home), ""
    return role, home.as_posix(), own


def grade_of(path: str) -> str | None:
    """The grade that a case's folders tell.

    Example:
        >>> grade_of("HGG/x"), grade_of("a/BRATS_LG0004"), grade_of("BraTS20_Training_001")
        ('HGG', 'LGG', None)
    """
    for part in PurePosixPath(path).parts:
        told = part.lower()
        if numbered := re.search(r"_([hl]g)\d+$", told):
            told = numbered[1]
        if told in GRADES:
            return GRADES[told]
    return None


def patient_of(name: str, grade: str | None) -> str:
    """The patient of a case, by its name.

    Example:
        >>> patient_of("brats_tcia_pat101_0001", "HGG"), patient_of("BraTS2021_00000", None)
        ('brats_tcia_pat101', 'BraTS2021_00000')
        >>> patient_of("0001", "LGG"), patient_of("BraTS-GLI-00003-001", None)
        ('LGG-0001', 'BraTS-GLI-00003')
    """
    visit = VISITS.fullmatch(name)
    patient = next(text for text in visit.groups() if text) if visit else name
    return f"{grade}-{patient}" if grade and NUMBERED.fullmatch(patient) else patient
