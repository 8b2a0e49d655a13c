"""Fills the templates; the pages need nothing but themselves and run nothing but their script."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from kdm_core.figures.style import STUDENTS
from pipeline.reporting.text import number

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **content: Any) -> str:
    """A page, with everything that is not the templates' own escaped.

    The policy in its head names the hashes of its one style and its one script, so that a browser
    neither runs nor loads anything else, whatever the content says.
    """
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = code
    environment.filters["breaking"] = breaking
    environment.filters["figure"] = number
    style = Markup(environment.get_template("page.css").render(colours=STUDENTS))
    script = Markup(environment.get_template("page.js").render())
    policy = (f"default-src 'none'; img-src data:; style-src {source(style)}; "
              f"script-src {source(script)}; base-uri 'none'; form-action 'none'")
    return environment.get_template(template).render(style=style, script=script, policy=policy,
                                                     **content)


def code(text: str) -> Markup:
    """Text in which `commands` are set as such."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def breaking(key: str) -> Markup:
    """A key that may be written on several lines."""
    return escape(key).replace("_", Markup("_<wbr>"))


def source(text: str) -> str:
    """What a content security policy calls an inline text by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
