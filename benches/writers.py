#!/usr/bin/env python3
"""What writers beside csv cost the batch job, in turn in one run.

Environment: as for compare.py.
"""
import re, statistics, sys

import compare

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 7
WRITERS = {
    "csv": [],
    "csv, Parquet": ["{type: parquet, path: %s/parquet}"],
    "csv, JSON lines": ["{type: jsonl, path: %s/jsonl}"],
}


def configurations():
    """The file of each configuration by its name; csv alone comes first."""
    shipped = (compare.ROOT / "config.yaml").read_text()
    head = re.sub(r"(?m)^writers:.*?\n(?=\S)", "", shipped, flags=re.S)
    for name, others in WRITERS.items():
        path = compare.BENCH / f"writers-{re.sub('[^a-z]', '-', name.lower())}.yaml"
        lines = ["{type: csv, path: ./snapshots}"] + [other % compare.BENCH for other in others]
        path.write_text(head + "\nwriters:\n" + "".join(f"  - {line}\n" for line in lines))
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
    csv = [run["wall"] for run in runs["csv"]]
    print(f"{'':20} {'wall':>8} {'CPU':>8} {'peak':>8} {'of csv':>9}   medians of {ROUNDS}, 2 workers")
    for name, measured in runs.items():
        middle = compare.medians(measured)
        wall, cpu, peak = (middle[key] for key in ("wall", "cpu", "peak_mb"))
        # Each round's own ratio: the machine's speed changes from one to the next.
        ratio = statistics.median(run["wall"] / base for run, base in zip(measured, csv))
        print(f"{name:20} {wall:7.2f}s {cpu:7.2f}s {peak:6.0f}MB {ratio:8.2f}x")


if __name__ == "__main__":
    main()
