"""Captions a second that `wordsight coverage` counts by phrases:

    python benchmarks/coverage/speed.py CLASSES TEXT...

The captions of the texts (one a line, perhaps .gz) are counted `--times` over, in `--jobs` processes, and
captions a second are printed: of the clock, and of all processors' time together. Reading and starting are in
it."""

import argparse
import os
import resource
import time
from pathlib import Path

from wordsight.coverage import coverage
from wordsight.data.labels import read_class_list


def processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(each.ru_utime + each.ru_stime for each in (own, children))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("classes")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    names = read_class_list(Path(options.classes))
    coverage(options.texts[0], names, jobs=1)  # packages and forms of the names: once, whatever the number
    clock, work = time.perf_counter(), processor_seconds()
    found = coverage(options.texts * options.times, names, jobs=options.jobs)
    clock, work = time.perf_counter() - clock, processor_seconds() - work
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{found['captions']:,} captions, {len(names)} classes, {options.jobs} processes: {clock:.1f} s "
        f"({found['captions'] / clock:,.0f} a second), {work:.1f} processor seconds "
        f"({found['captions'] / work:,.0f} captions each), {peak:.0f} MB"
    )


if __name__ == "__main__":
    main()
