"""Hooks of the site: notebooks from their folder, the repository's address from pyproject.toml, what `pages` does."""

import tomllib
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File
from pages import colab_badge, folded_tables, formulas, links, notebook_formulas

ROOT = Path(__file__).parents[2]
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {}).get("Repository")


def on_config(config):
    """A link to the repository on every page, once it has an address."""
    config.repo_url = REPOSITORY
    return config


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files, config):
    """Notebooks lie in a folder of their own."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File(f"notebooks/{path.name}", str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links that leave docs/."""
    return links(markdown, REPOSITORY, depth=page.file.src_uri.count("/"))


def on_page_content(html, page, config, files):
    """Formulas and tables."""
    source = Path(page.file.src_uri)
    if source.suffix == ".ipynb":
        html = colab_badge(REPOSITORY, source.stem) + notebook_formulas(html)
    return folded_tables(formulas(html, lambda latex, display: convert(latex, display=display)))
