#!/usr/bin/env python3
"""Reads a folder of Parquet as others do, for tests: read_parquet.py duckdb|pyarrow FOLDER.

Prints a line of JSON for each file that FOLDER/*/*/*.parquet names for that reader: its window and task, its rows as the text of
a csv file (times as RFC 3339), the columns' types, and what pyarrow tells beside that of metadata, codecs and statistics.
"""
import json
import os
import sys
from datetime import datetime, timezone

try:
    import duckdb
    import pyarrow as arrow
    import pyarrow.parquet as parquet
except ImportError as error:
    sys.exit(f"{error}: `make test` installs it; by hand: pip install -r tests/requirements.txt")


def rfc3339(nanos):
    seconds, rest = divmod(nanos, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"


def csv(names, columns, times):
    """The text of a csv file; none of our cells needs quotes."""
    columns = [[rfc3339(cell) for cell in cells] if name in times else cells for name, cells in zip(names, columns)]
    rows = [",".join(map(str, row)) for row in zip(*columns)]
    return "\n".join([",".join(names), *rows]) + "\n"


def with_duckdb(folder):
    database = duckdb.connect()
    files = database.execute("SELECT file FROM glob(?) ORDER BY file", [f"{folder}/*/*/*.parquet"]).fetchall()
    for (path,) in files:
        read = f"read_parquet('{path}', hive_partitioning = false)"
        described = database.execute(f"DESCRIBE SELECT * FROM {read}").fetchall()
        names, types = [row[0] for row in described], [row[1] for row in described]
        times = {name for name, kind in zip(names, types) if kind.startswith("TIMESTAMP")}
        cells = [f"epoch_ns({name})" if name in times else name for name in names]
        rows = database.execute(f"SELECT {', '.join(cells)} FROM {read}").fetchall()
        columns = list(zip(*rows)) if rows else [[] for _ in names]
        yield path, {"csv": csv(names, columns, times), "types": dict(zip(names, types))}


def with_pyarrow(folder):
    dataset_files = []
    for window in sorted(os.listdir(folder)):
        # As data sets of Arrow pass over them.
        if window.startswith((".", "_")) or not os.path.isdir(f"{folder}/{window}"):
            continue
        for task in sorted(os.listdir(f"{folder}/{window}")):
            if os.path.isdir(f"{folder}/{window}/{task}"):
                dataset_files += [f"{folder}/{window}/{task}/{name}" for name in os.listdir(f"{folder}/{window}/{task}")]
    for path in dataset_files:
        file = parquet.ParquetFile(path)
        table, metadata = file.read(), file.metadata
        times = {field.name for field in table.schema if arrow.types.is_timestamp(field.type)}
        columns = [table[name].cast(arrow.int64()) if name in times else table[name] for name in table.column_names]
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(metadata.num_columns)]
        yield path, {
            "csv": csv(table.column_names, [column.to_pylist() for column in columns], times),
            "types": {field.name: str(field.type) for field in table.schema},
            "metadata": {key.decode(): value.decode() for key, value in (metadata.metadata or {}).items()},
            "codecs": sorted({chunk.compression for chunk in chunks}),
            "has_statistics": all(chunk.statistics is not None and chunk.statistics.has_min_max for chunk in chunks),
            "groups": [group.num_rows for group in groups],
        }


reader, folder = sys.argv[1:]
for path, told in {"duckdb": with_duckdb, "pyarrow": with_pyarrow}[reader](folder):
    window, task = path.split("/")[-3:-1]
    print(json.dumps({"window": window.removeprefix("window="), "task": task.removeprefix("task="), **told}))
