"""A hook of MkDocs: each notebook in docs/ becomes a page, and stays beside it to download; knows none of them.

A page that is made here needs no plugin, and so no Jupyter, to build the documentation.
"""

from __future__ import annotations

import posixpath
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))  # MkDocs loads this file by its path

from testkit.notebooks import as_markdown, read

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

DOWNLOAD = "\n[This page as a notebook]({name})\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each notebook."""
    from mkdocs.structure.files import File

    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        content = as_markdown(read(Path(str(notebook.abs_src_path))))
        content += DOWNLOAD.format(name=posixpath.basename(notebook.src_uri))
        files.append(File.generated(config, notebook.src_uri.removesuffix(".ipynb") + ".md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """Such a page is edited in its notebook, if there are links to edit pages at all."""
    if config.repo_url and config.edit_uri and page.file.generated_by is not None:
        source = page.file.src_uri.removesuffix(".md") + ".ipynb"
        page.edit_url = posixpath.join(config.repo_url, config.edit_uri, source)
    return markdown
