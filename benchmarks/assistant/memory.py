"""What is in memory: python benchmarks/assistant/memory.py CLAMP LIMBER, each way in a process of its own.

RSS, in MB, once all is loaded; an LM in memory twice would show."""

import json
import subprocess
import sys
from pathlib import Path

WAYS = {
    "neither": "pass",
    "CLAMP alone": "assistant = Assistant.open(clamp)",
    "limber alone": "assistant = Assistant.open(limber)",
    "assistant of both": "assistant = Assistant.from_runs(clamp, limber)",
    "both, each by itself": "assistant = Assistant.open(clamp), Assistant.open(limber)",
}
WORK = """
import ctypes, gc, json, sys
from wordsight.assistant import Assistant
clamp, limber = sys.argv[1:]
{}
gc.collect()
ctypes.CDLL(None).malloc_trim(0)  # what reading has freed goes back
lines = open("/proc/self/status").read().splitlines()
sizes = dict(line.split(":", 1) for line in lines)
print(json.dumps([int(sizes[name].split()[0]) // 1024 for name in ("RssAnon", "VmHWM")]))
"""


def main(clamp: str, limber: str) -> None:
    print("| in memory | MB now (not of files) | MB at most |\n|---|---|---|")
    for name, work in WAYS.items():
        done = subprocess.run(
            [sys.executable, "-c", WORK.format(work), clamp, limber],
            capture_output=True,
            text=True,
            check=True,
        )
        now, most = json.loads(done.stdout)
        print(f"| {name} | {now:,} | {most:,} |", flush=True)


if __name__ == "__main__":
    main(*map(str, map(Path, sys.argv[1:])))
