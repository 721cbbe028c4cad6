"""Builds HTML and SVG as trees, so that every text and attribute is escaped by construction."""

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from automl.report.units import UNKNOWN

Child = Element | str | None


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Element:
    """An element. Texts are escaped when it is written; attributes that are None are left out.

    Attribute names: a trailing underscore is dropped ("class_"), others become dashes ("text_anchor").
    """
    element = Element(name)
    for key, value in attributes.items():
        if value is not None:
            element.set(key.rstrip("_").replace("_", "-"), number(value) if isinstance(value, int | float) else value)
    for child in children:
        append(element, child)
    return element


def append(element: Element, child: Child) -> None:
    """Add a child or a piece of text at the end of an element."""
    if child is None:
        return
    if not isinstance(child, str):
        element.append(child)
        return
    text = printable(child)
    if len(element):
        element[-1].tail = (element[-1].tail or "") + text
    else:
        element.text = (element.text or "") + text


def cell(value: str | None, note: str = "") -> Element:
    """A cell of a table, a dash where nothing is known; the note stands below it in small print."""
    return tag("td", value or UNKNOWN, tag("small", note) if note and note != UNKNOWN else None)


def section(title: str, content: Element | None, note: str | None) -> Element | None:
    """A part of the page under a heading; None where it has no content."""
    if content is None:
        return None
    return tag("section", tag("h2", title), content, tag("p", note, class_="note") if note else None)


def number(value: float) -> str:
    """A coordinate, to a tenth of a pixel's tenth."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def printable(text: str) -> str:
    """The text without the control characters that neither HTML nor XML may hold."""
    return "".join(
        character
        if character in "\n\t" or (ord(character) >= 32 and not 0xD800 <= ord(character) < 0xE000)
        else "\ufffd"
        for character in text
    )


def to_html(element: Element) -> str:
    """The tree as HTML text."""
    return ElementTree.tostring(element, encoding="unicode", method="html")


def to_xml(element: Element) -> str:
    """The tree as XML text, for a picture of its own."""
    return ElementTree.tostring(element, encoding="unicode")
