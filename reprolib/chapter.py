"""What every chapter does: choose profile, device and data, keep the ledger, show its parts, resume, and close.

ch = chapter.start("dlg", profile, seed, device, data_root, settings={"smoke": {...}, "cpu": {...}, ...})
images = ch.data("cifar10", count=ch.settings.images)
scores = ch.part("success", run_attacks, attack=DLG.stable())     # saved; a killed chapter continues after it
ch.record("recovery_success", metrics.success(scores.mse, 1e-3, scores.network), data=images)
ch.figure(figures.fidelity(curves), "fidelity", "Share of images below each error.")
ch.finish()
"""

from __future__ import annotations

import dataclasses
import dis
import hashlib
import html
import inspect
import os
import re
import time
import types
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from IPython.display import Markdown, display
from torch import Tensor, nn

from reprolib import claims, clone, data, figures, models, results
from reprolib.atomic import write_atomic
from reprolib.metrics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reprolib.client import ThreatModel
    from reprolib.data import ImageSet

PICTURE_LIMIT = 150_000
"""Bytes of a saved figure: small enough to be committed with a reference run."""

# Files that show measurements and make none: a part's result does not depend on them.
_PRESENTATION = {"atomic.py", "chapter.py", "claims.py", "clone.py", "figures.py", "results.py", "report.py"}
_PRESENTATION |= {"runner.py", "cli.py"}

_PACKAGE = Path(__file__).resolve().parent


