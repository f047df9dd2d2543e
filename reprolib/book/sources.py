"""Sources: what a Python text runs, and which functions of reprolib a part of a chapter can reach.

A change of code concerns a part only if the part can reach it. What it can reach is read from the texts alone, function
by function and method by method, always rather too much than too little. Where a definition stands, in which file and
under which module's name, does not count. This file measures nothing and shows nothing.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from reprolib.clone import PACKAGE

# What shows measurements and makes none: a part's result does not depend on it.
PRESENTATION = (
    "reprolib.book",
    "reprolib.cli",
    "reprolib.__main__",
    "reprolib.atomic",
    "reprolib.clone",
    "reprolib.measure.intervals",
    "reprolib.measure.samples",
    "reprolib.measure.ends",
)

WHOLE = "*"
"""In a place, for everything that a module defines."""

Place = tuple[str, str]
"""Where a definition stands: its module, and its name there: "f", "Class", "Class.method" or WHOLE."""


# --- a text without its prose -----------------------------------------------------------------------------------------


def without_prose(source: str) -> str:
    """Python source without comments, docstrings, blank lines and line breaks in brackets: what it runs.

    A line is a statement: its tokens with a space between, indented by its depth. So an edit of prose leaves it equal,
    and any other edit does not. The text is the same under every version of Python. Of lines that are no whole
    statement, such as those of some lambdas, only the white space at their ends goes.
    """
    source = source.lstrip("\n")
    indented = source[:1] in (" ", "\t")  # a method
    text = f"if True:\n{source}" if indented else source
    rows = text.split("\n")
    try:
        prose = _prose(ast.parse(text), rows)
    except SyntaxError:
        return "\n".join(line.strip() for line in source.splitlines() if line.strip())
    lines, line, depth, until = [], [], -1 if indented else 0, (0, 0)
    nested, began = 0, (0, 0)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "INDENT":
            depth += 1
        elif kind == "DEDENT":
            depth -= 1
        elif token.start < until or kind in ("COMMENT", "NL", "ENDMARKER"):
            continue
        elif token.start in prose and not nested:
            until, alone = prose[token.start]
            line += ["pass"] if alone else []
        elif kind.endswith("STRING_START"):  # of a formatted string, which before Python 3.12 is one token
            nested, began = nested + 1, began if nested else token.start
        elif kind.endswith("STRING_END"):
            nested -= 1
            line += [] if nested else [_between(rows, began, token.end)]
        elif nested:
            continue
        elif kind == "NEWLINE":
            lines += [" " * depth + " ".join(line)] if line else []
            line = []
        elif line or token.string != ";":
            line.append(token.string)
    return "\n".join(lines[indented:])


def _prose(tree: ast.AST, rows: list[str]) -> dict[tuple[int, int], tuple[tuple[int, int], bool]]:
    """Where statements begin that are nothing but a text, where each ends, and whether its block holds nothing else.

    Places are (row from 1, character from 0), as the tokenizer counts.
    """

    def place(row: int | None, column: int | None) -> tuple[int, int]:
        assert row is not None, "what was parsed from a text knows its place"
        return row, len(rows[row - 1].encode()[:column].decode())  # the parser counts bytes

    found = {}
    for node in ast.walk(tree):
        for _, block in ast.iter_fields(node):
            steps = [step for step in block if isinstance(step, ast.Expr)] if isinstance(block, list) else []
            values = [step.value for step in steps]
            said = [
                step
                for step, value in zip(steps, values, strict=True)
                if isinstance(value, ast.Constant) and isinstance(value.value, str)
            ]
            for step in said:
                end = place(step.end_lineno, step.end_col_offset)
                found[place(step.lineno, step.col_offset)] = end, len(said) == len(block) and step is said[0]
    return found


def _between(rows: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """The text between two places."""
    (first, left), (last, right) = start, end
    if first == last:
        return rows[first - 1][left:right]
    return "\n".join([rows[first - 1][left:], *rows[first : last - 1], rows[last - 1][:right]])


# --- what a definition runs -------------------------------------------------------------------------------------------


_DEFINES = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass
class Definition:
    """A function, a method, a class without its methods, or another statement of a module.

    shape: what it runs, without docstrings, places and annotations, other than those that make a class's fields: equal
    for equal code under every version of Python. reads: the names that it takes from its module, each with the
    attribute taken of it or "". loose: the attributes that it takes of anything else, and its texts that could be names
    of attributes. local: what it imports itself, name -> place.
    """

    shape: str
    reads: set[tuple[str, str]] = field(default_factory=set)
    loose: set[str] = field(default_factory=set)
    local: dict[str, Place] = field(default_factory=dict)


@dataclass
class Module:
    """What a text of the library defines.

    defined: name -> definitions, several where a name is bound more than once. methods: class -> its methods. bases:
    class -> the names of its bases, each with an attribute or "". imported: name -> the place it stands for. always:
    what runs with anything of the module, such as a call that registers something.
    """

    defined: dict[str, list[Definition]] = field(default_factory=dict)
    methods: dict[str, dict[str, list[Definition]]] = field(default_factory=dict)
    bases: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    imported: dict[str, Place] = field(default_factory=dict)
    always: list[Definition] = field(default_factory=list)


def _shape(node: object, fields: bool = False) -> str:
    """A syntax tree as one text. fields: of a class's own statements, where an annotation makes a field."""
    if isinstance(node, ast.AST):
        if isinstance(node, ast.arg):
            return node.arg
        if isinstance(node, ast.AnnAssign) and not fields and node.value is not None:
            return _shape(ast.Assign([node.target], node.value))
        left_out = {"ctx", "kind", "type_comment", "type_params", "returns"}
        inner = isinstance(node, ast.ClassDef)
        told = [
            f"{name}={_shape(value, inner and name == 'body')}"
            for name, value in ast.iter_fields(node)
            if name not in left_out and value is not None and value != []
        ]
        return f"{type(node).__name__}({', '.join(told)})"
    if isinstance(node, list):
        return f"[{', '.join(_shape(item, fields) for item in node if not _runs_nothing(item, fields))}]"
    return repr(node)


