"""What this book adds to Jupyter Book: pages generated from the results, light pages, buttons for clean notebooks."""

import re
from pathlib import Path

from reprolib.book import report, site


def hide_buttons_without_repository(app, config):
    """Drop the launch buttons while `repository: url:` in _config.yml is empty: the theme would fail on it."""
    if not config.html_theme_options.get("repository_url"):
        config.html_theme_options["launch_buttons"] = {}


def open_clean_notebooks(app, pagename, templatename, context, doctree):
    """Point a chapter's launch buttons to notebooks/: the executed copy on the page is not in the repository."""
    for group in context.get("header_buttons", []):
        if group.get("label") == "launch-buttons":
            for button in group["buttons"]:
                button["url"] = button["url"].replace("book/chapters/", "notebooks/")


def plain_words(app, what, name, thing, options, lines):
    """Let reStructuredText read a docstring as the prose that it is, with code between `single` backticks.

    Nothing else in it is markup: [T, *param] has a star, |x| bars and names end in _. Examples, which run to the next
    empty line, and what is indented below :: stay as they are.
    """
    kept = r"(^ *>>>[^\n]*(?:\n *\S[^\n]*)*|(?<=::)\n\n(?: [^\n]*\n|\n)+)"
    pieces = re.split(kept, "\n".join(lines), flags=re.MULTILINE)
    for place in range(0, len(pieces), 2):
        parts = pieces[place].split("`")
        parts[::2] = [re.sub(r"([*|]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
        pieces[place] = "``".join(parts)
    lines[:] = "".join(pieces).split("\n")


def lighten(app, pagename, templatename, context, doctree):
    """Take the pictures out of a page, and tags without a look; give the scoreboard its filters."""
    if context.get("body") and app.builder.format == "html":
        images, pathto = Path(app.outdir) / app.builder.imagedir, context["pathto"]
        out = site.pictures_out(context["body"], images, lambda name: pathto(f"{app.builder.imagedir}/{name}", 1))
        context["body"] = site.citations_in_lists(site.plain_signatures(site.lighter(out)))
    if pagename == "book/scoreboard":
        app.add_css_file("datatables.css", priority=100)  # before the book's own, which has the last word
        app.add_js_file("datatables.js")
        app.add_js_file("board.js")


def name_buttons(app, exception):
    """Name the buttons, most of which the theme writes outside of a page's body."""
    for path in Path(app.outdir).rglob("*.html") if exception is None and app.builder.format == "html" else ():
        page = path.read_text(encoding="utf-8")
        if (named := site.named_buttons(page)) != page:
            path.write_text(named, encoding="utf-8")


def setup(app):
    # Before Sphinx looks for documents: a chapter that has not been run needs its placeholder to be found.
    # A page that is no notebook would end the build: its placeholder stands in.
    root = Path(app.srcdir)
    damaged = report.write_pages(root)
    shipped = root / "book" / "_generated" / "static"
    site.datatables(shipped)
    app.connect("config-inited", lambda app, config: config.exclude_patterns.extend(damaged))
    app.connect("config-inited", lambda app, config: config.html_static_path.append(str(shipped)))
    app.connect("build-finished", name_buttons)
    app.connect("config-inited", hide_buttons_without_repository)
    app.connect("autodoc-process-docstring", plain_words)
    app.connect("html-page-context", open_clean_notebooks, priority=600)  # after the theme's own, at 501
    app.connect("html-page-context", lighten, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