def start(
    paper: str,
    profile: str = "auto",
    seed: int = 0,
    device: str = "auto",
    data_root: str | os.PathLike = "",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Chapter:
    """Open a paper's chapter.

    paper: the name of a file in `claims/`. profile: one of `claims.PROFILES`, or "auto": gpu where CUDA is used, else
    cpu. device: "auto", "cpu" or "cuda". data_root: folder of the papers' image sets; "" takes REPROLIB_DATA, and
    without it the offline sets stand in. settings: the sizes of each of the four profiles, all with the same names.
    Raises ValueError for unknown names, a missing CUDA device, and settings that differ between profiles.
    """
    root = repository()
    known = sorted(path.stem for path in (root / "claims").glob("*.yml"))
    if paper not in known:
        raise ValueError(f"paper={paper!r}: no claims/{paper}.yml; known: {', '.join(known)}")
    chosen = _device(device)
    if profile == "auto":
        profile = "gpu" if chosen.type == "cuda" else "cpu"
    if profile not in claims.PROFILES:
        raise ValueError(f"unknown profile {profile!r}; known: auto, {', '.join(claims.PROFILES)}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed={seed!r}: expected a whole number of at least 0")
    sizes = {name: dict(values) for name, values in (settings or {name: {} for name in claims.PROFILES}).items()}
    if set(sizes) != set(claims.PROFILES):
        raise ValueError(f"settings has the profiles {list(sizes)}, expected {', '.join(claims.PROFILES)}")
    for name, values in sizes.items():
        if differing := set(values) ^ set(sizes[profile]):
            raise ValueError(
                f"settings of {name!r} and {profile!r} differ in {sorted(differing)}: name each in all four"
            )
    figures.style()
    ledger = claims.Ledger(claims.load(root / "claims" / f"{paper}.yml"), profile)
    chapter = Chapter(paper, profile, seed, chosen, str(data_root), sizes, ledger)
    chapter.show(_box("This run", f"profile <b>{profile}</b>, device <b>{chosen.type}</b>, seed <b>{seed}</b>"))
    if chapter._reference is not None:
        chapter.show(_box("The reference run in a minute", _in_a_minute(chapter._reference), "#009E73"))
    return chapter


def repository() -> Path:
    """The clone that the working directory is in; elsewhere the folder that reprolib lies in."""
    return clone.find() or _PACKAGE.parent


def results_root() -> Path:
    """Where measurements go: `results/` of the repository, or the folder REPROLIB_RESULTS names."""
    return Path(os.environ.get("REPROLIB_RESULTS") or repository() / "results")


class Settings(types.SimpleNamespace):
    """The active profile's sizes, as attributes."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no setting {name!r} in this chapter; known: {', '.join(vars(self)) or 'none'}")


class Chapter:
    """An open chapter. Made by `start`.

    Attributes for the notebook: paper, profile, seed, device, settings, ledger.
    """

    def __init__(
        self,
        paper: str,
        profile: str,
        seed: int,
        device: torch.device,
        data_root: str,
        sizes: dict[str, dict[str, Any]],
        ledger: claims.Ledger,
    ) -> None:
        self.paper, self.profile, self.seed, self.device, self.ledger = paper, profile, seed, device, ledger
        self.settings = Settings(**sizes[profile])
        self._sizes, self._data_root = sizes, data_root
        self._started, self._resumed = datetime.now(UTC), 0.0
        self._sets: dict[str, ImageSet] = {}
        self._tables: dict[str, pd.DataFrame] = {}
        self._figures: dict[str, dict[str, Any]] = {}
        self._table_number = 0
        self._threat: Any = None
        self._reference = self._read_reference()

    # --- what goes in

    def data(self, name: str, split: str = "test", count: int | None = None, skip: int = 0) -> ImageSet:
        """Open an image set, the paper's or its stand-in; a stand-in is announced once and noted in the ledger.

        skip: leave out the images that an earlier run, of seed 0, met in its first `skip` trials (`ImageSet.after`), so
        that this run judges on others. It has no effect on stand-ins, on which nothing was judged.
        """
        images = data.choose(name, split, count, 0 if skip else self.seed, self._data_root or None)
        if skip and not images.substitute:
            images = images.after(skip)
        if images.substitute:
            stands_for = self.ledger.substitutes.get(images.name, "").split(" and ")
            if name not in stands_for:
                self.ledger.substitutes[images.name] = " and ".join([*filter(None, stands_for), name])
                asked, name_here = html.escape(name), html.escape(images.name)
                text = (
                    f"The paper's <b>{asked}</b> is not here, so <b>{name_here}</b> stands in: "
                    f"{html.escape(images.source)} Claims that need {asked} are <i>not decided here</i>; the reference "
                    f"run, on the paper's data, is shown beside this one. To use your own copy, set "
                    f"<code>data_root</code> or <code>REPROLIB_DATA</code>."
                )
                self.show(_box("⚠ Substitute data", text, "#D55E00"))
        self._sets[f"{images.name} ({split})"] = images
        return images

    def threat(self, model: ThreatModel) -> None:
        """Show the threat model as a box: what the attacker knows, and what it does not."""
        self._threat = model
        rows = [(html.escape(question), html.escape(answer)) for question, answer in model.rows()]
        items = "".join(f"<li><i>{question}</i> {answer}</li>" for question, answer in rows)
        self.show(_box("Threat model", f"<ul style='margin:.3rem 0 0'>{items}</ul>", "#0072B2"))

    def settings_table(self) -> None:
        """Show the settings of all four profiles, with the active column marked."""
        columns = {
            f"▶ {name} (this run)" if name == self.profile else name: self._sizes[name] for name in claims.PROFILES
        }
        table = pd.DataFrame(
            {"setting": [name.replace("_", " ") for name in vars(self.settings)]}
            | {title: [_words(value) for value in sizes.values()] for title, sizes in columns.items()}
        )
        self.table(table, "The sizes of this chapter's experiments in the four profiles.")

    # --- measuring

    def part(self, name: str, function: Callable[..., Any], **inputs: Any) -> Any:
        """The result of `function(**inputs)`: computed once, stored, and taken from the store ever after.

        function: returns a DataFrame, or a dictionary of tensors, tables and JSON values. A killed chapter resumes
        after its last finished part; split a long experiment by calling `part` once a network.
        The store's key covers the name, the inputs, the function's source and the notebook's values it reads (where
        the chapter is among them, its settings and image sets), seed, device, torch's version and the sources of
        reprolib: change any and the part runs again.
        What is returned went through the store, so fresh and resumed chapters see the same numbers.
        Raises ValueError for inputs whose content cannot be identified, and for results of another type.
        """
        _slug("name", name)
        path = results_root() / "parts" / self.profile / f"{name}-{self._key(name, function, inputs)}.json"
        try:
            value, seconds = _load_part(path)
            self._resumed += seconds
        except (FileNotFoundError, ValueError):  # absent, or damaged: a part can always be computed again
            began = time.perf_counter()
            result = function(**inputs)
            _save_part(path, name, result, time.perf_counter() - began)
            value, _ = _load_part(path)
        return value

    def record(
        self, measure: str, interval: Interval, data: ImageSet | str | None = None, images: int | None = None
    ) -> None:
        """Enter a measure into the ledger.

        data: the image set it was measured on; it may be left out while the chapter has opened only one. images: how
        many images the interval rests on, `interval.n` when left out.
        """
        if data is None:
            opened = sorted({images.name for images in self._sets.values()})
            if len(opened) > 1:
                raise ValueError(f"data is missing for {measure!r}: this chapter has opened {', '.join(opened)}")
            data = opened[0] if opened else None
        elif not isinstance(data, str):
            data = data.name
        self.ledger.record(measure, interval, interval.n if images is None else images, data)

    def skip(self, measure: str, reason: str) -> None:
        """Say in the ledger why this run does not take a measure."""
        self.ledger.skip(measure, reason)

    def save_table(self, name: str, table: pd.DataFrame) -> None:
        """Keep a table under this name in the results file, which a reference run commits."""
        _slug("name", name)
        self._tables[name] = table

    # --- showing

    def show(self, content: str, plain: str = "") -> None:
        """Display HTML (with a plain text for readers without it)."""
        text = plain or re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", content))).strip()
        display({"text/html": content, "text/plain": text}, raw=True)

    def figure(self, figure: Figure, name: str, caption: str) -> None:
        """Show a numbered figure, save it for the report, and fold the reference run's version below it.

        name: of the file, results/runs/<profile>/<paper>/NAME.png. caption: also what is read to who cannot see it.
        """
        number = self._number(name, caption)
        drawn = figures.png(figure)
        write_atomic(self._folder("runs") / f"{name}.png", figures.png_within(figure, PICTURE_LIMIT, drawn))
        self._figures[name]["file"] = f"{name}.png"
        picture = _picture(drawn, caption)
        self._captioned(f"fig-{name}", picture, f"<b>Figure {number}.</b> {html.escape(caption)}", name, caption)

    def interactive(self, content: str, name: str, caption: str) -> None:
        """Show numbered HTML, for instance `figures.slider`."""
        number = self._number(name, caption)
        self._captioned(f"fig-{name}", content, f"<b>Figure {number}.</b> {html.escape(caption)}", None, caption)

    def table(self, table: pd.DataFrame, caption: str, folded: str = "", saved: str = "") -> None:
        """Show a numbered table, which scrolls sideways on a narrow screen. The index is not shown.

        Columns `low` and `high` join the column before them, as the ends of its interval. folded: for long tables, the
        line that unfolds them. saved: the name under which the results file keeps it too (`save_table`).
        """
        if saved:
            self.save_table(saved, table)
        self._table_number += 1
        label = f"Table {self._table_number}. {caption}"
        shown = pd.DataFrame({str(c): [_words(v) for v in table[c]] for c in table.columns})
        if "low" in shown and "high" in shown:
            value = shown.columns[shown.columns.get_loc("low") - 1]
            shown[value] += " [" + shown.pop("low") + ", " + shown.pop("high") + "]"
        body = shown.to_html(index=False, border=0, classes="dataframe", justify="left")
        body = (
            f'<div style="overflow-x:auto;font-size:.85rem" tabindex="0" role="region" '
            f'aria-label="{html.escape(label)}">{body}</div>'
        )
        if folded:
            body = f"<details><summary>{html.escape(folded)}</summary>{body}</details>"
        self.show(
            f'<figure style="margin:1rem 0"><figcaption style="margin-bottom:.3rem"><b>Table {self._table_number}.</b> '
            f"{html.escape(caption)}</figcaption>{body}</figure>",
            f"{label}\n{shown.to_string(index=False)}",
        )

    def claims_table(self) -> None:
        """Show every claim that the chapter puts to the test, folded, before anything is measured."""
        every = self.ledger.paper.claims
        rows = [(claim.says, claim.where, str(claim.published), claim.provenance) for claim in every]
        book = sum(claim.origin == "book" for claim in every)
        self.table(
            pd.DataFrame(rows, columns=["claim", "where", "published", "provenance"]),
            "What this chapter puts to the test. Values marked recalled could not be checked against the paper and "
            "decide nothing.",
            folded=f"{len(every) - book} claims of the paper and {book} of this book",
        )

    def source(self, thing: Any) -> None:
        """Show the source of a function or class of reprolib, as it runs."""
        path = Path(inspect.getsourcefile(thing)).relative_to(_PACKAGE.parent)
        code = inspect.cleandoc("\n" + inspect.getsource(thing))
        display(Markdown(f"From `{path.as_posix()}`:\n\n```python\n{code}\n```"))

    def finish(self) -> None:
        """Write results/runs/<profile>/<paper>.json; show the verdicts, what they rest on, and the provenance.

        Raises ValueError naming every measure that the claims declare and the chapter neither recorded nor skipped.
        """
        self.ledger.check()
        fingerprints = {name: images.fingerprint for name, images in self._sets.items()}
        provenance = results.provenance(self.device, self.seed, fingerprints, self._started)
        provenance["seconds"] = round(provenance["seconds"] + self._resumed, 1)  # with what stored parts had taken
        payload = {
            "paper": self.paper,
            "title": self.ledger.paper.title,
            "profile": self.profile,
            "settings": vars(self.settings),
            "threat": self._threat,
            **self.ledger.payload(),
            "tables": self._tables,
            "figures": [{"name": name, **entry} for name, entry in self._figures.items()],
            "provenance": provenance,
        }
        results.save(self._folder("runs").with_suffix(".json"), payload)
        self.table(
            self.ledger.table(self._reference),
            "The ledger: every claim with its verdict, the published value, this run and the reference run (with "
            "its own verdict) with 95 % intervals, the criterion, and the place in the paper.",
        )
        self.show(_box("Provenance", _provenance(self.profile, provenance)))

    # --- inside

    def _folder(self, kind: str) -> Path:
        return results_root() / kind / self.profile / self.paper

    def _read_reference(self) -> dict[str, Any] | None:
        path = results_root() / "reference" / self.paper / f"{self.paper}.json"
        return results.load(path) if path.exists() else None

    def _number(self, name: str, caption: str) -> int:
        _slug("name", name)
        if name not in self._figures:
            self._figures[name] = {"number": len(self._figures) + 1}
        self._figures[name]["caption"] = caption
        return self._figures[name]["number"]

    def _captioned(self, anchor: str, body: str, caption: str, name: str | None, plain: str) -> None:
        folded = ""
        reference = results_root() / "reference" / self.paper / f"{name}.png"
        if self._reference is not None and name is not None and reference.exists():
            profile = self._reference["profile"]
            picture = _picture(reference.read_bytes(), f"{plain} (reference run)")
            title = f"The same figure of the reference run ({profile} profile)"
            # a reader of a smaller run wants to see at once what the full one shows
            smaller = claims.PROFILES.index(self.profile) < claims.PROFILES.index(profile)
            folded = f"<details{' open' if smaller else ''}><summary>{title}</summary>{picture}</details>"
        caption = f'<figcaption style="margin-top:.3rem">{caption}</figcaption>'
        self.show(f'<figure id="{anchor}" style="margin:1rem 0">{body}{caption}{folded}</figure>', plain)

    def _key(self, name: str, function: Callable[..., Any], inputs: Mapping[str, Any]) -> str:
        context = {"name": name, "seed": self.seed, "device": self.device.type}
        context |= {"torch": torch.__version__, "reprolib": _sources()}
        identity = _Identity()
        parts = [identity.of(context, "settings"), identity.of(inputs, "inputs"), identity.of(function, "function")]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={name!r}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda', but PyTorch finds no CUDA device here: use device='cpu' (or 'auto')")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _slug(argument: str, name: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
        raise ValueError(f"{argument}={name!r}: expected small letters, digits, dashes, dots and underscores")


# --- the store of parts


def _save_part(path: Path, name: str, value: Any, seconds: float) -> None:
    if not isinstance(value, pd.DataFrame | dict):
        raise ValueError(f"part {name!r} returned a {type(value).__name__}: expected a DataFrame or a dictionary")
    tensors, rest = {}, value
    if isinstance(value, dict):
        tensors = {key: item.detach().cpu().contiguous() for key, item in value.items() if isinstance(item, Tensor)}
        rest = {key: item for key, item in value.items() if key not in tensors}
    record = {"value": rest, "order": list(value), "tensors": None, "seconds": seconds}
    if tensors:
        content = safetensors.torch.save(tensors)
        write_atomic(path.with_suffix(".safetensors"), content)  # first: the JSON says that the part is whole
        record["tensors"] = hashlib.sha256(content).hexdigest()
    results.save(path, record)


def _load_part(path: Path) -> tuple[Any, float]:
    """The stored result, and the seconds it took."""
    record = results.load(path)
    seconds = record.get("seconds", 0.0)
    if record["tensors"] is None:
        return record["value"], seconds
    content = path.with_suffix(".safetensors").read_bytes()
    if hashlib.sha256(content).hexdigest() != record["tensors"]:
        raise ValueError(f"{path.stem}.safetensors does not fit its checksum")
    merged = record["value"] | safetensors.torch.load(content)
    return {key: merged[key] for key in record["order"]}, seconds


@lru_cache
def _sources() -> str:
    """Hash of the library's files that can change a measurement."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        if path.relative_to(_PACKAGE).as_posix() not in _PRESENTATION:
            digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class _Identity:
    """Texts that are equal for equal content and different for different content.

    Of a function the text holds the source and the values that it reads from its own module, which for a notebook are
    the values of earlier cells; functions of that module that it calls are followed, those of libraries are named.
    """

    def __init__(self) -> None:
        self._home: str | None = None
        self._seen: set[int] = set()

    def of(self, value: Any, where: str) -> str:
        if value is None or isinstance(value, bool | int | float | str | np.generic | torch.device | torch.dtype):
            return repr(value)
        if isinstance(value, Mapping):
            return "{" + ",".join(f"{key!r}:{self.of(item, f'{where}[{key!r}]')}" for key, item in value.items()) + "}"
        if isinstance(value, list | tuple | range):
            return "[" + ",".join(self.of(item, f"{where}[{i}]") for i, item in enumerate(value)) + "]"
        if isinstance(value, Tensor | np.ndarray):
            array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
            return f"{array.dtype}{array.shape}{hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"
        if isinstance(value, pd.DataFrame | pd.Series):
            return hashlib.sha256(value.to_csv().encode()).hexdigest()
        if isinstance(value, nn.Module):
            return f"{value}{models.fingerprint(value)}"
        if isinstance(value, Chapter):
            sets = {key: images.fingerprint for key, images in sorted(value._sets.items())}
            return self.of({"settings": vars(value.settings), "seed": value.seed, "data": sets}, where)
        if isinstance(value, types.SimpleNamespace):
            return self.of(vars(value), where)
        if isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
            return f"{getattr(value, '__module__', '')}.{value.__name__}"
        if isinstance(value, types.FunctionType):
            return self._function(value, where)
        if isinstance(getattr(value, "fingerprint", None), str):
            return value.fingerprint
        if dataclasses.is_dataclass(value):
            content = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return f"{type(value).__qualname__}{self.of(content, where)}"
        raise ValueError(
            f"{where} is a {type(value).__name__}, whose content cannot be identified: pass numbers, text, tensors, "
            f"tables, image sets, models, attacks or defenses"
        )

    def _function(self, function: types.FunctionType, where: str) -> str:
        name = f"{function.__module__}.{function.__qualname__}"
        library = function.__module__.partition(".")[0] == "reprolib"  # its source is in every key
        if library or id(function) in self._seen or self._home not in (None, function.__module__):
            return name
        self._home = function.__module__
        self._seen.add(id(function))
        codes, names = [function.__code__], set()
        while codes:
            code = codes.pop()
            names |= {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
            codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        read = {key: function.__globals__[key] for key in sorted(names) if key in function.__globals__}
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        read |= {key: cell.cell_contents for key, cell in cells}
        values = [f"{key}={self.of(value, f'{where} reads {key}, which')}" for key, value in read.items()]
        return "\n".join([inspect.getsource(function), self.of(function.__defaults__, where), *values])


# --- HTML that reads in light and dark, in Jupyter and in the book


def _box(title: str, body: str, colour: str = "rgba(128,128,128,.8)") -> str:
    return (
        f'<div role="note" style="border:1px solid rgba(128,128,128,.5);border-left:.35rem solid {colour};'
        f'border-radius:.3rem;background:rgba(128,128,128,.08);padding:.6rem .9rem;margin:1rem 0">'
        f"<b>{html.escape(title)}</b><br>{body}</div>"
    )


def _in_a_minute(reference: Mapping[str, Any]) -> str:
    """How the reference run judged the papers' claims, and below them the book's own; unfolded, which and by what."""
    where = f"profile {reference['profile']}, on {', '.join(reference['provenance']['data'])}"
    lines = [f"On the papers' data where they were at hand ({html.escape(where)})."]
    for origin, whose in (("paper", "The papers' claims"), ("book", "This book's own claims")):
        made = [verdict for verdict in reference["verdicts"] if verdict["origin"] == origin]
        if made:
            lines.append(f"<div style='margin-top:.4rem'>{whose}, {len(made)}:</div>")
        for word, symbol in claims.SYMBOLS.items():
            items = [_in_short(verdict) for verdict in made if verdict["verdict"] == word]
            if items:
                title = f"{symbol} <b>{len(items)} {word}</b>"
                lines.append(f"<details><summary>{title}</summary><ul>{''.join(items)}</ul></details>")
    return "".join(lines)


def _in_short(verdict: Mapping[str, Any]) -> str:
    """A claim as an item of a list, with what was published and measured."""
    sides = [f"published: {verdict['published']}"] if verdict["origin"] == "paper" else []
    sides += [f"measured: {verdict['measured']}"] if verdict["measured"] else []
    sides += [verdict["reason"]] if verdict["reason"] else []
    return f"<li>{html.escape(verdict['says'])} <small>({html.escape('; '.join(sides))})</small></li>"


def _picture(png: bytes, alt: str) -> str:
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    return f'<img src="{source}" alt="{html.escape(alt, quote=True)}" style="max-width:100%;height:auto">'


def _words(value: Any) -> str:
    """A cell of a table: numbers to three digits, intervals with their ends, missing values as a dash."""
    if isinstance(value, Interval):
        return claims.value_words(value)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return "—"
    if isinstance(value, float | np.floating):
        return "∞" if value == np.inf else f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ", ".join(_words(item) for item in value)
    return str(value)


def _provenance(profile: str, record: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    images = ", ".join(f"{name} <code>{print_}</code>" for name, print_ in record["data"].items()) or "none"
    lines = [
        f"profile {profile}, seed {record['seed']}, {record['seconds']} s on {html.escape(record['device'])}, "
        f"{record['threads']} threads, {record['platform']}",
        f"Python {record['python']}, {versions}",
        f"images: {images}",
        f"commit {record['commit'] or 'unknown'}, {record['time']}",
    ]
    return "<br>".join(lines)
