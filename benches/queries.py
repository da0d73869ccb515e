#!/usr/bin/env python3
"""What standing queries, sketches and alerts cost the batch job: examples/alerts.yaml, and sketches, against the exact
tasks alone, in turn in one run.

Not here: what a window costs that changes little (`cargo bench --bench standing`). Environment: as for compare.py.
"""
import re, sys

import compare

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 7
SKETCHES = """\
    - {name: heavy_hitters, type: count_min, key_fields: [SrcIP], metric: bytes}
    - {name: spreaders, type: hll, key_fields: [SrcIP], element_fields: [DstIP, DstPort]}
"""


def configurations():
    """The text of each configuration by its name; that of the exact tasks comes first."""
    example = (compare.ROOT / "examples/alerts.yaml").read_text()
    head = "aggregator:\n  window: 60s\n  tasks:\n"
    exact = "".join(re.findall(r"    - \{name: per_.*type: exact.*\n", example))
    writers = "writers:\n  - {type: csv, path: ./snapshots}\n"
    return {
        "exact tasks": head + exact + writers,
        "the example": example.replace("./alerts.jsonl", str(compare.BENCH / "alerts.jsonl")),
        "exact and sketches": head + exact + SKETCHES + writers,
        "sketches alone": head + SKETCHES + writers,
    }


if __name__ == "__main__":
    compare.against_first(dict(compare.configured(configurations(), "queries")), ROUNDS, "exact")
