#!/usr/bin/env python3
"""What writers beside csv cost the batch job, in turn in one run.

Environment: as for compare.py.
"""
import sys

import compare

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 7
CSV = "{type: csv, path: ./snapshots}"
CONFIGURATIONS = {
    "csv": compare.with_writers(CSV),
    "csv, Parquet": compare.with_writers(CSV, f"{{type: parquet, path: {compare.BENCH}/parquet}}"),
    "csv, JSON lines": compare.with_writers(CSV, f"{{type: jsonl, path: {compare.BENCH}/jsonl}}"),
}

if __name__ == "__main__":
    compare.against_first(dict(compare.configured(CONFIGURATIONS, "writers")), ROUNDS, "csv")
