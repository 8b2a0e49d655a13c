"""Errors that a user can mend. Their message names the file or the field, and the way out.

A field is one of the configuration or the function that complains. Where that stands, in which file
or behind which option, its caller knows, and says so with `placed` or `naming`.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

ADDRESS = re.compile(r" at 0x(?:[0-9a-fA-F]+(?=>)|[0-9a-fA-F]{8,}(?=[,;]))")

_name: ContextVar[Callable[[str], str]] = ContextVar("name", default=lambda field: field)


@contextmanager
def naming(name: Callable[[str], str]) -> Iterator[None]:
    """Have errors and `adapted` call fields as `name` does, and then as those around this do."""
    outer = _name.get()
    token = _name.set(lambda field: outer(name(field)))
    try:
        yield
    finally:
        _name.reset(token)


@contextmanager
def placed(section: str) -> Iterator[None]:
    """Have errors and `adapted` call a field `section.field`, and the whole `section`."""
    with naming(lambda field: f"{section}.{field}" if field else section):
        yield


def called(field: str) -> str:
    """What a field is called here."""
    return _name.get()(field)


def about(field: str | None, message: str) -> str:
    """A message that begins with the name of a field; "" is what complains as a whole."""
    name = "" if field is None else called(field)
    return printable(f"{name}: {message}" if name else message)


class KDMError(Exception):
    """Base of all errors that are shown to the user as one message, without a traceback."""

    def __init__(self, message: str, field: str | None = None) -> None:
        """`field`: what the message is about, which then begins with its name."""
        super().__init__(about(field, message))


class DataError(KDMError):
    """A data file is missing, damaged or of another layout than announced."""


class MismatchError(KDMError):
    """Two things that must belong together do not (a store and its teacher, say)."""


class DivergedError(KDMError):
    """Training or sampling produced values that are not finite."""


class Adapted(UserWarning):
    """Something was done otherwise than asked, or only a part of the input was used."""


def adapted(message: str, field: str | None = None) -> None:
    """Warn that something was adapted; `field` as of a `KDMError`."""
    warnings.warn(about(field, message), Adapted, stacklevel=3)


def printable(text: str) -> str:
    """A message that any terminal and any file takes.

    What cannot be printed is escaped, since names of files hold any bytes (`a\\xff.png`) and
    orders to a terminal; addresses of objects, which tell nobody anything, are left out.
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


def at_most(field: str, asked: int, there: int, what: str) -> int:
    """As many as a field asks for or, as `adapted` then says, as there are.

    Args:
        asked, there: numbers of them.
        what: there are; a plural.
    """
    if asked <= there:
        return asked
    adapted(f"{asked:,} are asked for, and there are {there:,} {what}: these are used", field)
    return there
