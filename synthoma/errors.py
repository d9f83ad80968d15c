"""Errors that a person reads: what was given, what is allowed, what to do.

The command line prints them without a traceback and exits with `exit_code`.
"""


class SynthomaError(Exception):
    """Base of every error that synthoma raises on purpose."""

    exit_code = 1


class SettingsError(SynthomaError):
    """A setting, argument or name that is not allowed."""

    exit_code = 2


class DataError(SynthomaError):
    """A file, folder or case that is not what it should be."""

    exit_code = 3


class LeakError(DataError):
    """A patient would be on both sides of a split, directly or through a generator."""


class ResourceError(SynthomaError):
    """Not enough disk, memory, time or hardware."""

    exit_code = 4


class DivergedError(SynthomaError):
    """A loss stopped being finite."""
