"""HTML and SVG from Python calls, in which every text is escaped unless it is markup already.

A result file comes from anywhere, and a library or a kernel may be called `</script><img onerror=...>`:
what is not made by `tag` cannot become an element.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

#: Controls that HTML knows no way to write, and halves of surrogate pairs, which no UTF-8 file can hold.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_VOID = frozenset({"meta", "link", "br", "input", "hr", "img"})


class Markup(str):
    """Text that is HTML already."""


def clean(value: Any) -> str:
    """As text that any file and any browser can hold."""
    return _UNWRITABLE.sub("\ufffd", str(value))


def escaped(value: Any) -> Markup:
    """Text as HTML shows it; markup stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(clean(value), quote=True))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element.

    Parameters
    ----------
    name : str
    *children
        Texts, markup, or lists of them; None is left out.
    **attributes
        `class_` and `for_` lose their last letter, other underscores become hyphens. None and False are left
        out, True stands without a value.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-") if key != "viewBox" else key
        words.append(key if value is True else f'{key}="{escaped(value)}"')
    start = f"<{' '.join(words)}>"
    return Markup(start if name in _VOID else f"{start}{joined(*children)}</{name}>")


def joined(*children: Any) -> Markup:
    """Children one after the other; lists are flattened, None is left out."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, (list, tuple)):
            parts.append(joined(*child))
        elif child is not None:
            parts.append(escaped(child))
    return Markup("".join(parts))


def data(value: Any) -> Markup:
    """A value as JSON that can stand inside a `<script>`: no "<" in it could end one."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
