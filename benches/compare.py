#!/usr/bin/env python3
"""Whole programs against each other on one synthetic capture: wall time, CPU seconds and peak memory.

Not here: the stages of one run (`cargo bench`). A missed target is printed, never an error: speed is no test.
Captures are cached in target/bench by their options; delete them after a change to pcapgen.

Environment: NETSPECTRA_BIN_DIR, the folder of pcap-analyzer and pcapgen (default: target/release).
"""
import argparse, json, os, pathlib, re, shutil, statistics, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").absolute()
BINARIES = pathlib.Path(os.environ.get("NETSPECTRA_BIN_DIR") or TARGET / "release").absolute()
BENCH = TARGET / "bench"
OUT = BENCH / "out"
FLOWS_A_MILLION = 100_000  # drawn from for each million packets: rows grow with packets, as they do in one link's traffic
NFPCAPD_ROUNDS = 2
SCALE_ROUNDS = 3
SCALE_MILLIONS = (1, 10, 40)
TWO, ONE, TCPDUMP, WC, NFPCAPD = "pcap-analyzer -w 2", "pcap-analyzer -w 1", "tcpdump -w /dev/null", "wc -l", "nfpcapd"


def capture(millions):
    """The path of a capture of that many million minimum-size packets, in the page cache."""
    flows = millions * FLOWS_A_MILLION
    path = BENCH / f"min-{millions}M-{flows}flows.pcap"
    if not path.exists():
        print(f"generating {path.name}", file=sys.stderr)
        part = path.with_suffix(".part")
        size = ["--packets", str(millions * 1_000_000), "--flows", str(flows), "--zipf", "1.05", "--size", "min"]
        subprocess.run([BINARIES / "pcapgen", *size, "-o", part], check=True)
        part.rename(path)
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 22):
            pass
    return path


def commands(path):
    """Every command of the comparison by name; `None` where the tool is not installed."""
    wanted = {
        TWO: analyzer(path, 2),
        ONE: analyzer(path, 1),
        TCPDUMP: ["tcpdump", "-r", path, "-w", "/dev/null"],
        WC: ["wc", "-l", path],
        NFPCAPD: ["nfpcapd", "-r", path, "-w", OUT],
    }
    return {name: command if shutil.which(command[0]) else None for name, command in wanted.items()}


def analyzer(path, workers):
    # The shipped configuration by name: its six tasks, whatever folder this is run from.
    return [BINARIES / "pcap-analyzer", "-c", ROOT / "config.yaml", "-w", str(workers), "-q", "-o", OUT, path]


