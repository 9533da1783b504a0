"""Docstrings as mkdocstrings reads them: runnable examples as code, no pointers to them, formulas as formulas."""

import re
import textwrap
from typing import Any

import griffe


def markdown(docstring: str) -> str:
    r"""This project's headings and roles, as the parser and Markdown have them.

    >>> print(markdown("Of :math:`x`:\n\n.. math::\n    x\n\nExample:\n  y"))
    Of $x$:
    <BLANKLINE>
    $$
    x
    $$
    <BLANKLINE>
    Examples:
      y
    """
    text = re.sub(r"^(\s*)Example:$", r"\1Examples:", docstring, flags=re.MULTILINE)
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    return re.sub(r"^\.\. math::(.*\n(?:(?: +.*)?\n)*?)(?=\S|\Z)", _formula, f"{text}\n", flags=re.MULTILINE).rstrip()


def _formula(block: re.Match[str]) -> str:
    """A formula of its own; several lines are aligned."""
    formula = re.sub(
        r"(?<=[_^])\{([a-z]{3,})\}", r"{\\text{\1}}", textwrap.dedent(block[1]).strip()
    )  # words, not products of letters
    return f"$$\n\\begin{{align*}}\n{formula}\n\\end{{align*}}\n$$\n\n" if "&" in formula else f"$$\n{formula}\n$$\n\n"


class Docstrings(griffe.Extension):
    """Applies `markdown` before docstrings are parsed; a module's doctest only names where examples are."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Every object's docstring."""
        if obj.docstring:
            text = markdown(obj.docstring.value)
            obj.docstring.value = re.sub(r"^>>> .*\n?", "", text, flags=re.MULTILINE) if obj.is_module else text