def _is_prose(node: object) -> bool:
    """Whether a statement runs nothing: a text alone, or `pass`."""
    if isinstance(node, ast.Pass):
        return True
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _annotation(node: ast.AST, fields: bool) -> ast.AST | None:
    """What a node says of types and does not run: of an argument, a result, or a value that is no field of a class."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return node.returns
    if isinstance(node, ast.arg) or isinstance(node, ast.AnnAssign) and not fields:
        return node.annotation
    return None


def _runs_nothing(node: object, fields: bool) -> bool:
    """Whether a statement is prose, or an annotation alone that makes no field. fields: as of `_shape`."""
    return _is_prose(node) or isinstance(node, ast.AnnAssign) and node.value is None and not fields


def _definition(node: ast.AST, shape: str, outside: dict[str, str], below: Iterable[ast.AST] = ()) -> Definition:
    """What a statement runs and reads. outside: a name of another package -> what it stands for. below: left out."""
    found, skipped, bound, taken = Definition(shape), set(map(id, below)), set(), {}

    def walk(node: ast.AST, inside: ast.AST | None = None) -> Iterator[ast.AST]:
        if id(node) in skipped or _is_prose(node):
            return
        yield node
        told = _annotation(node, fields=isinstance(inside, ast.ClassDef))
        for child in ast.iter_child_nodes(node):
            if child is not told:
                yield from walk(child, node)

    nodes = list(walk(node))
    for one in nodes:
        if isinstance(one, ast.arg):
            bound.add(one.arg)
        elif isinstance(one, ast.Name) and not isinstance(one.ctx, ast.Load):
            bound.add(one.id)
        elif isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name):
            taken[id(one.value)] = one.attr
        elif isinstance(one, ast.Import | ast.ImportFrom):
            ours, others = _bindings(one)
            found.local |= ours
            outside = outside | others
    used = set()
    for one in nodes:
        if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load):
            used.add(one.id)
            found.reads.add((one.id, taken.get(id(one), "")))
            if id(one) in taken and one.id in bound:  # may be a local value under a module's name
                found.loose.add(taken[id(one)])
        elif isinstance(one, ast.Attribute) and not isinstance(one.value, ast.Name):
            found.loose.add(one.attr)
        elif isinstance(one, ast.Constant) and isinstance(one.value, str) and one.value.isidentifier():
            found.loose.add(one.value)
    found.shape += "".join(f"\n{name} = {outside[name]}" for name in sorted(used & outside.keys()))
    return found


def _bindings(node: ast.Import | ast.ImportFrom) -> tuple[dict[str, Place], dict[str, str]]:
    """The names that an import binds: those of reprolib with their places, and the others with what they stand for."""
    ours: dict[str, Place] = {}
    others: dict[str, str] = {}
    for alias in node.names:
        name = alias.asname or alias.name
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.partition(".")[0] == "reprolib":
                ours[name] = (module, alias.name)
            else:
                others[name] = f"{module}.{alias.name}"
        elif alias.name.partition(".")[0] == "reprolib":
            ours[alias.asname or "reprolib"] = (alias.name if alias.asname else "reprolib", WHOLE)
        else:
            others[name.partition(".")[0]] = alias.name if alias.asname else alias.name.partition(".")[0]
    return ours, others


def _only_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


@cache
def _analysed(text: str) -> Module:
    """A text of the library taken apart into its definitions."""
    found = Module()
    outside: dict[str, str] = {}
    statements = [node for node in ast.parse(text).body if not _is_prose(node)]
    # an import in a function is the function's own; one below `if` or `try` is the module's
    running = [node for node in statements if not _only_for_types(node) and not isinstance(node, _DEFINES)]
    for one in (one for node in running for one in ast.walk(node)):
        if isinstance(one, ast.Import | ast.ImportFrom):
            ours, others = _bindings(one)
            found.imported |= ours
            outside |= others
    for node in statements:
        if _only_for_types(node) or isinstance(node, ast.Import | ast.ImportFrom):
            for branch in getattr(node, "orelse", []):
                found.always.append(_definition(branch, _shape(branch), outside))
        elif isinstance(node, ast.ClassDef):
            _add_class(found, node, outside)
        else:
            definition = _definition(node, _shape(node), outside)
            names = _bound(node)
            for name in names:
                found.defined.setdefault(name, []).append(definition)
            if not names:
                found.always.append(definition)
    return found


def _bound(node: ast.AST) -> list[str]:
    """The names that a statement of a module binds; those that a comprehension or a function binds stay inside it."""
    if isinstance(node, _DEFINES):
        return [node.name]
    if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return []
    own = [node.id] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else []
    return list(dict.fromkeys(own + [name for child in ast.iter_child_nodes(node) for name in _bound(child)]))


def _add_class(found: Module, node: ast.ClassDef, outside: dict[str, str]) -> None:
    methods = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    head = ast.ClassDef(
        node.name, node.bases, node.keywords, [one for one in node.body if one not in methods], node.decorator_list
    )
    definition = _definition(node, _shape(head), outside, methods)
    found.defined.setdefault(node.name, []).append(definition)
    own = found.methods.setdefault(node.name, {})
    for method in methods:
        shape = f"{node.name}.{_shape(method)}"
        own.setdefault(method.name, []).append(_definition(method, shape, outside))
    found.bases[node.name] = [
        (base.id, "")
        if isinstance(base, ast.Name)
        else (base.value.id, base.attr)
        if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name)
        else ("", "")
        for base in node.bases
    ]


# --- what a part can reach --------------------------------------------------------------------------------------------


def reached(roots: Collection[Place], called: Collection[str] = ()) -> dict[Place, list[Definition]]:
    """What of the library the roots can run: place -> definitions there, several where a name is bound more than once.

    A name leads to what it stands for; of a module that is handed on as a value everything counts. A method counts if
    its class does and something reached takes an attribute of this name, or holds it as a text; those with names of
    the language's own, and all of a class with a base from another package, which may call them, count with it.
    called: attributes and texts of the caller. Modules that only show what was measured lead nowhere.
    """
    found: dict[Place, list[Definition]] = {}
    loose, ahead = set(called), list(roots)
    while ahead:
        while ahead:
            place = _home(ahead.pop())
            if place is None or place in found:
                continue
            module, name = place
            whole = _module(module)
            if name == WHOLE:
                found[place] = whole.always
                ahead += [(module, one) for one in whole.defined]
                ahead += [(module, f"{kind}.{one}") for kind, own in whole.methods.items() for one in own]
                ahead += whole.imported.values()
                continue
            kind, _, method = name.partition(".")
            found[place] = (whole.methods[kind][method] if method else whole.defined[kind]) + whole.always
            if kind in whole.methods and not method:
                own = whole.methods[kind]
                foreign = _is_foreign(module, kind)
                ahead += [(module, f"{kind}.{one}") for one in own if foreign or one.startswith("__")]
            for definition in found[place]:
                loose |= definition.loose
                for read in definition.reads:
                    steps, left = _read(module, definition, *read)
                    ahead += steps
                    loose |= left
        for module, kind in [place for place in found if place[1] in _module(place[0]).methods]:
            for one in _module(module).methods[kind]:
                if one in loose and (module, f"{kind}.{one}") not in found:
                    ahead.append((module, f"{kind}.{one}"))
    return found


def defines(place: Place) -> bool:
    """Whether the library defines this name in this module."""
    return _home(place) is not None


def texts(roots: Collection[Place], called: Collection[str] = ()) -> set[str]:
    """The shapes of what the roots can run."""
    return {definition.shape for definitions in reached(roots, called).values() for definition in definitions}


def _read(module: str, definition: Definition, name: str, attribute: str) -> tuple[list[Place], set[str]]:
    """Where a name that a definition reads leads, and the attribute if it is one of a value rather than a module."""
    left = {attribute} if attribute else set()
    target = definition.local.get(name) or (module, name)
    home = _home(target)
    if home is None:
        return [], left
    if home[1] != WHOLE:  # a function, a class or a value
        own = _module(home[0]).methods.get(home[1], {})
        return ([home, (home[0], f"{home[1]}.{attribute}")], set()) if attribute in own else ([home], left)
    if not attribute:
        return [home], set()
    inside = _home((home[0], attribute))
    return ([inside], set()) if inside else ([], left)


@cache  # every part asks for the same few thousand names
def _home(place: Place) -> Place | None:
    """Where a name is defined that a module may only pass on; None if the library does not define it."""
    module, name = place
    while True:
        if _shows(module):
            return None
        whole = _module(module)
        kind, _, method = name.partition(".")
        if name == WHOLE or (whole.methods.get(kind, {}).get(method) if method else kind in whole.defined):
            return module, name
        if method:
            return None
        if name in whole.imported:
            module, name = whole.imported[name]
        elif file_of(f"{module}.{name}") is not None:
            module, name = f"{module}.{name}", WHOLE
        else:
            return None


@cache
def _shows(module: str) -> bool:
    return any(module == shown or module.startswith(f"{shown}.") for shown in PRESENTATION)


def _is_foreign(module: str, kind: str) -> bool:
    """Whether a class has a base that is not the library's."""
    for name, attribute in _module(module).bases[kind]:
        home = _home((module, name)) if name else None
        if home is not None and attribute:
            home = _home((home[0], attribute)) if home[1] == WHOLE else None
        if home is None or home[1] not in _module(home[0]).bases or _is_foreign(*home):
            return True
    return False


@cache
def file_of(module: str) -> Path | None:
    """The file of a module of reprolib; None if there is no such module."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file()), None)


@cache
def _text_of(module: str) -> str:
    path = file_of(module)
    return path.read_text(encoding="utf-8") if path else ""


def _module(module: str) -> Module:
    return _analysed(_text_of(module))
