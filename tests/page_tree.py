"""Reading a page of ours without a browser: for the tests of reports and evaluations."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "input", "hr", "img"}


class Element:
    """A node of a page."""

    def __init__(self, name: str, attributes: dict[str, str | None], parent: Element | None) -> None:
        self.name, self.attributes, self.parent = name, attributes, parent
        self.children: list[Element | str] = []

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def all(self, name: str, **wanted: str) -> list[Element]:
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if child.name == name and all(child.has(k, v) for k, v in wanted.items()):
                    found.append(child)
                found += child.all(name, **wanted)
        return found

    def has(self, key: str, value: str) -> bool:
        given_ = self.attributes.get(key.rstrip("_").replace("_", "-")) or ""
        return value in given_.split() if key == "class_" else given_ == value


class Tree(HTMLParser):
    """A page as a tree; fails where an element is not closed by its own end."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = self.at = Element("", {}, None)
        self.feed(text)
        self.close()
        assert self.at is self.root, f"<{self.at.name}> is not closed"

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{name}> has an attribute twice"
        element = Element(name, dict(attrs), self.at)
        self.at.children.append(element)
        if name not in VOID:
            self.at = element

    def handle_endtag(self, name: str) -> None:
        assert self.at.name == name, f"</{name}> closes <{self.at.name}>"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, text: str) -> None:
        self.at.children.append(text)


def cells(line: Element) -> list[Element]:
    return [c for c in line.children if isinstance(c, Element)]


def captioned(page: Element, caption: str) -> Element:
    (found,) = (t for t in page.all("table") if t.all("caption")[0].text == caption)
    return found


def columns(table: Element) -> list[str]:
    return [head.text for head in table.all("thead")[0].all("th")]


def body(table: Element) -> list[dict[str, Element]]:
    names = columns(table)
    return [dict(zip(names, cells(line))) for line in table.all("tbody")[0].all("tr")]


def every(element: Element) -> list[Element]:
    found = cells(element)
    return found + [e for c in found for e in every(c)]
