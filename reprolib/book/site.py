"""What Sphinx' pages become before they are written: pictures in files, fewer nodes, and DataTables beside them.

A chapter's outputs hold their pictures as base64, so that the notebook is whole by itself. A site has files: each
picture is one, once, packed without loss.
"""

from __future__ import annotations

import importlib.resources
import io
import re
from base64 import b64decode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from PIL import Image

from reprolib.atomic import write_atomic

INLINE = 6_000
"""Bytes up to which a picture stays in the page: a file of its own would cost more than it saves."""

PLAIN = ("n", "nn", "o", "p", "si", "w")
"""Classes of code tokens shown as plain text: names, operators, punctuation, braces in strings, white space."""

_PICTURE = re.compile(r'src="data:image/png;base64,([A-Za-z0-9+/=\s]+)"')
_TOKEN = re.compile(rf'<span class="(?:{"|".join(PLAIN)})">([^<]*)</span>')
_HIGHLIGHTED = re.compile(r'<div class="highlight">.*?</div>', re.DOTALL)
_WORD = re.compile(r'<span class="pre">([^<]*)</span>')
_PART = re.compile(r'<span class="(?:[a-z][a-z0-9]?|sig-paren|default_value)">([^<]*)</span>')
_SIGNATURE = re.compile(r'<dt class="sig .*?</dt>', re.DOTALL)
_LABELLED = re.compile(
    r'(<summary|<button class="btn search-button-field [^>]*?) aria-label="(?:Toggle hidden content|Search)"'
)
_PARAMETER = re.compile(r'(<span class="parameter">)<em class="sig-param">(.*?)</em>')
_EXPORTS = re.compile(r"\bexport\s*\{([^}]*)\}\s*;?")


def pictures_out(page: str, folder: Path, address: Callable[[str], str]) -> str:
    """The page with its base64 pictures as files in `folder`, each once. address: name -> what the page calls it."""

    def moved(match: re.Match) -> str:
        content = b64decode(match[1])
        if len(content) <= INLINE:
            return match[0]
        stem, (packed, kind) = sha256(content).hexdigest()[:20], _packed(content)
        if not (path := folder / f"{stem}.{kind}").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, packed)
        return f'src="{address(path.name)}"'

    return _PICTURE.sub(moved, page)


def _packed(content: bytes) -> tuple[bytes, str]:
    """A PNG without loss as WebP where that is smaller, and what it is."""
    opened, buffer = Image.open(io.BytesIO(content)), io.BytesIO()
    opaque = opened.mode == "RGBA" and opened.getchannel("A").getextrema()[0] == 255
    image = opened.convert("RGB") if opaque else opened
    image.save(buffer, format="webp", lossless=True, method=1, quality=10)
    return (buffer.getvalue(), "webp") if len(buffer.getvalue()) < len(content) else (content, "png")


def lighter(page: str) -> str:
    """The page without the tags around code tokens that look like plain text, half of a chapter's nodes."""
    return _HIGHLIGHTED.sub(lambda block: _TOKEN.sub(r"\1", block[0]), page)


def plain_signatures(page: str) -> str:
    """The page with the parameters of the library's signatures as blocks of text, a quarter of their nodes.

    Sphinx writes them as a list of definitions without terms, which a screen reader cannot tell, and every word of
    them in two tags.
    """
    page = _WORD.sub(r"\1", page)

    def plain(signature: re.Match) -> str:
        text = _PART.sub(r"\1", signature[0])
        for tag, name in (("dl", "parameters"), ("dd", "parameter")):
            text = text.replace(f"<{tag}>", f'<span class="{name}">').replace(f"</{tag}>", "</span>")
        return _PARAMETER.sub(r"\1\2", text)

    return _SIGNATURE.sub(plain, page)


def citations_in_lists(page: str) -> str:
    """The page with its citations as items of their list: Sphinx names a role that ARIA has given up for it."""
    return page.replace('role="doc-biblioentry"', 'role="listitem"')


def named_buttons(page: str) -> str:
    """The page with a name for each button that is what it shows, as who speaks to the browser would say it.

    The theme gives those that fold the table of contents an icon alone; the search and the folded cells get a label
    beside their own words.
    """
    bare = '<summary><span class="toctree-toggle"'
    page = page.replace(bare, bare.replace("<summary>", '<summary aria-label="The pages below">'))
    return _LABELLED.sub(r"\1", page)


def datatables(folder: Path) -> None:
    """Write datatables.js and datatables.css out of the package itables, as a script that sets `window.DataTable`.

    The package holds a JavaScript module, and a browser loads no module from a folder (`file://`).
    Raises ValueError where the module does not end as expected.
    """
    shipped = importlib.resources.files("itables") / "html"
    module = (shipped / "dt_bundle.js").read_text(encoding="utf-8")
    exports = _EXPORTS.search(module)
    pairs = [entry.rpartition(" as ") for entry in exports[1].split(",")] if exports else []
    named = {name: own for own, _, name in pairs}
    if exports is None or "default" not in named or "import.meta" in module or len(_EXPORTS.findall(module)) != 1:
        raise ValueError("the package itables ships DataTables in another form than this book reads: use itables 2.9")
    before, after, name = module[: exports.start()], module[exports.end() :], named["default"].strip()
    script = f"(()=>{{{before};globalThis.DataTable={name};\n{after}\n}})();"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "datatables.js", script.encode())
    write_atomic(folder / "datatables.css", (shipped / "dt_bundle.css").read_bytes())
