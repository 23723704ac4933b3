"""The mutants of a module: each is its syntax tree with one small change."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Mutant(NamedTuple):
    """One small change of a module."""

    path: Path
    line: int
    last_line: int
    """The last line of the changed statement."""
    column: int
    change: str
    """What is replaced by what."""
    function: str
    """The qualified name of the outermost function that contains the change; empty for the module's own code."""
    function_line: int
    """The first line of that function, decorators included."""
    number: int
    """Its place among the mutants of the module."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column} {self.function or 'module'}: {self.change}"


class _Site(NamedTuple):
    node: ast.AST
    change: str
    apply: Callable[[ast.AST], ast.AST | None]
    """Returns the node that replaces a copy of `node`."""


def list_mutants(path: Path) -> list[Mutant]:
    """Return all mutants of a module."""
    tree = ast.parse(path.read_bytes())
    functions = {
        id(node): (name, min([function.lineno, *(one.lineno for one in function.decorator_list)]))
        for name, function in _list_functions(tree, "")
        for statement in function.body
        for node in ast.walk(statement)
    }
    statements = {
        id(node): (statement.lineno, statement.end_lineno or statement.lineno)
        for statement in ast.walk(tree)
        if isinstance(statement, ast.stmt) and not hasattr(statement, "body")
        for node in ast.walk(statement)
    }
    return [
        Mutant(path, *_locate(site.node, statements), site.change, *functions.get(id(site.node), ("", 0)), number)
        for number, site in enumerate(_list_sites(tree))
    ]


def make_tree(mutant: Mutant) -> ast.Module:
    """Return the syntax tree of the module with the change; line numbers are those of the source."""
    tree = ast.parse(mutant.path.read_bytes())
    site = list(_list_sites(tree))[mutant.number]
    replacement = site.apply(copy.copy(site.node))
    _replace(tree, site.node, replacement or ast.Pass())
    return ast.fix_missing_locations(tree)


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, ast.copy_location(new, old))
                return
            if isinstance(value, list):
                for position, item in enumerate(value):
                    if item is old:
                        value[position] = ast.copy_location(new, old)
                        return
    raise AssertionError("the node is not in the tree")


def _locate(node: ast.AST, statements: Mapping[int, tuple[int, int]]) -> tuple[int, int, int]:
    """Return first and last line of the simple statement, or of the node in the head of a block, and the column."""
    line = getattr(node, "lineno", 1)
    return *statements.get(id(node), (line, getattr(node, "end_lineno", line))), getattr(node, "col_offset", 0)


def _list_functions(tree: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Function]]:
    for node in tree.body:
        if isinstance(node, Function):
            yield f"{prefix}{node.name}", node
        elif isinstance(node, ast.ClassDef):
            yield from _list_functions(node, f"{prefix}{node.name}.")


def _list_sites(tree: ast.Module) -> Iterator[_Site]:
    for node in _walk(tree):
        yield from _list_node_sites(node)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes in which a change has an effect: no docstrings, annotations, assertions, and type checking."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_ineffective(child):
                yield from _walk(child)


def _is_ineffective(node: ast.AST) -> bool:
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom():
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Assign(targets=[ast.Name(id="TYPE_CHECKING" | "__all__" | "__slots__")]):
            return True
        case ast.keyword(arg="strict") | ast.Call(func=ast.Name(id="TypeVar")):
            # `strict` of zip() asserts what is always true.
            return True
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            # The name of an alias of a type, such as `Key = tuple[str, str]`.
            return name[:1].isupper() and not name.isupper() and isinstance(value, ast.Subscript | ast.BinOp)
        case _:
            return False


def _list_node_sites(node: ast.AST) -> Iterator[_Site]:  # noqa: C901, PLR0912  # one case for each kind of node
    match node:
        case ast.Compare(ops=ops):
            for position, found in enumerate(ops):
                new = _COMPARISONS[type(found)]
                change = f"{type(found).__name__} -> {new.__name__}"
                yield _Site(node, change, partial(_set_operator, position=position, operator=new()))
        case ast.BoolOp(op=found):
            other = ast.Or if isinstance(found, ast.And) else ast.And
            change = f"{type(found).__name__} -> {other.__name__}"
            yield _Site(node, change, lambda copied: _set(copied, "op", other()))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield _Site(node, "not x -> x", lambda _: operand)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield _Site(node, "-x -> x", lambda _: operand)
        case ast.BinOp(op=found) | ast.AugAssign(op=found) if type(found) in _ARITHMETIC:
            new_operator = _ARITHMETIC[type(found)]
            change = f"{type(found).__name__} -> {new_operator.__name__}"
            yield _Site(node, change, lambda copied: _set(copied, "op", new_operator()))
        case ast.Constant(value=value) if (changed := _change_constant(value)) is not None:
            yield _Site(node, f"{value!r} -> {changed!r}"[:100], lambda _: ast.Constant(changed))
        case ast.Return(value=value) if value is not None and not _is_none(value):
            yield _Site(node, "return x -> return None", lambda copied: _set(copied, "value", ast.Constant(None)))
        case ast.Break():
            yield _Site(node, "break -> continue", lambda _: ast.Continue())
        case ast.Continue():
            yield _Site(node, "continue -> break", lambda _: ast.Break())
        case ast.Expr(value=ast.Call() | ast.Await() | ast.Yield() | ast.YieldFrom()):
            yield _Site(node, "statement removed", lambda _: _make_nothing(node))
        case ast.Raise() | ast.AugAssign() | ast.Delete():
            yield _Site(node, "statement removed", lambda _: None)
        case _:
            pass
    if isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
        test = node.test
        yield _Site(node, "condition negated", lambda copied: _set(copied, "test", ast.UnaryOp(ast.Not(), test)))
    if isinstance(node, ast.comprehension):
        for condition in node.ifs:
            yield _Site(condition, "condition negated", partial(_negate, condition))


def _negate(node: ast.expr, _: ast.AST) -> ast.AST:
    return ast.UnaryOp(ast.Not(), node)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _make_nothing(node: ast.AST) -> ast.AST | None:
    # A generator has to stay one.
    is_yield = isinstance(node, ast.Expr) and isinstance(node.value, ast.Yield | ast.YieldFrom)
    return ast.Expr(ast.YieldFrom(ast.Tuple([], ast.Load()))) if is_yield else None


def _change_constant(value: object) -> str | bytes | bool | int | float | None:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"XX{value}"
        case bytes():
            return b"XX" + value
        case _:
            return None


def _set(node: ast.AST, field: str, value: ast.AST) -> ast.AST:
    setattr(node, field, value)
    return node


def _set_operator(node: ast.AST, position: int, operator: ast.cmpop) -> ast.AST:
    assert isinstance(node, ast.Compare)
    node.ops = [*node.ops[:position], operator, *node.ops[position + 1 :]]
    return node
