"""How annotations are checked while testing (`conftest.py` installs it)."""

from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception

#: An int is a float, as for mypy. beartype sees one method at a time and cannot know `Self`.
STRICT = beartype(
    conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({Self: object}))
)


def check(thing: Any) -> Any:
    """Check a function's arguments and result against their annotations at each call."""
    try:
        return STRICT(thing)
    except BeartypeDecorHintPep3119Exception:  # a protocol without @runtime_checkable: for mypy
        return thing
