"""The built site in a browser: what its pages do, without network, from a folder, on a screen and on paper.

The site is a tiny one of the same configuration, style sheets, scripts and templates. Without a browser the tests that
need one are skipped.
"""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from test_matrix import PLAN
from test_report import CLAIMS, add_run

from reprolib.book import figures, report, site

ROOT = Path(__file__).parents[1]
TOC = """
format: jb-book
root: book/index
chapters: [{file: book/matrix}, {file: book/scoreboard}, {file: book/chapters/01-dlg}]
"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LONG = "value = [" + ", ".join(f"number_{i}" for i in range(40)) + "]"


# --- what becomes of a page, without a browser ------------------------------------------------------------------------


def png(side, seed=0):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def inline(content):
    return f'<img src="data:image/png;base64,{base64.b64encode(content).decode()}" alt="a">'


def test_a_large_picture_becomes_a_file_once_and_loses_nothing(tmp_path):
    small, large = inline(png(4)), inline(png(64))
    page = site.pictures_out(small + large + large, tmp_path / "images", lambda name: f"../images/{name}")
    files = list((tmp_path / "images").iterdir())
    assert page == small + 2 * f'<img src="../images/{files[0].name}" alt="a">' and len(files) == 1
    kept = np.asarray(Image.open(files[0]).convert("RGB"))
    assert files[0].suffix == ".webp" and np.array_equal(
        kept, np.asarray(Image.open(io.BytesIO(png(64))).convert("RGB"))
    )


def test_code_keeps_its_text_and_loses_the_tags_that_have_no_look():
    code = '<span class="n">a</span> <span class="o">=</span> <span class="s2">&quot;b</span>'
    page = f'<p><span class="n">x</span></p><div class="highlight"><pre>{code}<span class="k">if</span></pre></div>'
    assert site.lighter(page) == (
        '<p><span class="n">x</span></p><div class="highlight"><pre>a = <span class="s2">&quot;b</span>'
        '<span class="k">if</span></pre></div>'
    )


def test_parameters_of_a_signature_are_blocks_of_text_and_no_list_without_terms():
    word = '<span class="n"><span class="pre">size</span></span>'
    name = f'<em class="sig-param">{word}</em>'
    page = f'<dt class="sig py" id="a"><dl>\n<dd>{name},</dd>\n</dl></dt><dd><p>b</p></dd>'
    blocks = '<span class="parameters">\n<span class="parameter">size,</span>\n</span>'
    assert site.plain_signatures(page) == f'<dt class="sig py" id="a">{blocks}</dt><dd><p>b</p></dd>'


def test_a_citation_is_an_item_of_its_list():
    page = '<div role="list"><div class="citation" id="a" role="doc-biblioentry"></div></div>'
    assert site.citations_in_lists(page) == '<div role="list"><div class="citation" id="a" role="listitem"></div></div>'


def test_the_buttons_that_fold_the_contents_have_a_name():
    page = '<summary><span class="toctree-toggle" role="presentation"></span></summary><summary>more</summary>'
    assert site.named_buttons(page) == page.replace("<summary><span", '<summary aria-label="The pages below"><span')


def test_a_button_with_words_has_no_other_name_than_these():
    search = '<button class="btn search-button-field a" title="Search"{} data-b="c"><i></i><span>Search</span></button>'
    folded = "<summary{}>\n<p>Show code cell source</p></summary>"
    labels = (' aria-label="Search"', ' aria-label="Toggle hidden content"')
    page = "".join(button.format(label) for button, label in zip((search, folded), labels, strict=True))
    assert site.named_buttons(page) == search.format("") + folded.format("")
    icon = '<button class="btn search-button" aria-label="Search"><i></i></button>'
    assert site.named_buttons(icon) == icon


def test_datatables_of_another_form_is_refused(tmp_path, monkeypatch):
    (tmp_path / "html").mkdir()
    (tmp_path / "html" / "dt_bundle.js").write_text("let a = 1; export { a as Other };")
    monkeypatch.setattr(site.importlib.resources, "files", lambda name: tmp_path)
    with pytest.raises(ValueError, match="itables ships DataTables in another form than this book reads"):
        site.datatables(tmp_path / "out")


# --- a browser --------------------------------------------------------------------------------------------------------


def build(home):
    """A site of two papers, one with a chapter that has run."""
    for name in ("_config.yml", "book/_static", "book/_templates", "book/_ext", "book/matrix.md", "book/scoreboard.md"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile)(ROOT / name, home / name)
    (home / "_toc.yml").write_text(TOC)
    (home / "book" / "references.bib").write_text("")
    (home / "book" / "matrix.yml").write_text(PLAN)
    links = '<a href="scoreboard.html#dlg-own">of the book</a>'
    (home / "book" / "index.md").write_text(f"# First page\n\n{links}\n\n```{{include}} _generated/glance.md\n```\n")
    (home / "book" / "how-to-read.md").write_text(
        "(reasons)=\n# Words\n\n```{glossary}\nadaptive attacker\n  knows the defense\n```\n"
    )
    text = (home / "_toc.yml").read_text().replace("chapters: [", "chapters: [{file: book/how-to-read}, ")
    (home / "_toc.yml").write_text(text)
    (home / "claims").mkdir()
    for key, title in (("dlg", "Deep Leakage"), ("idlg", "iDLG: Improved")):
        claims = CLAIMS.format(paper=key, title=title, bound=0.9, model="LeNet")
        (home / "claims" / f"{key}.yml").write_text(claims)
    add_run(home, "dlg", "gpu", "reference", right=20, side=80)
    frames = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = [figures.slider(frames, [1, 10, 100]), figures.captioned(figures.picture(png(64), "noise"), "Noise.")]
    outputs.append('<table><tr id="claim-label-accuracy"><td>the label</td></tr></table>')
    cells = [nbformat.v4.new_markdown_cell("# A chapter\n\n## The ledger")]
    for source, content in zip((LONG, "x = 1", "x"), outputs, strict=True):
        shown = nbformat.v4.new_output("display_data", {"text/html": content, "text/plain": ""})
        cells.append(nbformat.v4.new_code_cell(source, outputs=[shown], execution_count=1))
    cells[2].metadata["tags"] = ["hide-input"]
    (home / "book" / "chapters").mkdir()
    notebook = nbformat.v4.new_notebook(
        cells=cells, metadata={"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    )
    nbformat.write(notebook, home / "book" / "chapters" / "01-dlg.ipynb")
    code = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "build", str(home)], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "WARNING" not in done.stderr, done.stderr[-3000:]


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    """The folder of the tiny site's pages; of several processes one builds it."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    shared = tmp_path_factory.mktemp("site") if alone else tmp_path_factory.getbasetemp().parent
    home = shared / "tiny-book"
    with FileLock(shared / "tiny-book.lock"):
        if not (home / "built").exists():
            home.mkdir()
            build(home)
            (home / "built").touch()
    return home / "_build" / "html" / "book"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as play:
        try:
            opened = play.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium is at hand: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, book):
    """Opens a page of the site from its folder; whatever goes wrong on the way is found after the test."""
    wrong, contexts = [], []

    def watch(page):
        page.on("request", lambda asked: asked.url.startswith("http") and wrong.append(f"asks for {asked.url}"))
        page.on("requestfailed", lambda asked: wrong.append(f"missing {asked.url}"))
        page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))

    def opened(address, width=1280, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options))
        page = contexts[-1].new_page()
        watch(page)
        name, mark, rest = address.partition("#") if "?" not in address else address.partition("?")
        page.goto((book / name).as_uri() + mark + rest, wait_until="load")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong


