r"""Three machines of a Ray cluster on one: each with a network, a host name, processes, a /tmp/ray and a
/dev/shm of its own (Linux's namespaces; needs root). Each piece of work is done here first, then by the
cluster, where machine 3 ends in the middle; the bytes must be the same.

    python benchmarks/scale/machines.py PHOTOS --backbone JOINED --captions FILES \
        --classes FILE --out OUT"""

import argparse
import filecmp
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

BRIDGE, NET, PORT = "wsbridge", "10.77.0", 6379
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "2",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
BOOT = """
hostname machine-{number}
mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && mount -t tmpfs tmpfs /dev/shm
until ip link show eth0 > /dev/null 2>&1; do sleep 0.1; done
ip link set lo up && ip addr add {net}.{number}/24 dev eth0 && ip link set eth0 up
exec {ray} start {role} --node-ip-address {net}.{number} --disable-usage-stats --num-cpus 1 \
    --object-store-memory 100000000 --block
"""


class Machine:
    """A process with namespaces of its own, and all that starts below it."""

    def __init__(self, number: int, out: Path):
        role = (
            f"--address {NET}.1:{PORT}" if number > 1 else f"--head --port {PORT} --include-dashboard false"
        )
        ray = Path(sys.executable).with_name("ray")
        boot = BOOT.format(number=number, net=NET, ray=ray, role=role)
        own = [
            "unshare",
            "--net",
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
        ]
        environment = os.environ | ENVIRONMENT | {"WORDSIGHT_CACHE": str(out / "cache-there")}
        with open(out / f"machine-{number}.log", "w") as log:
            self.process = subprocess.Popen(
                [*own, "bash", "-c", boot], stdout=log, stderr=log, env=environment
            )
        self.name, self.environment = f"ws{number}", environment
        while not (below := psutil.Process(self.process.pid).children()):
            time.sleep(0.05)
        self.first = below[0].pid
        _ip("link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", str(self.first))
        _ip("link", "set", self.name, "master", BRIDGE, "up")

    def run(self, words: Sequence[str]) -> subprocess.Popen:
        inside = ["nsenter", "--target", str(self.first), "--all", f"--wd={os.getcwd()}", *words]
        return subprocess.Popen(inside, stdout=subprocess.PIPE, text=True, env=self.environment)

    def end(self, plug: bool) -> None:
        """All of its processes at once; with `plug` its network first, so that nobody hears of it."""
        if plug:
            _ip("link", "set", self.name, "down")
        os.kill(self.first, signal.SIGKILL)  # the first process of its namespace: the others end with it
        self.process.wait()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--captions", nargs="+", required=True)
    parser.add_argument("--classes", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--plug", action="store_true", help="cut the network of machine 3 before its processes"
    )
    parser.add_argument("--only", nargs="+", default=["suite", "search", "coverage"])
    options = parser.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the machines end
    _ip("link", "add", BRIDGE, "type", "bridge")
    machines: dict[int, Machine] = {}
    try:
        _ip("link", "set", BRIDGE, "up")
        machines |= {number: Machine(number, out) for number in (1, 2, 3)}
        suite = [
            "suite",
            "few-shot",
            "data=digits",
            "backbone=micro",
            "methods=taskres",
            "seeds=1,2,3",
            "shots=2",
        ]
        suite += ["train.epochs=1", "train.min_steps=400", "train.save_seconds=0.02"]
        index = ["search", str(options.photos), "a dog in the snow", f"backbone={options.backbone}", "--json"]
        count = ["coverage", *options.captions, "--classes", options.classes, "--json"]
        there = out / "there"
        begun: dict[str, tuple[list[str], Callable[[], bool] | None]] = {
            "suite": ([*suite, f"out={there}"], lambda: any(there.glob("**/state.safetensors"))),
            "search": (index, lambda: any((out / "cache-there").rglob("*.safetensors"))),
            "coverage": (count, None),
        }
        for name in options.only:
            words, middle = begun[name]
            here = _here([word.replace(str(there), str(out / "here")) for word in words], out)
            for number in (2, 3):
                if machines[number].process.poll() is not None:
                    machines[number] = Machine(number, out)
            _wait_for(machines[1], 3)
            _compare(name, words, middle, here, machines, options)
    finally:
        for machine in machines.values():
            if machine.process.poll() is None:
                machine.end(plug=False)
        _ip("link", "del", BRIDGE)


def _program(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "wordsight", *words]


def _here(words: Sequence[str], out: Path) -> str:
    environment = os.environ | ENVIRONMENT | {"WORDSIGHT_CACHE": str(out / "cache-here")}
    return subprocess.run(_program(words), stdout=-1, text=True, check=True, env=environment).stdout


def _wait_for(head: Machine, wanted: int) -> None:
    ask = "import ray; ray.init('auto', logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"
    for _ in range(60):
        if head.run([sys.executable, "-c", ask]).communicate()[0].strip() == str(wanted):
            return
        time.sleep(1)
    raise SystemExit(f"there are no {wanted} machines; see machine-*.log")


def _compare(
    name: str,
    words: Sequence[str],
    middle: Callable[[], bool] | None,
    here: str,
    machines: dict[int, Machine],
    options: argparse.Namespace,
) -> None:
    out = options.out.absolute()
    head = f"{NET}.1:{PORT}"
    dashed = name == "coverage"
    engine = ["--engine", "ray", "--address", head] if dashed else ["engine=ray", f"address={head}"]
    began = time.monotonic()
    asked = machines[1].run(_program([*words, *engine]))
    cut = None
    while middle and asked.poll() is None and cut is None:
        if middle():
            machines[3].end(options.plug)
            cut = time.monotonic() - began
        time.sleep(0.05)
    said = asked.communicate()[0]
    took = time.monotonic() - began
    if name == "suite":
        kept = [
            one.relative_to(out / "here")
            for kind in ("safetensors", "csv")
            for one in (out / "here").rglob(f"*.{kind}")
        ]
        same, other, failed = filecmp.cmpfiles(out / "here", out / "there", kept, shallow=False)
        equal = f"{len(same)} of {len(kept)} files"
        right = not other and not failed
    else:
        right, equal = said == here, f"{len(said)} characters of the answer"
    row = {
        "work": name,
        "exit": asked.returncode,
        "seconds": round(took, 1),
        "cut_off_after": cut and round(cut, 1),
    }
    print(json.dumps(row | {"equal": right, "what": equal}), flush=True)
    for place, text in (("here", here), ("there", said)):
        (out / f"{name}-{place}.txt").write_text(text)


if __name__ == "__main__":
    main()
