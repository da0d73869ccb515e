#!/usr/bin/env python3
"""What the benches of whole programs share: captures, commands in turn, medians, targets.

Captures are cached in target/bench by their options; delete them after a change to pcapgen.

Environment: NETSPECTRA_BIN_DIR, the folder of the programs (default: target/release).
"""
import json, os, pathlib, re, resource, shlex, shutil, signal, statistics, subprocess, sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").absolute()
BINARIES = pathlib.Path(os.environ.get("NETSPECTRA_BIN_DIR") or TARGET / "release").absolute()
BENCH = TARGET / "bench"
OUT = BENCH / "out"
FLOWS_A_MILLION = 100_000  # drawn from for each million packets: rows grow with packets, as they do in one link's traffic


def capture(millions, flows=None, zipf=1.05, size="min"):
    """The path of a capture of that many million packets, in the page cache as far as that goes."""
    flows = flows or round(millions * FLOWS_A_MILLION)
    shape = "" if zipf == 1.05 else f"-zipf{zipf:g}"
    path = BENCH / f"{size}-{millions:g}M-{flows}flows{shape}.pcap"
    if not path.exists():
        print(f"generating {path.name}", file=sys.stderr)
        part = path.with_suffix(".part")
        options = ["--packets", round(millions * 1e6), "--flows", flows, "--zipf", zipf, "--size", size]
        subprocess.run([BINARIES / "pcapgen", *map(str, options), "-o", part], check=True)
        part.rename(path)
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 22):
            pass
    return path


def analyzer(path, workers, *more):
    # The shipped configuration by name: its six tasks, whatever folder this is run from.
    config = ROOT / "config.yaml"
    return [BINARIES / "pcap-analyzer", "-c", config, "-w", str(workers), "-q", "-o", OUT, *more, path]


def measure(command):
    """One run: wall and CPU seconds (user and system) by hyperfine, peak resident MB (10^6 bytes) by wait4.

    hyperfine is given one run at a time, so that commands can take turns, and its own start is not in its figures. It tells
    no peak: Linux adds to what it tells of an ended process the largest of those that this one waited for. Up to `floor_mb` the
    peak is Python's own, which Linux keeps across exec; the same run under wait4 alone gives the same figures.
    """
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    os.sync()  # or the run pays for writing back what the one before it left
    told = BENCH / "hyperfine.json"
    words = ["hyperfine", "-N", "--style", "none", "--runs", "1", "--export-json", told, shlex.join(map(str, command))]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(words, process_group=0, **quiet)
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)  # hyperfine and the command
        raise
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        again = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        sys.exit(f"{shlex.join(map(str, command))}: exit {again.returncode}\n{again.stderr}")
    (run,) = json.loads(told.read_text())["results"]
    return {"wall": run["mean"], "cpu": run["user"] + run["system"], "peak_mb": usage.ru_maxrss * 1024 / 1e6}


def floor_mb():
    """The peak of this program, below which that of a command is not known."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def round_robin(tools, rounds, few=(), of_few=2):
    """All runs by name: A B C A B C ..., so that a slow moment of the machine meets every program.

    Those of `few`, which are slow, take part in the first rounds only.
    """
    runs = {name: [] for name in tools}
    for number in range(rounds):
        for name, command in tools.items():
            if number < of_few or name not in few:
                runs[name].append(measure(command))
        print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    return runs


def medians(runs):
    """Of wall and CPU time the median; of memory the most any run took."""
    middle = {key: statistics.median(run[key] for run in runs) for key in ("wall", "cpu")}
    return {**middle, "peak_mb": max(run["peak_mb"] for run in runs), "runs": runs}


def ratios(over, under, key="wall"):
    """Each round's own ratio: the machine's speed changes from one to the next."""
    return [a[key] / max(b[key], 1e-9) for a, b in zip(over, under)]


def configured(texts, prefix):
    """The command over 10 M packets of each configuration, written to a file of its own, by its name."""
    BENCH.mkdir(parents=True, exist_ok=True)
    path = capture(10)
    for name, text in texts.items():
        config = BENCH / f"{prefix}-{re.sub('[^a-z]', '-', name.lower())}.yaml"
        config.write_text(text)
        yield name, [BINARIES / "pcap-analyzer", "-q", "-w", "2", "-c", config, "-o", OUT, path]


def against_first(commands, rounds, first):
    """Runs commands over 10 M packets in turn and prints them, with each one's wall time over that of the first."""
    runs = round_robin(commands, rounds)
    base = next(iter(runs.values()))
    print(f"{'':20} {'wall':>8} {'CPU':>8} {'peak':>8} {'M packets/s':>12} {'of ' + first:>9}   medians of {rounds}, 2 workers")
    for name, measured in runs.items():
        middle = medians(measured)
        wall, cpu, peak = (middle[key] for key in ("wall", "cpu", "peak_mb"))
        print(f"{name:20} {wall:7.2f}s {cpu:7.2f}s {peak:6.0f}MB {10 / wall:12.1f} {statistics.median(ratios(measured, base)):8.2f}x")


def with_writers(*writers):
    """The shipped configuration with these writers instead of its own, a line each."""
    shipped = (ROOT / "config.yaml").read_text()
    head = re.sub(r"(?m)^writers:.*?\n(?=\S)", "", shipped, flags=re.S)
    return head + "\nwriters:\n" + "".join(f"  - {writer}\n" for writer in writers)


def target(name, measured, unit, limit, at_least=False):
    """Holds a figure, or the median of each round's, against its bound, and prints it."""
    each = measured if isinstance(measured, list) else [measured]
    value = statistics.median(each)
    reached = value >= limit if at_least else value <= limit
    bound = f"{'at least' if at_least else 'at most'} {limit:g}{unit}"
    spread = f"{min(each):.2f}..{max(each):.2f}" if len(each) > 1 else ""
    print(f"  {name:<50} {value:8.2f}{unit:<3} {spread:>14} {bound:<16} {'reached' if reached else 'missed'}")
    return {"name": name, "value": value, "each": each, "unit": unit, "bound": bound, "reached": reached}
