"""What the site does to pages that also have to read well in the repository: links that leave docs/, long tables, formulas."""

import html
import re
from collections.abc import Callable

LONGEST_TABLE = 16
LONGEST_CELL = 40  # characters: columns of sentences need more room than columns of numbers


def links(markdown: str, repository: str | None, depth: int = 0) -> str:
    """Links to files outside of docs/: into the repository, or plain text while it has no address. And pictures as Markdown's.

    Notebooks are part of the site. `depth` counts the folders between docs/ and the page.


    >>> links("[the program](../examples/rl.py)", None)
    'the program (`examples/rl.py`)'
    >>> links("[the program](../examples/rl.py)", "https://host/owner/name")
    '[the program](https://host/owner/name/blob/main/examples/rl.py)'
    >>> links("[a notebook](../notebooks/a.ipynb)", None)
    '[a notebook](notebooks/a.ipynb)'
    >>> links("[the guide](../geometry.md)", None, depth=1)
    '[the guide](../geometry.md)'
    >>> links('<img src="images/a.png" alt="A curve">', None)
    '![A curve](images/a.png)'
    """

    def target(match: re.Match[str]) -> str:
        text, path = match.groups()
        if path.startswith("notebooks/"):
            return f"[{text}]({'../' * depth}{path})"
        if repository:
            return f"[{text}]({repository}/blob/main/{path})"
        return f"`{path}`" if path in text else f"{text} (`{path}`)"

    markdown = re.sub(rf"\[([^\]]+)\]\((?:\.\./){{{depth + 1},}}([^)]+)\)", target, markdown)
    return re.sub(r'<img src="([^"]+)" alt="([^"]+)">', r"![\2](\1)", markdown)


def folded_tables(page: str) -> str:
    """Tables are wrapped, so that wide ones scroll by themselves; those of many rows lie behind a summary."""

    def folded(match: re.Match[str]) -> str:
        longest = max(len(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", match[0], re.DOTALL))
        table = f'<div class="wide-table{" prose" if longest > LONGEST_CELL else ""}">{match[0]}</div>'
        rows = match[0].count("<tr>") - 1
        if rows <= LONGEST_TABLE:
            return table
        headings = [
            html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<th[^>]*>(.*?)</th>", match[0], re.DOTALL)
        ]
        what = html.escape(", ".join(heading for heading in headings if heading.strip()))
        return f'<details class="note"><summary>A table of {rows} rows: {what}</summary>{table}</details>'

    return re.sub(r"<table>.*?</table>", folded, page, flags=re.DOTALL)


def formulas(page: str, to_mathml: Callable[[str, str], str]) -> str:
    r"""Formulas as MathML, which browsers show without a script: `to_mathml(latex, "inline" or "block")`.

    >>> formulas(r'<span class="arithmatex">\(a &lt; b\)</span>', lambda latex, display: f"<math>{display}: {latex}</math>")
    '<span class="arithmatex"><math>inline: a < b</math></span>'
    """

    def converted(match: re.Match[str]) -> str:
        opening, bracket, latex, closing = match.groups()
        return opening + to_mathml(html.unescape(latex).strip(), "block" if bracket == "[" else "inline") + closing

    return re.sub(
        r'(<(?:span|div) class="arithmatex">)\s*\\([(\[])(.*?)\\[)\]]\s*(</(?:span|div)>)', converted, page, flags=re.DOTALL
    )


def notebook_formulas(page: str) -> str:
    r"""Formulas of a notebook's text as those of Markdown's are marked; not in its programs.

    >>> print(notebook_formulas(r'<p>at $\sqrt{2}$</p><pre>"$\nu$"</pre>'))
    <p>at <span class="arithmatex">\(\sqrt{2}\)</span></p><pre>"$\nu$"</pre>
    """

    def marked(text: re.Match[str]) -> str:
        return re.sub(r"\$([^$<>]*\\[^$<>]*)\$", r'<span class="arithmatex">\\(\1\\)</span>', text[0])

    return re.sub(r"<(p|li)>(?:(?!<pre).)*?</\1>", marked, page, flags=re.DOTALL)


def colab_badge(repository: str | None, notebook: str) -> str:
    """A link that opens a notebook of a repository on GitHub in Colab; nothing for a repository elsewhere, or without an address.

    >>> colab_badge(None, "quickstart")
    ''
    >>> colab_badge("https://github.com/owner/name", "quickstart")
    '<p><a href="https://colab.research.google.com/github/owner/name/blob/main/notebooks/quickstart.ipynb">Open in Colab</a></p>'
    """
    owner_and_name = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)/?", repository or "")
    if not owner_and_name:
        return ""
    path = f"{owner_and_name[1]}/blob/main/notebooks/{notebook}.ipynb"
    return f'<p><a href="https://colab.research.google.com/github/{path}">Open in Colab</a></p>'
