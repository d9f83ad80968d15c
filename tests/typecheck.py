"""How annotations are checked while testing (`conftest.py` installs it)."""

from typing import Any, BinaryIO, Self

from beartype import BeartypeConf, FrozenDict, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception

STRICT = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True,  # an int is a float, as for mypy
        hint_overrides=FrozenDict(
            {
                Self: object,  # beartype sees one method at a time
                BinaryIO: object,  # a gzip file is one for everybody else
            }
        ),
    )
)


def check(thing: Any) -> Any:
    """Check a function's arguments and result against their annotations at each call."""
    try:
        return STRICT(thing)
    except BeartypeDecorHintPep3119Exception:  # a protocol without @runtime_checkable: for mypy
        return thing
