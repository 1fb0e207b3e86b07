"""Names that may be passed on: without the folders of the machine that something was made on."""

from __future__ import annotations

from pathlib import Path


def public(name: str | None) -> str | None:
    """A name without the folders of this machine: of a path its last part; a hub name or URL as it is."""
    return None if name is None else last_part(name)


def last_part(name: str) -> str:
    """The same, of what is a name."""
    if "::" in name:
        return "::".join(map(last_part, name.split("::")))
    kind, at, argument = name.partition("@")
    if at and ":" in kind:
        return f"{kind}@{last_part(argument)}"
    path = Path(name).expanduser()
    local = path.is_absolute() or name.startswith(("./", "../", "~", "file:")) or path.exists()
    return path.name if local else name
