"""So many clients ask a server for so long, each for one image at a time: times, images a second, memory, and
whether what it says is what `predict` says.

`python benchmarks/serve/load.py RUN IMAGES... [--clients 64] [--seconds 60] [-- options of serve]`"""

import argparse
import asyncio
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

WARM = 5.0  # seconds that are not counted
APART = 2e-4  # by which a probability of four digits may differ: the last digit of both


def main():
    options = _options()
    files = [Path(name) for name in options.images][: options.different]
    expected = _predicted(options.run, files)
    server = subprocess.Popen(
        [sys.executable, "-m", "wordsight", "serve", options.run, "--port", "0", *options.serve],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = _address(server)
        memory = Memory(server.pid)
        bodies = [(str(file), _request(file, address)) for file in files]
        seconds, answers, span = asyncio.run(_load(address, bodies, options, memory))
    finally:
        server.terminate()
        code = server.wait(60)
    _report(seconds, answers, span, memory, expected)
    print(f"exit code of the server, told to end: {code}")


def _options():
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--different", type=int, default=200, help="images, asked for again and again")
    words = sys.argv[1:]
    place = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:place])
    options.serve = words[place + 1 :]
    return options


def _predicted(run, files):
    """What `wordsight predict` says of each image, by its path."""
    command = [sys.executable, "-m", "wordsight", "predict", run, *map(str, files), "--top", "5", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return {entry["image"]: entry["classes"] for entry in found["predictions"]}


def _address(server):
    for line in server.stderr:
        if found := re.search(r"at http://([\d.]+):(\d+);", line):
            return found[1], int(found[2])
    raise SystemExit("the server did not start")


def _request(file, address):
    body = (
        f'--x\r\nContent-Disposition: form-data; name="images"; filename="{file.name}"\r\n\r\n'.encode()
        + file.read_bytes()
        + b"\r\n--x--\r\n"
    )
    head = f"POST /v1/classify HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nContent-Length: {len(body)}\r\n"
    return (head + "Content-Type: multipart/form-data; boundary=x\r\n\r\n").encode() + body


class Memory:
    """The resident memory of a process, in MB, with when it was looked at."""

    def __init__(self, pid):
        self.pid, self.seen = pid, []

    def look(self):
        status = Path(f"/proc/{self.pid}/status").read_text()
        self.seen.append((time.monotonic(), int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024))


async def _load(address, bodies, options, memory):
    seconds, answers = [], []
    begin = time.monotonic() + WARM
    end = begin + options.seconds
    turns = itertools.cycle(range(len(bodies)))

    async def client():
        reader, writer = await asyncio.open_connection(*address)
        while (asked := time.monotonic()) < end:
            name, content = bodies[next(turns)]
            writer.write(content)
            status, answer = await _answer(reader)
            if asked >= begin:
                seconds.append(time.monotonic() - asked)
                answers.append((name, status, answer))
        writer.close()

    async def watch():
        while time.monotonic() < end:
            await asyncio.sleep(1)
            if time.monotonic() >= begin:
                memory.look()

    await asyncio.gather(watch(), *(client() for _ in range(options.clients)))
    return seconds, answers, time.monotonic() - begin


async def _answer(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(re.search(rb"content-length: (\d+)", head.lower())[1])
    return int(head.split()[1]), await reader.readexactly(size)


def _report(seconds, answers, span, memory, expected):
    ordered = sorted(seconds)
    p50, p99 = (ordered[int(len(ordered) * part)] for part in (0.5, 0.99))
    statuses = [status for _, status, _ in answers]
    failed = len(statuses) - statuses.count(200)
    print(f"requests: {len(seconds)}, {len(seconds) / span:.1f} a second; not answered with 200: {failed}")
    print(
        f"seconds: p50 {p50:.3f}, p90 {ordered[int(len(ordered) * 0.9)]:.3f}, p99 {p99:.3f}, "
        f"longest {ordered[-1]:.3f}; p99 / p50 = {p99 / p50:.2f}"
    )
    looked = [size for _, size in memory.seen]
    first, middle, last = (statistics.mean(part) for part in _thirds(looked))
    print(f"memory in MB: {first:.0f}, {middle:.0f}, {last:.0f} (means of thirds), largest {max(looked):.0f}")
    wrong = sum(not _same(expected[name], answer) for name, status, answer in answers if status == 200)
    print(f"answers that are not those of predict: {wrong}")


def _thirds(values):
    third = len(values) // 3
    return values[:third], values[third : 2 * third], values[2 * third :]


def _same(expected, answer):
    (entry,) = json.loads(answer)["results"]
    theirs = [one["probability"] for one in entry["classes"]]
    ours = [one["probability"] for one in expected]
    first = entry["classes"][0]["class"] == expected[0]["class"]
    return first and all(abs(one - other) <= APART for one, other in zip(theirs, ours, strict=True))


if __name__ == "__main__":
    main()
