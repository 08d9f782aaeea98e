"""The small changes that can be made to a source file: one of them makes a mutant.

Strings are never changed, nor anything in an f-string, an annotation, an import or the arguments of a `raise`.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ANNOTATIONS = ("annotation", "returns", "type_params")
UNTOUCHED = (ast.Import, ast.ImportFrom, ast.JoinedStr)
REMOVABLE = (ast.Raise, ast.Break, ast.Continue, ast.Delete)
TEXTS = ("__repr__", "__str__")
COMPARED: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
CALCULATED: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
PAIRS = (("min", "max"), ("amin", "amax"), ("argmin", "argmax"), ("any", "all"), ("floor", "ceil"))
OPPOSITE = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}


@dataclass(frozen=True)
class Change:
    """One change: the mutant is the tree of `file` with the `child` in a `slot` replaced by `node`.

    Args:
        lines: a test that executes none of these lines cannot see the change,
        at_import: unless this is set: then the change takes effect when the module is imported.
    """

    file: str
    line: int
    lines: range
    at_import: bool
    tree: ast.Module
    slot: tuple[ast.AST, str, int | None]
    child: ast.AST
    node: ast.AST

    @property
    def key(self) -> str:
        """Its name among all changes: the same text can stand twice on a line."""
        parent, field, index = self.slot
        return f"{self} ({type(parent).__name__} {getattr(self.child, 'col_offset', 0)} {field} {index})"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {shown(self.child)} -> {shown(self.node)}"

    def apply(self) -> ast.Module:
        """Make the change and return the tree, ready to compile."""
        parent, field, index = self.slot
        if index is None:
            setattr(parent, field, self.node)
        else:
            getattr(parent, field)[index] = self.node
        return ast.fix_missing_locations(self.tree)


def shown(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())


def changes(file: str, source: str) -> Iterator[Change]:
    """All changes of a file, in the order of its text."""
    tree = ast.parse(source)
    yield from _below(tree, file, tree, range(0), function=None)


def _below(
    parent: ast.AST, file: str, tree: ast.Module, lines: range, function: ast.FunctionDef | None
) -> Iterator[Change]:
    for field, index, child in _children(parent):
        around = function
        if isinstance(child, ast.FunctionDef):
            # Defaults and decorators act where the body runs.
            around, lines = child, range(child.lineno, (child.end_lineno or 0) + 1)
        elif isinstance(child, ast.stmt):
            lines = range(child.lineno, _header_end(child) + 1)
        for node in replacements(parent, field, child, function):
            node = ast.copy_location(node, child)
            line = getattr(child, "lineno", lines.start)
            yield Change(file, line, lines, around is None, tree, (parent, field, index), child, node)
        if not isinstance(child, ast.Raise):
            yield from _below(child, file, tree, lines, around)


def _children(parent: ast.AST) -> Iterator[tuple[str, int | None, ast.AST]]:
    for field, value in ast.iter_fields(parent):
        if field in ANNOTATIONS:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not _untouched(child):
                yield field, index, child


def _untouched(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, UNTOUCHED) or (isinstance(node, ast.FunctionDef) and node.name in TEXTS)


def _header_end(statement: ast.stmt) -> int:
    """The last line of a statement without the statements in it."""
    inner = getattr(statement, "body", None)
    if inner:
        return max(statement.lineno, inner[0].lineno - 1)
    return statement.end_lineno or statement.lineno


def replacements(parent: ast.AST, field: str, node: ast.AST, function: ast.FunctionDef | None) -> Iterator[ast.AST]:
    """What can stand in the place of `node`."""
    if (field == "test" and isinstance(parent, ast.If | ast.IfExp | ast.While)) or field == "ifs":
        yield ast.Constant(False)
        if not isinstance(parent, ast.While):  # a loop that never ends says little
            yield ast.Constant(True)
    if isinstance(node, ast.stmt):
        yield from _statements(node, function)
    elif isinstance(node, ast.expr):
        yield from _expressions(node)


def _statements(node: ast.stmt, function: ast.FunctionDef | None) -> Iterator[ast.AST]:
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, REMOVABLE) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield ast.Pass()
    elif isinstance(node, ast.AugAssign):
        yield ast.Pass()
        if type(node.op) in CALCULATED:
            yield _with(node, op=CALCULATED[type(node.op)]())
    elif isinstance(node, ast.Assign) and function and all(_was_bound(t, function) for t in node.targets):
        yield ast.Pass()


def _was_bound(target: ast.expr, function: ast.FunctionDef) -> bool:
    """Whether the target has a value before: taking away its first assignment is a NameError, which says little."""
    if isinstance(target, ast.Tuple | ast.List):
        return all(_was_bound(t, function) for t in target.elts)
    if not isinstance(target, ast.Name):
        return function.name != "__init__"
    arguments = {a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)}
    stored = (n for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    return target.id in arguments or any(n.id == target.id and n.lineno < target.lineno for n in stored)


def _expressions(node: ast.expr) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            yield from (_with(node, ops=_put(node.ops, i, other())) for other in COMPARED[type(op)])
    elif isinstance(node, ast.BinOp) and type(node.op) in CALCULATED:
        yield _with(node, op=CALCULATED[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield from (ast.Constant(node.value + step) for step in (1, -1))
    elif isinstance(node, ast.Slice):
        yield from (_with(node, **{end: None}) for end in ("lower", "upper") if getattr(node, end))
    elif isinstance(node, ast.Call):
        yield from _calls(node)


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    function = node.func
    if isinstance(function, ast.Name) and function.id in OPPOSITE:
        yield _with(node, func=_with(function, id=OPPOSITE[function.id]))
    if isinstance(function, ast.Attribute) and function.attr in OPPOSITE:
        yield _with(node, func=_with(function, attr=OPPOSITE[function.attr]))
    for i, (one, two) in enumerate(zip(node.args, node.args[1:], strict=False)):
        if not isinstance(one, ast.Starred) and not isinstance(two, ast.Starred) and ast.dump(one) != ast.dump(two):
            yield _with(node, args=_put(_put(node.args, i, two), i + 1, one))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _with(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _put(values: Sequence[ast.AST], index: int, value: ast.AST) -> list[ast.AST]:
    return [*values[:index], value, *values[index + 1 :]]


def draw(root: Path, rooms: Sequence[str], count: int, seed: int) -> list[Change]:
    """`count` changes in the files of `rooms`, each on a line of its own, all lines alike; more begin with fewer."""
    lines: dict[tuple[str, int], list[Change]] = {}
    for path in sorted(path for room in rooms for path in (root / room).rglob("*.py")):
        for change in changes(path.relative_to(root).as_posix(), path.read_text()):
            lines.setdefault((change.file, change.line), []).append(change)
    generator = random.Random(seed)
    order = generator.sample(sorted(lines), len(lines))
    return [generator.choice(lines[place]) for place in order][:count]
