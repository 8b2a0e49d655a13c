"""Errors that a user can mend. Their message names the file, field or parameter and the way out."""

import re
import warnings

ADDRESS = re.compile(r" at 0x(?:[0-9a-fA-F]+(?=>)|[0-9a-fA-F]{8,}(?=[,;]))")


class KDMError(Exception):
    """Base of all errors that are shown to the user as one message, without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


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
    warnings.warn(printable(message), Adapted, stacklevel=3)


def printable(text: str) -> str:
    """A message that any terminal and any file takes.

    What cannot be printed is escaped, since names of files hold any bytes (`a\\xff.png`) and
    commands to a terminal; addresses of objects, which tell nobody anything, are left out.
    """
    return "".join(letter if letter.isprintable() or letter == "\n" else escaped(letter)
                   for letter in ADDRESS.sub("", text))


def shown(name: object) -> str:
    """The name of a file as it stands in a message: on one line."""
    return printable(str(name)).replace("\n", "\\n")


def escaped(letter: str) -> str:
    """A letter in ASCII; bytes of a name that is no UTF-8, which Python holds as surrogates, as
    bytes."""
    if 0xDC80 <= ord(letter) <= 0xDCFF:
        return f"\\x{ord(letter) & 0xFF:02x}"
    return letter.encode("unicode_escape").decode()


def at_most(parameter: str, asked: int, there: int, what: str) -> int:
    """As many as a parameter asks for or, as `adapted` then says, as there are.

    Args:
        parameter: its name in params.yaml, or the option.
        asked, there: numbers of them.
        what: there are; a plural.
    """
    if asked <= there:
        return asked
    adapted(f"{parameter}: {asked:,} are asked for, and there are {there:,} {what}: these are used")
    return there
