#!/usr/bin/env python3
"""Holds the snapshots of a corpus against recorded digests: the shipped tasks, of all packets and in windows of a minute.

usage: corpus_digests.py ANALYZER CORPUS [--write]

The digests are in tests/corpus_digests.csv: capture, window, digest of all csv files, and what is different on purpose from the
version 0.1 (commit a8ae154), where anything is. Prints a line for each that differs, then 'N passed, N failed'; exit 1 when any
failed. With --write, digests are taken as they are, and remarks are kept.
"""
import csv, hashlib, pathlib, subprocess, sys, tempfile

RECORDED = pathlib.Path(__file__).parents[1] / "tests" / "corpus_digests.csv"


def digest(analyzer, capture, window):
    """Of the csv files by their names; `-` where the analyser refuses the capture."""
    with tempfile.TemporaryDirectory() as folder:
        command = [analyzer, "-q", "--window", window, "-o", f"{folder}/out", capture]
        if subprocess.run(command, cwd=folder, capture_output=True).returncode not in (0, 3):
            return "-"
        sha = hashlib.sha256()
        for path in sorted(pathlib.Path(folder, "out").rglob("*.csv")):
            sha.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
        return sha.hexdigest()[:32]


def main(analyzer, corpus, write):
    recorded = {}
    if RECORDED.exists():
        with RECORDED.open() as file:
            recorded = {(row["capture"], row["window"]): row for row in csv.DictReader(file)}
    passed, failed, rows = 0, 0, []
    captures = sorted(path for path in pathlib.Path(corpus).iterdir() if path.suffix in (".pcap", ".pcapng", ".cap"))
    for capture in captures:
        for window in ("all", "60s"):
            found = digest(pathlib.Path(analyzer).resolve(), capture.resolve(), window)
            row = recorded.get((capture.name, window), {"digest": "", "different": ""})
            rows.append({"capture": capture.name, "window": window, "digest": found, "different": row["different"]})
            if found == row["digest"]:
                passed += 1
            else:
                failed += 1
                print(f"{capture.name}, window {window}: {found}, recorded {row['digest'] or 'nothing'}")
    if write:
        with RECORDED.open("w") as file:
            writer = csv.DictWriter(file, ["capture", "window", "digest", "different"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(f"digests: {passed} passed, {failed} failed")
    sys.exit(failed > 0 and not write)


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--write"]
    if len(arguments) != 2:
        sys.exit(__doc__)
    main(*arguments, "--write" in sys.argv)
