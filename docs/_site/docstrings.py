"""Docstrings as mkdocstrings reads them: runnable examples as code, no pointers to them."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """`Example:`, this project's heading, is `Examples:` to the parser."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Every object's docstring, before it is parsed."""
        if obj.docstring:
            text = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"^>>> .*\n?", "", text, flags=re.MULTILINE) if obj.is_module else text