PAGES = ("index.html", "matrix.html", "scoreboard.html", "chapters/01-dlg.html")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_from_a_folder_whole_and_no_wider_than_the_screen(visit, name, width):
    page = visit(name, width)
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).length") == 0
    assert page.locator("main h1:visible").count() == 1
    icon = "getComputedStyle(document.querySelector('.fa-solid'), '::before').content"
    assert page.evaluate(icon) not in ("none", "normal", ""), "icons come from a font"


def test_the_slider_shows_one_iteration_at_a_time(visit):
    page = visit("chapters/01-dlg.html")
    shown = page.locator("[data-frames] figure:visible figcaption")
    assert shown.all_inner_texts() == ["iteration 100"]
    page.locator("[data-control] input").focus()
    page.keyboard.press("ArrowLeft")
    assert shown.all_inner_texts() == ["iteration 10"]


def test_filters_narrow_the_scoreboard_and_stand_in_its_address(visit):
    page = visit("scoreboard.html")
    rows, told = page.locator("#board tbody tr"), page.locator("#filters output")
    assert rows.count() == 8 and told.inner_text() == "8 of 8 claims"
    assert rows.first.get_attribute("id") == "dlg-label-accuracy", "failures of papers come first"
    page.select_option("[name=verdict]", "not reproduced")
    assert [row.get_attribute("id") for row in rows.all()] == ["dlg-label-accuracy", "dlg-own"]
    assert page.url.endswith("?verdict=not+reproduced")
    page.locator("#filters button").click()
    page.select_option("[name=chapter]", "idlg")
    page.select_option("[name=whose]", "book")
    assert [row.get_attribute("id") for row in rows.all()] == ["idlg-own"]
    page.locator("#filters button").click()
    page.fill("[name=words]", "strong noise")
    assert told.inner_text() == "2 of 8 claims"
    assert visit("scoreboard.html?reason=out+of+scope").locator("#board tbody tr").count() == 1


