"""The verb `audit`: from the command line's options to wordsight.audit, and its result as plain values.
Imports no torch before it runs.
"""

from __future__ import annotations

import argparse
from typing import Any

from wordsight import help, hints, terminal
from wordsight.arguments import RUN, WORDS, Verb
from wordsight.reader import read


def audit(options: argparse.Namespace) -> dict[str, Any]:
    hints.check_run("audit", options.run)
    hints.check_words("audit", options.words)
    own = read(help.AuditSettings, *options.words)
    hints.check_data(own.data)
    hints.check_data(own.pool, "pool")
    hints.check_kept(options.run)
    from wordsight.audit import audit

    names = ("pool", "out", "data", "backbone", "root")
    with own.on():
        return audit(options.run, count=own.next, **{name: getattr(own, name) for name in names})


AUDIT = Verb(
    audit,
    terminal.audit,
    "wrong labels, copies, outliers, and which images to label next: wordsight audit RUN pool=new/",
    [RUN, WORDS],
)
