"""Time of an exact search among a million vectors: wall clock and processor time, and what it holds.

python benchmarks/search/million.py [--count 1000000] [--width 512] [--repeats 15]
"""

import argparse
import os
import resource
import statistics
import time

import torch

from wordsight.search import closest


def seconds(work, repeats: int) -> str:
    wall, processor = [], []
    for _ in range(repeats):
        began, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    return (
        f"wall {statistics.median(wall):.3f} s (least {min(wall):.3f}, most {max(wall):.3f}), "
        f"processor {statistics.median(processor):.3f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("count", 1_000_000), ("width", 512), ("repeats", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    stream = torch.Generator().manual_seed(0)
    vectors = torch.empty(asked.count, asked.width).normal_(generator=stream)
    vectors /= vectors.norm(dim=1, keepdim=True)
    queries = torch.nn.functional.normalize(torch.randn(64, asked.width, generator=stream), dim=1)
    load = ", ".join(f"{part:.1f}" for part in os.getloadavg())
    print(f"{asked.count:,} x {asked.width} float32, {torch.get_num_threads()} threads, load {load}")
    closest(queries[:1], vectors, 10)
    print("one query:       ", seconds(lambda: closest(queries[:1], vectors, 10), asked.repeats))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("64 together:     ", seconds(lambda: closest(queries, vectors, 10), 3))
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"memory beside the vectors, 64 together: at most {held / 1024:.0f} MB")


if __name__ == "__main__":
    main()
