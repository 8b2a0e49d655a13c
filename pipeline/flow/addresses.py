"""Addresses as they may be shown."""

import re

# A password may hold quotes and @; what follows ? or # may be a key.
URL = re.compile(r"([A-Za-z][\w+.-]*://)(?:[^\s/]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?")


def without_password(text: str) -> str:
    """A text in which no URL has a name, a password, a query or a fragment any more."""
    return URL.sub(r"\1\2", text)
