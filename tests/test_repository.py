"""The files around the library agree with each other, and none holds what only this machine knows."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import types
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from reprolib.book import chapter, criteria, notebooks

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_environment_yml_and_pyproject_hold_the_same_dependencies():
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert [line for line in pip["pip"] if not line.startswith("-")] == REQUIREMENTS


# What no import shows: the files of DataTables, the shipped photographs, the progress bar of a notebook, Sphinx's
# extension.
UNSEEN = {"itables", "scikit-image", "ipywidgets", "sphinx-mathjax-offline"}


def test_the_dependencies_are_what_the_library_imports():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "reprolib").rglob("*.py")]
    steps = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for step in steps if isinstance(step, ast.Import) for alias in step.names}
    names |= {step.module for step in steps if isinstance(step, ast.ImportFrom)}
    tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"reprolib"}
    homes = metadata.packages_distributions()
    imported = {canonicalize_name(homes[name][0]) for name in tops}
    assert imported == {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]} - UNSEEN


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_constraints_hold_names_and_versions_only(name):
    for line in (ROOT / name).read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==\d[0-9a-z.]*", line), line


def test_every_dependency_is_pinned_within_its_range(pins):
    for requirement in map(Requirement, REQUIREMENTS):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_the_oldest_versions_are_the_lower_bounds():
    bounds = [
        f"{r.name}=={s.version}" for r in map(Requirement, REQUIREMENTS) for s in r.specifier if s.operator == ">="
    ]
    assert (ROOT / "constraints-oldest.txt").read_text().splitlines() == sorted(bounds)


def test_torch_and_torchvision_are_of_one_release(pins):
    torch, torchvision = (int(pins[name].split(".")[1]) for name in ("torch", "torchvision"))
    assert torchvision == torch + 15, "torch 2.n goes with torchvision 0.(n + 15)"


def test_pre_commit_runs_the_pinned_tools(pins):
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    versions = {repo["repo"].rpartition("/")[2]: repo["rev"].removeprefix("v") for repo in repos}
    assert versions == {"ruff-pre-commit": pins["ruff"], "nbstripout": pins["nbstripout"]}


def test_no_tracked_file_names_a_folder_of_this_machine_or_a_package_index():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    # Brackets keep this file from finding itself.
    machine = re.compile(r"/[r]oot/|/[w]ork/|/[o]pt/|/home/\w|/[U]sers/\w|[i]ndex-url|[f]ind-links|[p]ythonhosted")
    found = []
    for name in listed.stdout.strip("\0").split("\0"):
        path = ROOT / name
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # an image, or a file deleted and not yet committed
            continue
        found += [f"{name}: {hit[0]}" for hit in machine.finditer(text)]
    assert not found


@pytest.mark.parametrize("name", ["plain", "two words", 'it\'s "quoted"', "`a` $(b) $HOME ${c} # $$", "-x;&|"])
@pytest.mark.parametrize("by", ["an argument", "the environment", "the variable of reprolib"])
def test_make_hands_the_data_root_on_as_it_is(tmp_path, name, by):
    copied = ("Makefile", "pyproject.toml", "constraints.txt")
    for file in copied:
        shutil.copyfile(ROOT / file, tmp_path / file)
    script = tmp_path / ".venv" / "bin" / "reprolib"
    script.parent.mkdir(parents=True)
    script.write_text('#!/bin/sh\necho "$# $1"\necho "$REPROLIB_DATA"\n')
    script.chmod(0o755)
    (tmp_path / ".venv" / ".done").touch()
    root = f"/no where/{name}"
    own = {"the environment": {"DATA": root}, "the variable of reprolib": {"REPROLIB_DATA": root}}.get(by, {})
    command = ["make", "--silent", "book", *([f"DATA={root}"] if by == "an argument" else [])]
    # these tests may run under a make themselves, which hands its own options down
    plain = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    done = subprocess.run(command, cwd=tmp_path, env=plain | own, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["7 book", root], done.stderr


def test_the_runner_knows_the_profiles_of_the_claims():
    assert notebooks.PROFILES == chapter.PROFILES == ("reference", *criteria.PROFILES)


def _heading(path):
    return nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].removeprefix("# ")


PAPERS = "The papers"
"""The part of the table of contents that lists the chapters, numbered and under their headings."""


def test_every_chapter_is_in_the_table_of_contents_and_in_the_readme():
    stems = [path.stem for path in NOTEBOOKS]
    papers = next(
        part for part in yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"] if part["caption"] == PAPERS
    )
    headings = {path.stem: _heading(path) for path in NOTEBOOKS}
    asked = [{"file": f"book/chapters/{s}", "title": f"{int(s[:2])}. {headings[s]}"} for s in stems]
    lines = "\n".join(f'      - {{file: {c["file"]}, title: "{c["title"]}"}}' for c in asked)
    assert papers["chapters"] == asked, f"_toc.yml, below `caption: {PAPERS}`, lists notebooks/ in its order:\n{lines}"
    told = re.findall(r"\(notebooks/(\S+)\.ipynb\)", (ROOT / "README.md").read_text())
    rows = "\n".join(f"| [{s[:2]}](notebooks/{s}.ipynb) | paper, where, year |" for s in stems if s not in told)
    assert told == stems, f"README.md, below `## Chapters`, lists notebooks/ in its order; add\n{rows or 'none'}"


ENTRY = """@incollection{{leaky:{name},
  title     = {{{title}}},
  author    = {{{{The Leaky Gradients authors}}}},
  booktitle = {{Leaky Gradients: the gradient-inversion papers, re-run and judged}},
  chapter   = {{{number}}},
  year      = {{2026}},
  note      = {{Re-runs \\cite{{KEY}}; version {version}, commit ...}}
}}"""


def test_every_chapter_can_be_cited():
    entries = (ROOT / "book" / "chapters.bib").read_text()
    numbers, titles = re.findall(r"chapter   = \{(\d+)\}", entries), re.findall(r"title     = \{(.+)\},", entries)
    cited = dict(zip(numbers, titles, strict=True))
    for path in NOTEBOOKS:
        number, name = str(notebooks.Chapter(ROOT, path.stem).number), path.stem.partition("-")[2]
        title = _heading(path)
        entry = ENTRY.format(name=name, title=title, number=number, version=PROJECT["version"])
        assert number in cited, f"book/chapters.bib has no entry of notebooks/{path.name}; add\n{entry}"
        assert cited.pop(number) == title, (
            f"book/chapters.bib, chapter {number}: the title is the notebook's, {title!r}"
        )
    assert not cited, f"book/chapters.bib has entries of no notebook: chapters {', '.join(cited)}"


def test_every_paper_of_a_chapter_can_be_cited():
    entries = (ROOT / "book" / "chapters.bib").read_text()
    papers = (ROOT / "book" / "references.bib").read_text()
    for key in re.findall(r"\w+\d{4}\w+", " ".join(re.findall(r"Re-runs ([^;]+);", entries))):
        assert f"{{{key}," in papers, f"book/chapters.bib cites {key}, of which book/references.bib has no entry"


def test_all_files_name_one_version():
    version = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert version == PROJECT["version"], "CITATION.cff and pyproject.toml name one version"
    told = re.findall(r"version ([\d.]+),", (ROOT / "book" / "chapters.bib").read_text())
    assert set(told) == {version}, f"book/chapters.bib: version {version} in every note"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_clean_and_have_the_four_parameters(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "strip the outputs: nbstripout"
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1, "one code cell has the tag `parameters` in its metadata"
    names = [target.id for node in ast.parse(tagged[0].source).body for target in node.targets]
    assert names == ["profile", "seed", "device", "data_root"], f"these four, in this order, in the cell {tagged[0].id}"
    assert code[0].id == notebooks.INSTALL and code[0].metadata.tags == ["remove-cell"]
    assert code[0].source == notebooks.install_cell(*notebooks.address_of(ROOT)), "run `reprolib address URL`"
    assert code[-1].id == "exercise", "a chapter ends with an exercise that runs"
    own = code[1:-1]
    assert 15 <= len(own) <= 40, f"{len(own)} code cells besides these two, where a chapter has 15 to 40"


def test_one_command_names_the_repository_everywhere(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for path in (ROOT / "_config.yml", NOTEBOOKS[0]):
        shutil.copyfile(path, tmp_path / path.relative_to(ROOT))
    address = "https://example.org/someone/book"
    notebooks.set_address(tmp_path, address, "v1")
    assert notebooks.address_of(tmp_path) == (address, "v1")
    first = nbformat.read(tmp_path / "notebooks" / NOTEBOOKS[0].name, as_version=4).cells
    assert f'address, branch = "{address}", "v1"' in next(cell.source for cell in first if cell.cell_type == "code")
    for wrong in ("book", "https://example.org", 'https://example.org/a"b', "file:///x/y"):
        with pytest.raises(ValueError, match="expected https://HOST/OWNER/NAME"):
            notebooks.set_address(tmp_path, wrong)


def test_a_notebook_away_from_its_repository_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="this copy names no repository"):
        exec(notebooks.install_cell("", "main"), {})
    ran = []
    shell = types.SimpleNamespace(run_line_magic=lambda *given: ran.append(given))
    exec(notebooks.install_cell("https://example.org/a/b", "main"), {"get_ipython": lambda: shell})
    assert ran == [("pip", "install --quiet git+https://example.org/a/b@main")]
    assert "installing it from https://example.org/a/b" in capsys.readouterr().out


IMPORT = r"import |from \S+ import "


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_cell_is_read_at_a_glance_and_does_not_keep_the_ledger(path):
    faults = []
    for place, cell in enumerate(nbformat.read(path, as_version=4).cells, 1):
        if cell.cell_type != "code":
            continue
        here, lines = f"cell {place} ({cell.id})", [line for line in cell.source.splitlines() if line.strip()]
        count = len([line for line in lines if not re.match(IMPORT, line)])
        faults += [f"{here}: {count} lines, at most 15 without imports and empty ones: split it"] * (count > 15)
        faults += [f"{here}: of {len(line)} characters, at most 88: {line}" for line in lines if len(line) > 88]
        kept = re.findall(r"ch\.(?:ledger\.)?(?:record|skip)\(", cell.source)
        faults += [
            f"{here}: {call}...) belongs into `experiments.measures`, and `ch.measure` enters it" for call in kept
        ]
    assert not faults, "\n".join([f"notebooks/{path.name}", *faults])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_closes_below_the_one_heading_that_names_the_ledger(path):
    cells = nbformat.read(path, as_version=4).cells
    headings = [
        (place, heading)
        for place, cell in enumerate(cells)
        if cell.cell_type == "markdown"
        for heading in re.findall(r"^##+ (.+)$", cell.source, re.MULTILINE)
    ]
    named = [heading for _, heading in headings if "ledger" in heading.lower()]
    assert named == ["The ledger"], (
        "one heading `## The ledger`, where the scoreboard's links lead, and no other with the word"
    )
    closing = next((place for place, cell in enumerate(cells) if "ch.finish()" in cell.source), None)
    assert closing is not None, "the last code cell is `ch.finish()`"
    last = [heading for place, heading in headings if place < closing][-1]
    assert last == "The ledger", f"`ch.finish()` stands below the heading {last!r}, and not below `## The ledger`"


def test_the_table_of_checkpoints_has_the_figures_of_their_cards():
    folder = ROOT / "checkpoints"
    text = (folder / "README.md").read_text()
    for path in folder.glob("*.json"):
        card = json.loads(path.read_text())
        scale, unit, key = (1, " dB", "test_psnr") if "test_psnr" in card else (100, " %", "test_accuracy")
        found = card[key]
        value, low, high = (scale * found[key] for key in ("value", "low", "high"))
        assert f"| `{path.stem}` |" in text and f"| {value:.1f}{unit} [{low:.1f}, {high:.1f}] |" in text
        assert "samples" not in card or f"]({card['samples']})" in text
