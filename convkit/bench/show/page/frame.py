"""A page around its contents: it loads nothing and follows the system's theme. `convkit evaluate` has it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import charts
from .markup import Markup, tag

#: The style that all pages share.
STYLE = Path(__file__).parent / "page.css"


def document(title: str, style: str, script: str, *body: Any) -> str:
    """A whole page, as text.

    Parameters
    ----------
    title : str
    style, script : str
        CSS and JavaScript of ours: nothing in them is escaped. A content security policy allows these two,
        images in the page, and nothing else. No script where it is empty.
    *body
        As the children of `tag`.
    """
    scripts = f"script-src '{_hash(script)}'; " if script else ""
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; {scripts}img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(style)),
    )
    inner = tag("body", *body, tag("script", Markup(script)) if script else None)
    return f"<!doctype html>\n{tag('html', head, inner, lang='en')}\n"


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def themes(light: Mapping[str, str] = charts.LIGHT, dark: Mapping[str, str] = charts.DARK) -> str:
    """Colours as CSS variables: the system's theme unless one was chosen; paper is light."""

    def block(colours: Mapping[str, str], scheme: str) -> str:
        values = "".join(f"--{name}:{value};" for name, value in colours.items())
        return f"{{color-scheme:{scheme};{values}}}"

    numbers = range(len(charts.SHAPES))
    return "\n".join((
        f":root{block(light, 'light')}",
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){block(dark, 'dark')}}}",
        f":root[data-theme=dark]{block(dark, 'dark')}",
        f"@media print{{:root:root:root{block(light, 'light')}}}",
        "".join(f".s{i}{{--c:var(--s{i})}}" for i in numbers), "",
    ))  # fmt: skip
