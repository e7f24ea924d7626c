"""A build fails if a page of it would ask another machine for anything; links in text may."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

# What a browser fetches by itself, by tag; a link element only in these relations.
FETCHED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "iframe": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "video": ("src", "poster"),
    "audio": ("src",),
    "track": ("src",),
    "input": ("src",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
}
RELATIONS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "manifest"}
ELSEWHERE = re.compile(r"(?:^|[\s,])(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
IN_STYLE = re.compile(
    r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)|@import\s+['\"]((?:https?:)?//[^'\"]+)"
)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        names = FETCHED.get(tag, ())
        if tag == "link" and RELATIONS & set(values.get("rel", "").lower().split()):
            names = ("href",)
        for name in names:
            if ELSEWHERE.search(values.get(name, "")):
                self.found.append(values[name])
        self.found += in_style(values.get("style", ""))


def in_style(text: str) -> list[str]:
    """Return the addresses on other machines that a style sheet fetches."""
    return [first or second for first, second in IN_STYLE.findall(text)]


def in_page(text: str) -> list[str]:
    """Return the addresses on other machines that a page makes a browser fetch."""
    page = _Page()
    page.feed(text)
    inline = re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL)
    return page.found + [address for style in inline for address in in_style(style)]


def requests(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file of a site that fetches from another machine, with the address."""
    for pattern, find in (("*.html", in_page), ("*.css", in_style)):
        for file in sorted(folder.rglob(pattern)):
            for address in find(file.read_text(encoding="utf-8")):
                yield file, address


def _check(app: Any, failure: Exception | None) -> None:
    from sphinx.errors import ExtensionError  # the tests of this module need no sphinx

    if failure is None and app.builder.format == "html":
        found = [f"{file.name}: {address}" for file, address in requests(Path(app.outdir))]
        if found:
            raise ExtensionError(f"pages need to be whole, but fetch {'; '.join(found)}")


def setup(app: Any) -> dict[str, bool]:
    """Look at all pages once they are written."""
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
