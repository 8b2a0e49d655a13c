"""Errors of the library name keys of params.yaml, which most commands of `kdm` do not read."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

from kdm_core.errors import KDMError

Given = ParamSpec("Given")
Made = TypeVar("Made")

TRUST = {"teacher.factory: ": "", "teacher.trust_code: true": "--trust-code"}
DEVICE = {"compute.device": "--device"}


def in_flags(words: Mapping[str, str]) -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """A decorator of commands, whose errors then name the command's flags.

    Args:
        words: what to say in place of which words, replaced in this order.
    """

    def decorate(command: Callable[Given, Made]) -> Callable[Given, Made]:
        @wraps(command)
        def reworded(*args: Given.args, **kwargs: Given.kwargs) -> Made:
            try:
                return command(*args, **kwargs)
            except KDMError as error:
                text = str(error)
                for key, flag in words.items():
                    text = text.replace(key, flag)
                raise type(error)(text) from error

        return reworded

    return decorate
