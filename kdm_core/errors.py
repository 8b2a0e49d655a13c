"""Errors that a user can mend. Their message names the file, field or parameter and the way out."""


class KDMError(Exception):
    """Base of all errors that are shown to the user as one message, without a traceback."""


class DataError(KDMError):
    """A data file is missing, damaged or of another layout than announced."""


class MismatchError(KDMError):
    """Two things that must belong together do not (a store and its teacher, say)."""


class DivergedError(KDMError):
    """Training or sampling produced values that are not finite."""
