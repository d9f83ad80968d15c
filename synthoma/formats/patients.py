"""Whose image it is, where a set names no patients.

A block of ids, a pattern on file names, or one patient an image; `dataset.json` says which, and
every interval resamples these.
"""

import re
from collections.abc import Callable

from synthoma.errors import DataError, SettingsError
from synthoma.formats.source import Found, Reading, number_in

#: Gives the patient of an image.
PatientRule = Callable[[Found], str]


def patient_rule(
    reading: Reading, *, block: int | None, pattern: str | None
) -> tuple[PatientRule, str]:
    """The rule for a source, and in words what it is.

    Args:
        reading: The source.
        block: Images of so many consecutive ids are one patient.
        pattern: A regular expression that finds the patient in the file's relative path: its group
            ``patient``, else its first group, else the whole match.

    Raises:
        SettingsError: Both are given, one is not allowed, or the source names patients itself.
    """
    if block is not None and pattern is not None:
        raise SettingsError("a patient block and a patient pattern are given; one is allowed")
    given = block is not None or pattern is not None
    if given and reading.patients_from is not None and not reading.patients_guessed:
        raise SettingsError(
            f"the source names patients itself ({reading.patients_from}): give no patient block "
            "or pattern"
        )
    if block is not None:
        if block < 1:
            raise SettingsError(f"patient block {block}; allowed: 1 or more")
        return _of_block(block), f"blocks of {block} ids"
    if pattern is not None:
        return _of_pattern(pattern), f"pattern {pattern!r}"
    if reading.patients_from is not None:
        return _named, reading.patients_from
    return _one_an_image, "one an image"


def _of_block(block: int) -> PatientRule:
    def rule(found: Found) -> str:
        number = found.number if found.number is not None else number_in(found.name)
        if number is None:
            raise DataError(
                f"{found.name}: a patient block needs one number in the file's name, or an id "
                "column (--map id=COLUMN)"
            )
        try:
            return f"block-{int(number) // block:05}"
        except ValueError:
            raise DataError(f"{found.name}: id {number!r}; allowed: a whole number") from None

    return rule


def _of_pattern(pattern: str) -> PatientRule:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"patient pattern {pattern!r}: {error}") from None

    def rule(found: Found) -> str:
        match = expression.search(found.name)
        if match is None:
            raise DataError(f"{found.name}: the patient pattern {pattern!r} does not match")
        named = match.groupdict().get("patient")
        patient = named or (match.group(1) if expression.groups else match.group())
        if not patient:
            raise DataError(f"{found.name}: the patient pattern {pattern!r} gives no patient")
        return patient

    return rule


def _named(found: Found) -> str:
    if not found.patient:
        raise DataError(f"{found.name}: no patient, while the source names patients")
    return found.patient


def _one_an_image(found: Found) -> str:
    return found.name.split("#")[0]
