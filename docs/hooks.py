"""What mkdocs needs beside its settings: the benchmarks' pages as part of the site, links between them and
docs/ as they stand in the repository, and every page in the navigation."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
DOCS, BENCHMARKS = ROOT / "docs", ROOT / "benchmarks"
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Pages that the settings do not name stand among the guides, the methods or the benchmarks."""
    named = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    pages = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
    rest = [page for page in pages if page not in named]
    _section(config.nav, "Guides").extend(page for page in rest if not page.startswith("methods/"))
    _section(config.nav, "Methods").extend(page for page in rest if page.startswith("methods/"))
    _section(config.nav, "Benchmarks").extend(map(_in_site, sorted(BENCHMARKS.rglob("*.md"))))
    return config


def on_files(files: Any, config: Any) -> Any:
    for path in sorted(BENCHMARKS.rglob("*.md")):
        files.append(File.generated(config, _in_site(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they stand in the repository, to where their targets lie in the site; what is no part of it is
    named without a link."""
    here = page.file.src_uri
    source = ROOT / here if here.startswith("benchmarks/") else DOCS / here

    def moved(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / found[1]))
        target = target / "README.md" if (target / "README.md").is_file() else target
        if target.is_relative_to(DOCS) and target.is_file():
            place = str(target.relative_to(DOCS))
        elif target.suffix == ".md" and target.is_relative_to(BENCHMARKS) and target.is_file():
            place = _in_site(target)
        else:
            return f"] (`{target.relative_to(ROOT)}`)" if target.exists() else found[0]
        return f"]({os.path.relpath(place, os.path.dirname(here) or '.')}{found[2] or ''})"

    return re.sub(r"\[([^\]]*)\] \((`[^)]*)\)", r"\1 (\2)", LINK.sub(moved, markdown))


def _section(nav: list[Any], name: str) -> list[str]:
    (found,) = [entry[name] for entry in nav if isinstance(entry, dict) and name in entry]
    return found


def _in_site(path: Path) -> str:
    return str(path.relative_to(ROOT))
