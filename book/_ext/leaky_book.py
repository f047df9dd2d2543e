"""What this book adds to Jupyter Book: pages generated from the results, and launch buttons for the clean notebooks."""

from pathlib import Path

from reprolib import report


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


def setup(app):
    # Before Sphinx looks for documents: a chapter that has not been run needs its placeholder to be found.
    # A page that is no notebook would end the build: its placeholder stands in.
    damaged = report.write_pages(Path(app.srcdir))
    app.connect("config-inited", lambda app, config: config.exclude_patterns.extend(damaged))
    app.connect("config-inited", hide_buttons_without_repository)
    app.connect("html-page-context", open_clean_notebooks, priority=600)  # after the theme's own, at 501
    return {"parallel_read_safe": True, "parallel_write_safe": True}