def measure(command):
    """One run: wall seconds, CPU seconds (user and system) and peak resident MB (10^6 bytes)."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    os.sync()  # or the run pays for writing back what the one before it left
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(map(str, command))}: exit {child.returncode}\n{said.read().decode(errors='replace')}")
    # Below about 15 MB this is Python's own size: Linux keeps a process's peak across exec.
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss * 1024 / 1e6}


def round_robin(tools, rounds):
    """All runs by name: A B C A B C ..., so that a slow moment of the machine meets every program."""
    runs = {name: [] for name in tools}
    for number in range(rounds):
        for name, command in tools.items():
            if name == NFPCAPD and number >= NFPCAPD_ROUNDS:
                continue
            runs[name].append(measure(command))
        print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    return runs


def medians(runs):
    """Of wall and CPU time the median; of memory the most any run took."""
    middle = {key: statistics.median(run[key] for run in runs) for key in ("wall", "cpu")}
    return {**middle, "peak_mb": max(run["peak_mb"] for run in runs), "runs": runs}


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
    base = [run["wall"] for run in next(iter(runs.values()))]
    print(f"{'':20} {'wall':>8} {'CPU':>8} {'peak':>8} {'M packets/s':>12} {'of ' + first:>9}   medians of {rounds}, 2 workers")
    for name, measured in runs.items():
        middle = medians(measured)
        wall, cpu, peak = (middle[key] for key in ("wall", "cpu", "peak_mb"))
        # Each round's own ratio: the machine's speed changes from one to the next.
        ratio = statistics.median(run["wall"] / before for run, before in zip(measured, base))
        print(f"{name:20} {wall:7.2f}s {cpu:7.2f}s {peak:6.0f}MB {10 / wall:12.1f} {ratio:8.2f}x")


def with_writers(*writers):
    """The shipped configuration with these writers instead of its own, a line each."""
    shipped = (ROOT / "config.yaml").read_text()
    head = re.sub(r"(?m)^writers:.*?\n(?=\S)", "", shipped, flags=re.S)
    return head + "\nwriters:\n" + "".join(f"  - {writer}\n" for writer in writers)


def flow_count():
    """Rows of the five-tuple table that the last analyzer run wrote."""
    with open(OUT / "all" / "summary.json") as file:
        return json.load(file)["tasks"]["per_five_tuple"]["rows"]


def target(name, value, unit, limit, at_least=False):
    reached = value >= limit if at_least else value <= limit
    bound = f"{'at least' if at_least else 'at most'} {limit:g}{unit}"
    print(f"  {name:<36} {value:8.2f}{unit:<3} {bound:<16} {'reached' if reached else 'missed'}")
    return {"name": name, "value": value, "bound": bound, "reached": reached}


def compare(millions, rounds):
    path = capture(millions)
    tools = commands(path)
    for name in [name for name, command in tools.items() if command is None]:
        print(f"{name}: not installed, left out")
        del tools[name]
    measure(tools[TWO])
    flows = flow_count()
    print(f"{millions} M packets, {flows} flows, {path.stat().st_size / 1e6:.0f} MB; {rounds} rounds in turn, medians")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start\n")
    results = {name: medians(runs) for name, runs in round_robin(tools, rounds).items()}

    print(f"  {'command':<24} {'runs':>4} {'wall s':>8} {'min..max':>14} {'CPU s':>8} {'peak MB':>8} {'M packets/s':>12}")
    for name, result in results.items():
        walls = [run["wall"] for run in result["runs"]]
        spread = f"{min(walls):.2f}..{max(walls):.2f}"
        rate = millions / result["wall"]
        print(f"  {name:<24} {len(walls):>4} {result['wall']:8.3f} {spread:>14} {result['cpu']:8.3f} {result['peak_mb']:8.0f} {rate:12.2f}")

    def ratio(over, under):
        return results[over]["wall"] / results[under]["wall"]

    print("\n  targets (stated for 10 M packets on 2 cores)")
    targets = []
    if TCPDUMP in results:
        targets.append(target("wall time over tcpdump's copy", ratio(TWO, TCPDUMP), "x", 1.0))
    if NFPCAPD in results:
        targets.append(target("nfpcapd's wall time over ours", ratio(NFPCAPD, TWO), "x", 10, at_least=True))
    targets.append(target("1 worker's wall time over that of 2", ratio(ONE, TWO), "x", 1.6, at_least=True))
    targets.append(target("peak memory, 2 workers", results[TWO]["peak_mb"], " MB", 400))
    return {"packets": millions * 1_000_000, "flows": flows, "commands": results, "targets": targets}


def scale(rounds):
    tools = {millions: analyzer(capture(millions), 2) for millions in SCALE_MILLIONS}
    flows = {}
    for millions, command in tools.items():
        measure(command)
        flows[millions] = flow_count()
    results = {millions: medians(runs) for millions, runs in round_robin(tools, rounds).items()}
    print(f"\n  {'packets':<10} {'flows':>9} {'wall s':>8} {'ns/packet':>10} {'peak MB':>8}")
    for millions, result in results.items():
        result.update(flows=flows[millions], ns_per_packet=result["wall"] * 1e3 / millions)
        print(f"  {millions:>3} M      {flows[millions]:>9} {result['wall']:8.3f} {result['ns_per_packet']:10.1f} {result['peak_mb']:8.0f}")
    costs = [result["ns_per_packet"] for result in results.values()]
    return {"sizes": results, "targets": [target("dearest ns a packet over cheapest", max(costs) / min(costs), "x", 1.5)]}


def main():
    flags = argparse.ArgumentParser(description="Compares pcap-analyzer with other whole programs on one capture.")
    flags.add_argument("--rounds", type=int, default=7, help="runs of each command (default: 7)")
    flags.add_argument("--scale", action="store_true", help="also ns a packet at 1, 10 and 40 M packets (3 GB of disk)")
    flags.add_argument("--quick", action="store_true", help="1 M packets instead of 10 M")
    flags = flags.parse_args()
    if flags.rounds < 1:
        sys.exit("--rounds: at least 1")
    for name in ("pcap-analyzer", "pcapgen"):
        if not (BINARIES / name).exists():
            sys.exit(f"{BINARIES / name} is missing: `cargo build --release`, or set NETSPECTRA_BIN_DIR")
    BENCH.mkdir(parents=True, exist_ok=True)
    report = compare(1 if flags.quick else 10, flags.rounds)
    if flags.scale:
        report["scale"] = scale(min(flags.rounds, SCALE_ROUNDS))
    shutil.rmtree(OUT, ignore_errors=True)
    (BENCH / "compare.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n  also in {os.path.relpath(BENCH / 'compare.json')}")


if __name__ == "__main__":
    main()
