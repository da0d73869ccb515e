#!/usr/bin/env python3
"""What standing queries, sketches and alerts cost the batch job: examples/alerts.yaml, and sketches, against the exact
tasks alone, in turn in one run.

Not here: what a window costs that changes little (`cargo bench --bench standing`). Environment: as for compare.py.
"""
import re, statistics, sys

import compare

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 7
SKETCHES = """\
    - {name: heavy_hitters, type: count_min, key_fields: [SrcIP], metric: bytes}
    - {name: spreaders, type: hll, key_fields: [SrcIP], element_fields: [DstIP, DstPort]}
"""


def configurations():
    """The file of each configuration by its name; that of the exact tasks comes first."""
    example = (compare.ROOT / "examples/alerts.yaml").read_text()
    head = "aggregator:\n  window: 60s\n  tasks:\n"
    exact = "".join(re.findall(r"    - \{name: per_.*type: exact.*\n", example))
    writers = "writers:\n  - {type: csv, path: ./snapshots}\n"
    texts = {
        "exact tasks": head + exact + writers,
        "the example": example.replace("./alerts.jsonl", str(compare.BENCH / "alerts.jsonl")),
        "exact and sketches": head + exact + SKETCHES + writers,
        "sketches alone": head + SKETCHES + writers,
    }
    for name, text in texts.items():
        path = compare.BENCH / f"queries-{name.replace(' ', '-')}.yaml"
        path.write_text(text)
        yield name, path


def main():
    compare.BENCH.mkdir(parents=True, exist_ok=True)
    capture = compare.capture(10)
    commands = {
        name: [compare.BINARIES / "pcap-analyzer", "-q", "-w", "2", "-c", path, "-o", compare.OUT, capture]
        for name, path in configurations()
    }
    runs = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            runs[name].append(compare.measure(command))
    exact = [run["wall"] for run in runs["exact tasks"]]
    print(f"{'':20} {'wall':>8} {'CPU':>8} {'peak':>8} {'M packets/s':>12} {'of exact':>9}   medians of {ROUNDS}, 2 workers")
    for name, measured in runs.items():
        middle = compare.medians(measured)
        wall, cpu, peak = (middle[key] for key in ("wall", "cpu", "peak_mb"))
        # Each round's own ratio: the machine's speed changes from one to the next.
        ratio = statistics.median(run["wall"] / base for run, base in zip(measured, exact))
        print(f"{name:20} {wall:7.2f}s {cpu:7.2f}s {peak:6.0f}MB {10 / wall:12.1f} {ratio:8.2f}x")


if __name__ == "__main__":
    main()