def test_a_deep_link_leads_to_a_row_even_past_a_filter(visit):
    page = visit("index.html")
    page.get_by_role("link", name="of the book").click()
    assert page.locator("#dlg-own").evaluate(
        "row => { const at = row.getBoundingClientRect(); return at.top >= 0 && at.bottom <= 901 }"
    )
    page = visit("scoreboard.html?whose=paper#dlg-own")
    assert page.locator("#dlg-own").is_visible() and page.locator("#filters output").inner_text() == "8 of 8 claims"
    page.locator("#dlg-label-accuracy a").first.click()
    page.wait_for_url("**/01-dlg.html#claim-label-accuracy")
    assert page.locator("tr#claim-label-accuracy").is_visible()


def test_the_scoreboard_is_whole_without_a_script(visit):
    page = visit("scoreboard.html", java_script_enabled=False)
    assert page.locator("#board tbody tr").count() == 8 and not page.locator("#filters").is_visible()


def test_the_theme_can_be_changed(visit):
    page = visit("index.html", color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert page.evaluate(ground) != before
    page = visit("index.html", color_scheme="light")
    seen = set()
    for _ in range(3):
        page.locator(".theme-switch-button:visible").first.click()
        seen.add(page.evaluate("document.documentElement.dataset.theme"))
    assert seen == {"light", "dark"}


def test_tabs_show_one_attacker_at_a_time(visit):
    page = visit("matrix.html")
    tables = page.locator("table.matrix:visible")
    assert tables.count() == 1 and "knows" in tables.first.locator("xpath=..").get_attribute("aria-label")
    page.locator("label.sd-tab-label", has_text="ignores").click()
    assert tables.count() == 1 and "ignores" in tables.first.locator("xpath=..").get_attribute("aria-label")


def test_on_paper_code_wraps_and_what_is_folded_or_in_a_tab_is_there(visit):
    page = visit("chapters/01-dlg.html")
    page.emulate_media(media="print")
    wide = "[...document.querySelectorAll('pre')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert page.evaluate(wide) == 0
    assert page.locator("details pre").first.evaluate("e => e.getBoundingClientRect().height") > 0
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and len(pdf) > 10_000
    page = visit("matrix.html")
    page.emulate_media(media="print")
    assert page.locator("table.matrix:visible").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(visit, book, scheme, tmp_path):
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    report.write_report(book.parents[2], tmp_path / "report.html")
    for name in (*PAGES, str(tmp_path / "report.html")):
        page = visit(name, color_scheme=scheme)
        page.wait_for_timeout(300)
        page.evaluate(script)
        found = page.evaluate("axe.run(document, {preload: false})")["violations"]
        assert not found, f"{name}: " + json.dumps([[one["id"], one["nodes"][0]["html"][:300]] for one in found])


def test_the_report_of_the_book_answers_on_two_pages_without_a_script(visit, tmp_path):
    report.write_report(ROOT, tmp_path / "report.html")
    page = visit(str(tmp_path / "report.html"), java_script_enabled=False)
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(prefer_css_page_size=True))) == 2
    assert page.locator("main").count() == 1 and page.locator("details.chapter[open]").count() == 0
    assert (tmp_path / "report.html").stat().st_size <= report.REPORT_LIMIT
