"""Small faults, one at a time: what a program would be if somebody had made this mistake.

A mutation replaces one expression or leaves out one statement. Left alone is what only a reader sees, annotations, strings and
the text of errors, and what only guards the library against itself, `assert` and `zip(strict=True)`.
"""

import ast
from collections.abc import Iterator
from typing import NamedTuple


class Mutation(NamedTuple):
    """One replacement in a module's source: the text at a line and column, and what stands there instead."""

    line: int
    column: int
    old: str
    new: str

    def of(self, source: str) -> str:
        """The source with this fault."""
        lines = source.splitlines(keepends=True)
        start = sum(len(line) for line in lines[: self.line - 1]) + self.column
        assert source[start : start + len(self.old)] == self.old
        return source[:start] + self.new + source[start + len(self.old) :]


_OPERATORS = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
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
_FUNCTIONS = {
    "maximum": "minimum",
    "minimum": "maximum",
    "max": "min",
    "min": "max",
    "any": "all",
    "all": "any",
    "zeros": "ones",
    "ones": "zeros",
    "argmax": "argmin",
    "expm1": "exp",
    "log1p": "log",
    "sqrt": "exp",
    "rsqrt": "sqrt",
    "square": "exp",
    "exp": "exp2",
    "log": "log2",
    "sum": "mean",
    "mean": "sum",
    "floor": "ceil",
    "add": "set",
}


def mutations(source: str) -> list[Mutation]:
    """All of a module, in the order of its lines.

    Example:
      >>> [(m.old, m.new) for m in mutations("def f(a, b=1):\\n  return a < b")]
      [('1', '2'), ('a < b', 'a <= b'), ('a < b', 'a >= b')]
    """
    found = [_mutation(source, node, new) for node, new in _nodes(ast.parse(source))]
    return sorted({mutation for mutation in found if mutation.old != mutation.new})


def _mutation(source: str, node: ast.expr | ast.stmt, new: ast.AST | str) -> Mutation:
    """By columns of characters, where `ast` counts bytes."""
    old = ast.get_source_segment(source, node)
    assert old is not None
    line = source.splitlines()[node.lineno - 1]
    column = len(line.encode()[: node.col_offset].decode())
    return Mutation(node.lineno, column, old, new if isinstance(new, str) else ast.unparse(new))


def _nodes(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, ast.AST | str]]:
    """Every node with what may stand in its place."""
    match node:
        case ast.Raise() | ast.Assert() | ast.Import() | ast.ImportFrom() | ast.keyword("strict"):
            return
    if isinstance(node, ast.expr | ast.stmt):
        yield from ((node, new) for new in _replacements(node))
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "type_params"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not (isinstance(node, ast.ClassDef) and name == "bases"):
                yield from _nodes(child)


def _replacements(node: ast.AST) -> Iterator[ast.AST | str]:
    match node:
        case ast.Constant(value):
            yield from _other_constants(value)
        case ast.Call(ast.Attribute() | ast.Name() as function, arguments, keywords):
            yield from _other_calls(function, arguments, keywords)
        case ast.IfExp(test, body, orelse) if isinstance(test, ast.Name | ast.Attribute | ast.Call):
            yield ast.IfExp(test, orelse, body)
        case ast.Expr(ast.Call()):
            yield "pass"
        case ast.expr():
            yield from _other_operators(node)


def _other_constants(value: object) -> Iterator[ast.AST]:
    match value:
        case bool():
            yield ast.Constant(not value)
        case int():
            yield ast.Constant(value + 1)
        case float():
            yield ast.Constant(2 * value if value else 1.0)


def _other_operators(node: ast.expr) -> Iterator[ast.AST | str]:
    match node:
        case ast.BinOp(left, operator, right):
            yield from (ast.BinOp(left, other(), right) for other in _OPERATORS.get(type(operator), ()))
        case ast.BoolOp(operator, values):
            yield from (ast.BoolOp(other(), values) for other in _OPERATORS[type(operator)])
        case ast.Compare(left, [operator], [right]):
            yield from (ast.Compare(left, [other()], [right]) for other in _OPERATORS[type(operator)])
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
            yield f"({ast.unparse(operand)})"


def _other_calls(function: ast.Attribute | ast.Name, arguments: list[ast.expr], keywords: list[ast.keyword]) -> Iterator[ast.AST]:
    match function:
        case ast.Attribute(of, name) if name in _FUNCTIONS:
            yield ast.Call(ast.Attribute(of, _FUNCTIONS[name]), arguments, keywords)
        case ast.Attribute(_, "where") if len(arguments) == 3:
            yield ast.Call(function, [arguments[0], arguments[2], arguments[1]], keywords)
        case ast.Attribute(_, "optimization_barrier"):
            yield from arguments
        case ast.Name("any" | "all" | "min" | "max" as name):
            yield ast.Call(ast.Name(_FUNCTIONS[name]), arguments, keywords)
