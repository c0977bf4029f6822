"""Hooks of MkDocs (mkdocs.yml): pages outside of docs/, links, anchors. One source serves GitHub and the site."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[2]
PAGES = {  # files of the repository that are pages of the site
    "README.md": "index.md",
    "INSTALL.md": "install.md",
    "GETTING_STARTED.md": "getting_started.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "datasets/README.md": "datasets.md",
    "tools/README.md": "tools.md",
    "tests/README.md": "tests.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Give headings the anchors that they have on GitHub."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside of docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Translate the links of a page from the paths of the repository to those of the site."""
    return translate_links(markdown, page.file.src_uri)


def translate_links(markdown: str, page: str) -> str:
    """Return the text of a page with links that are valid in the site.

    A link to a file of the repository that is no page, such as a configuration, becomes its text alone.

    Args:
        markdown: text of the page.
        page: path of the page in the site.
    """
    source = SOURCES.get(page, f"docs/{page}")

    def translate(match: re.Match[str]) -> str:
        text, link = match.groups()
        path, hash_, anchor = link.partition("#")
        if not path or "://" in link:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if target.startswith("..") or not os.path.exists(ROOT / target):
            return match[0]  # MkDocs reports it
        if target not in PAGES and not target.startswith("docs/"):
            return text[1:-1]
        place = PAGES.get(target, target.removeprefix("docs/"))
        return f"{text}({posixpath.relpath(place, posixpath.dirname(page) or '.')}{hash_}{anchor})"

    return LINK.sub(translate, markdown)
