"""Errors that a user can mend. Their message names the file, field or parameter and the way out."""

import warnings


class KDMError(Exception):
    """Base of all errors that are shown to the user as one message, without a traceback."""


class DataError(KDMError):
    """A data file is missing, damaged or of another layout than announced."""


class MismatchError(KDMError):
    """Two things that must belong together do not (a store and its teacher, say)."""


class DivergedError(KDMError):
    """Training or sampling produced values that are not finite."""


class Adapted(UserWarning):
    """Something was done otherwise than asked, or only a part of the input was used."""


def adapted(message: str) -> None:
    """Say that something was adapted: a line in the log and in the report's conditions.

    Stages and commands show each such line once; in a program of one's own it is a warning.
    """
    warnings.warn(message, Adapted, stacklevel=3)
