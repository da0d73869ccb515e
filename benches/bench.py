#!/usr/bin/env python3
"""The one bench that tells the truth: whole programs in turn in one run, memory, scaling, the live path; as table and JSON.

Not here: the stages of one run (`cargo bench`), writers, queries, outages (targets of their own in the Makefile).
A missed target is printed, never an error: speed is no test. What is left out is said.

Environment: NETSPECTRA_BIN_DIR, the folder of the programs (default: target/release).
"""
import argparse, datetime, json, os, pathlib, platform, re, shlex, shutil, signal, statistics, subprocess, sys

sys.dont_write_bytecode = True  # the folder of the benches stays as it is
import cluster
import live as live_bench
from compare import BENCH, BINARIES, OUT, ROOT, analyzer, capture, floor_mb, measure, medians, ratios, round_robin, target

TWO, ONE, WINDOWS = "pcap-analyzer -w 2", "pcap-analyzer -w 1", "pcap-analyzer -w 2 --window 1s"
TCPDUMP, WC, NFPCAPD, SOFTFLOWD, ARGUS = "tcpdump -w /dev/null", "wc -l", "nfpcapd", "softflowd", "argus"
SLOW = (NFPCAPD, SOFTFLOWD, ARGUS)
ROUNDS = 7
FEW = 3  # rounds of large captures
MANY_PACKETS = 25  # millions, from which on there are few rounds
LARGE = 10**9  # bytes of a capture that is not kept
PACKET_BYTES = 77  # of a minimum-size packet in a capture, about
SIZES = {"mixed": 2, "1514": 1}  # frames and how many millions of them
# Millions of packets, flows to draw from, exponent; the shapes of a group take turns.
TEN = (10, 1_000_000, 1.05)
FIXED = (10, 1000, 1.05)
SHAPES = {
    "packets, flows alike": [(1, 100_000, 1.05), TEN, (100, 10_000_000, 1.05)],
    "packets, the same flows": [TEN, (100, 1_000_000, 1.05)],
    "flows": [FIXED, TEN, (10, 20_000_000, 1.05), (10, 1_000_000, 0), (10, 1_000_000, 1.4)],
    "memory": [FIXED, (25, 20_000_000, 0), (60, 20_000_000, 0)],
}


def others(path, *names):
    """The commands of other programs over a capture, by name; what is not installed is left out, and said."""
    # No control socket: with one softflowd -r waits for somebody to connect. A table for all flows, IPv6 too, and every
    # flow as NetFlow 9 to a port of the loopback where nobody listens.
    softflowd = ["-d", "-6", "-m", "20000000", "-v", "9", "-n", "127.0.0.1:9", "-c", "none", "-p", OUT / "pid"]
    commands = {
        TCPDUMP: ["tcpdump", "-r", path, "-w", "/dev/null"],
        WC: ["wc", "-l", path],
        NFPCAPD: ["nfpcapd", "-r", path, "-w", OUT],
        SOFTFLOWD: ["softflowd", "-r", path, *softflowd],
        # Without Debian's argus.conf, and one record a flow: the capture is a minute long.
        ARGUS: ["argus", "-X", "-S", "3600", "-r", path, "-w", OUT / "argus"],
    }
    there = {name: commands[name] for name in names if shutil.which(commands[name][0])}
    for name in names:
        if name not in there:
            print(f"  {name}: not installed, left out")
    return there


def as_typed(command, path):
    """A command line without the paths of this machine."""
    return shlex.join(map(str, command)).replace(str(path), "FILE").replace(str(OUT), "OUT")


def written(command):
    """Rows and bytes of all csv files that a run of pcap-analyzer leaves, and its rows of five-tuples."""
    measure(command)
    found = {"rows": 0, "csv_bytes": 0, "flows": 0}
    for path in OUT.rglob("*.csv"):
        with open(path, "rb", buffering=0) as file:
            found["rows"] += sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")) - 1
        found["csv_bytes"] += path.stat().st_size
    for path in OUT.rglob("summary.json"):
        found["flows"] += json.loads(path.read_text())["tasks"]["per_five_tuple"]["rows"]
    return found


def spread(result):
    return f"{result['wall_min']:.3f}..{result['wall_max']:.3f}"


def peak(result):
    """The peak in MB; nothing where it is not known."""
    return f"{result['peak_mb']:.0f}" if result["peak_mb"] > result["floor_mb"] else ""


def summed_up(runs, millions):
    walls = [run["wall"] for run in runs]
    middle = medians(runs)
    return {
        **middle,
        "rate": millions / middle["wall"],
        "wall_min": min(walls),
        "wall_max": max(walls),
        "floor_mb": floor_mb(),
    }


def table(runs, millions):
    """Prints a line a command, the last column its wall time over that of the first."""
    first, results = next(iter(runs.values())), {}
    print(f"\n  {'command':<32} {'runs':>4} {'wall s':>8} {'min..max':>14} {'CPU s':>8} {'peak MB':>8} {'M packets/s':>12} {'of first':>9}")
    for name, of_name in runs.items():
        result = results[name] = summed_up(of_name, millions)
        result["of_first"] = statistics.median(ratios(of_name, first))
        line = f"  {name:<32} {len(of_name):>4} {result['wall']:8.3f} {spread(result):>14} {result['cpu']:8.3f}"
        print(f"{line} {peak(result):>8} {result['rate']:12.2f} {result['of_first']:8.2f}x")
    return results


def forget(flags, *paths):
    """Removes captures that are too large to be kept, unless they are asked for."""
    for path in paths:
        if not flags.keep and path.stat().st_size > LARGE:
            path.unlink()


def batch(flags):
    """Ten million minimum-size packets, six tasks, csv, beside other programs."""
    millions = 1 if flags.quick else 10
    path = capture(millions)
    ours = {TWO: analyzer(path, 2), ONE: analyzer(path, 1), WINDOWS: analyzer(path, 2, "--window", "1s")}
    found = {name: written(ours[name]) for name in (TWO, WINDOWS)}
    print(f"\nbatch: {millions} M minimum-size packets, {found[TWO]['flows']} flows, {path.stat().st_size / 1e6:.0f} MB")
    rest = (TCPDUMP, WC, *SLOW)
    tools = {**ours, **others(path, *rest)}
    runs = round_robin(tools, flags.rounds, few=SLOW)
    results = table(runs, millions)
    for name, what in found.items():
        print(f"  {name}: {what['rows']} rows, {what['csv_bytes'] / 1e6:.0f} MB of csv")
    targets = [
        target("peak memory, 2 workers", results[TWO]["peak_mb"], " MB", 250),
        target("--window 1s over all", ratios(runs[WINDOWS], runs[TWO]), "x", 1.3),
        target("1 worker over 2", ratios(runs[ONE], runs[TWO]), "x", 1.8, at_least=True),
    ]
    if TCPDUMP in runs:
        targets.append(target("2 workers over tcpdump's copy", ratios(runs[TWO], runs[TCPDUMP]), "x", 0.6))
    if NFPCAPD in runs:
        targets.append(target("nfpcapd over 2 workers", ratios(runs[NFPCAPD], runs[TWO]), "x", 16, at_least=True))
    part = {"packets": millions * 10**6, "capture_bytes": path.stat().st_size, "written": found}
    forget(flags, path)
    lines_of = {name: as_typed(command, path) for name, command in tools.items() if name in SLOW}
    absent = [f"{name}: not installed" for name in rest if name not in runs]
    return {**part, "command_lines": lines_of, "commands": results, "targets": targets, "left_out": absent}


def frames(flags):
    """Frames of all sizes, and full ones, against reading every byte once."""
    sizes, targets = {}, []
    for size, millions in SIZES.items():
        millions = millions / 10 if flags.quick else millions
        path = capture(millions, size=size)
        length = path.stat().st_size
        print(f"\nframes: {millions:g} M of size {size}, {length / 1e6:.0f} MB")
        runs = round_robin({TWO: analyzer(path, 2), **others(path, WC, TCPDUMP)}, flags.rounds)
        sizes[size] = {"packets": millions * 1e6, "capture_bytes": length, "commands": table(runs, millions)}
        if size == "mixed" and WC in runs:
            targets.append(target("frames of mixed sizes: 2 workers over wc -l", ratios(runs[TWO], runs[WC]), "x", 2))
        forget(flags, path)
    return {"sizes": sizes, "targets": targets, "left_out": []}


def available():
    """Bytes of memory that may be taken, those of the page cache too."""
    with open("/proc/meminfo") as file:
        return int(re.search(r"MemAvailable:\s+(\d+)", file.read())[1]) * 1024


def fitting(shapes, tenth):
    """The captures of a group by shape, as far as disk and page cache have room for them and for what is made of them."""
    paths, absent, taken = {}, [], 0
    for shape in shapes:
        millions, flows, zipf = shape[0] * tenth, round(shape[1] * tenth), shape[2]
        needed = millions * 1e6 * PACKET_BYTES
        if shutil.disk_usage(BENCH).free < 1.5 * needed or available() < 1.5 * (taken + needed):
            absent.append(f"{millions:g} M packets of {flows} flows, zipf {zipf:g}: {needed / 1e9:.1f} GB have no room")
            print(f"  {absent[-1]}, left out")
            continue
        paths[shape] = capture(millions, flows, zipf)
        taken += needed
    return paths, absent


def group(name, flags):
    """What two workers make of the shapes of a group in turn: runs and results by shape, and what was left out."""
    tenth = 0.1 if flags.quick else 1
    paths, absent = fitting(SHAPES[name], tenth)
    tools = {shape: analyzer(path, 2) for shape, path in paths.items()}
    found = {shape: written(command) for shape, command in tools.items()}
    large = [shape for shape in tools if shape[0] >= MANY_PACKETS]
    runs = round_robin(tools, flags.rounds, few=large, of_few=FEW)
    print(f"\nscale by {name}: 2 workers, minimum-size packets")
    heads = f"{'M pkts':>6} {'drawn from':>11} {'zipf':>5} {'flows':>10} {'rows':>10} {'runs':>4} {'wall s':>8} {'min..max':>14}"
    print(f"  {heads} {'ns/packet':>10} {'peak MB':>8}")
    results = {}
    for shape, of_shape in runs.items():
        millions = shape[0] * tenth
        cost = {"packets": millions * 1e6, "drawn_from": round(shape[1] * tenth), "zipf": shape[2], **found[shape]}
        it = results[shape] = {**cost, **summed_up(of_shape, millions)}
        it["ns_per_packet"] = it["wall"] * 1e3 / millions
        line = f"  {millions:>6g} {it['drawn_from']:>11} {it['zipf']:>5g} {it['flows']:>10} {it['rows']:>10} {len(of_shape):>4}"
        print(f"{line} {it['wall']:8.3f} {spread(it):>14} {it['ns_per_packet']:10.1f} {peak(it):>8}")
    forget(flags, *paths.values())
    return runs, results, absent


def scale(flags):
    """Cost by packets, flows and how unequal these are; memory a flow."""
    part = {"groups": {}, "targets": [], "left_out": []}
    for name in SHAPES:
        runs, results, absent = group(name, flags)
        part["groups"][name] = list(results.values())
        part["left_out"] += absent
        large = max(runs, default=TEN)
        if TEN in runs and large[0] == 100:
            over = [each * TEN[0] / large[0] for each in ratios(runs[large], runs[TEN])]
            sizes = " over ".join(f"{results[shape]['packets'] / 1e6:g} M" for shape in (large, TEN))
            part["targets"].append(target(f"ns a packet, {sizes}, {name.split(', ')[1]}", over, "x", 1.2))
        if name == "memory" and FIXED in runs and large != FIXED:
            many = results[large]
            # A fixed part too small to be known counts as none, so that the memory of this program flatters nothing.
            fixed = results[FIXED]["peak_mb"] if peak(results[FIXED]) else 0
            beyond = (many["peak_mb"] - fixed) * 1e6 / many["flows"]
            part["targets"].append(target(f"memory a flow, {many['flows'] / 1e6:.1f} M flows", beyond, " B", 100))
    return part


def live(flags):
    """The live path, by the parts of its own bench that have a target here."""
    options = argparse.Namespace(quick=flags.quick, rounds=flags.rounds, pps=100_000, rate=2.5)
    part = {"targets": [], "left_out": []}
    for name in ("rates", "capture"):
        missing = [tool for tool in live_bench.NEEDS[name] if not shutil.which(tool)]
        if missing or name in live_bench.NEEDS_ROOT and os.geteuid():
            part["left_out"].append(f"{name}: needs {', '.join(missing) or 'root'}")
            print(f"\n  {part['left_out'][-1]}, left out")
            continue
        print(f"\nlive: {name}")
        part[name] = live_bench.PARTS[name](options)
        part["targets"] += part[name].pop("targets")
    return part


def processes(flags):
    """One batch job over several processes, the answers compared; the last part, as it moves to a network of its own."""
    print("\nprocesses: one batch job")
    alone = cluster.own_network()
    if not alone:
        print("  without root and ip (iproute2) the bytes over the loopback are those of everybody on this machine")
    return {"own_network": alone, **cluster.batch(flags), "left_out": []}


PARTS = {"batch": batch, "frames": frames, "scale": scale, "live": live, "processes": processes}
TOOLS = [
    ("hyperfine", "--version"),
    ("tcpdump", "--version"),
    ("wc", "--version"),
    ("nfpcapd", "-V"),
    ("softflowd", "-h"),
    ("argus", "-h"),
    ("nats-server", "--version"),
    ("tcpreplay", "--version"),
]


def said(*command):
    """What a program says of itself; nothing where it is not installed."""
    if not shutil.which(command[0]):
        return ""
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return (run.stdout + run.stderr).strip()


def machine():
    """Where and with what this runs."""
    with open("/proc/cpuinfo") as file:
        model = re.search(r"model name\s*: (.*)", file.read())
    versions = {tool[0]: re.search(r"\d+(\.\d+)+", said(*tool)) for tool in TOOLS}
    return {
        "date": datetime.date.today().isoformat(),
        "processor": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "kernel": platform.release(),
        "virtualisation": said("systemd-detect-virt"),
        "load": os.getloadavg()[0],
        "commit": said("git", "describe", "--tags", "--always", "--dirty"),
        "tools": {name: version[0] for name, version in versions.items() if version},
    }


def lines(heads, rows):
    """A Markdown table."""
    yield "\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"


def of_commands(commands):
    heads = ("command", "runs", "wall s", "min..max", "CPU s", "peak MB", "M packets/s", "of first")
    yield from lines(heads, (
        (f"`{name}`", len(it["runs"]), f"{it['wall']:.3f}", spread(it), f"{it['cpu']:.3f}", peak(it), f"{it['rate']:.1f}",
         f"{it['of_first']:.2f}x")
        for name, it in commands.items()
    ))


def of_batch(part):
    flows = part["written"][TWO]["flows"]
    yield f"{part['packets'] / 1e6:g} M minimum-size packets, {flows} flows, {part['capture_bytes'] / 1e6:.0f} MB; six tasks, csv."
    if part["command_lines"]:
        yield "By five-tuple alone: " + ", ".join(f"`{line}`" for line in part["command_lines"].values()) + "."
    yield from of_commands(part["commands"])
    yield from lines(("written by", "rows", "MB of csv"), (
        (f"`{name}`", what["rows"], f"{what['csv_bytes'] / 1e6:.0f}") for name, what in part["written"].items()
    ))


def of_frames(part):
    for number, (size, it) in enumerate(part["sizes"].items()):
        yield "\n" * (number > 0) + f"Frames of size {size}: {it['packets'] / 1e6:g} M, {it['capture_bytes'] / 1e6:.0f} MB."
        yield from of_commands(it["commands"])


def of_scale(part):
    yield "Two workers, minimum-size packets, one window of everything. One worker is in the part batch."
    heads = ("M packets", "drawn from", "zipf", "flows", "rows", "runs", "wall s", "min..max", "ns a packet", "peak MB")
    for name, results in part["groups"].items():
        yield f"\nBy {name}:"
        yield from lines(heads, (
            (f"{it['packets'] / 1e6:g}", it["drawn_from"], f"{it['zipf']:g}", it["flows"], it["rows"], len(it["runs"]),
             f"{it['wall']:.3f}", spread(it), f"{it['ns_per_packet']:.0f}", peak(it))
            for it in results
        ))


def within(runs, key, scale=1):
    each = [run[key] / scale for run in runs]
    return f"{min(each):.3f}..{max(each):.3f}"


def of_live(part):
    if rates := part.get("rates"):
        yield f"A replay through nats-server into an engine, all on this machine; {rates['packets'] / 1e6:g} M packets"
        yield f"({rates['packets_single'] / 1e6:g} M single), six tasks, csv. Lost: the worst of all rounds."
        heads = ("variant", "M packets/s", "min..max", "lost", "unaccounted", "CPU us a packet: probe, engine, server")
        yield from lines(heads, (
            (name, f"{it['rate'] / 1e6:.3f}", within(it["runs"], "rate", 1e6), it["lost"], it["unaccounted"],
             ", ".join(f"{us:.3f}" for us in it["cpu_us"].values()))
            for name, it in rates["variants"].items()
        ))
    if cost := part.get("capture"):
        yield f"\nCapturing {cost['pps']} packets/s from a veth pair:"
        yield from lines(("program", "CPU us a packet", "min..max", "captured of sent"), (
            (f"`{name}`", f"{it['cpu_us']:.3f}", within(it["runs"], "cpu_us"), f"{it['captured']} of {it['sent']}")
            for name, it in cost["programs"].items()
        ))


def of_processes(part):
    yield f"pcap-analyzer, processes x workers on this machine, {part['packets'] / 1e6:g} M packets; the answers are the same bytes."
    if not part["own_network"]:
        yield "The bytes between them are those of everybody on this machine."
    heads = ("shape", "wall s", "min..max", "CPU s", "min..max", "peak MB of all", "MB between them")
    yield from lines(heads, (
        (name, f"{it['wall']:.3f}", within(it["runs"], "wall"), f"{it['cpu']:.3f}", within(it["runs"], "cpu"), f"{it['peak_mb']:.0f}",
         f"{it['bytes_between'] / 1e6:.0f}")
        for name, it in part["shapes"].items()
    ))


REPORTS = {"batch": of_batch, "frames": of_frames, "scale": of_scale, "live": of_live, "processes": of_processes}


def runs_within(part):
    """The runs of every command of a part, wherever they are in it."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        if key == "runs":
            yield value
        elif isinstance(value, (dict, list)):
            yield from runs_within(value)


def noise(parts):
    """How far the rounds of each command lie from each other, a sentence a part."""
    for name, part in parts.items():
        keys = ("wall", "rate", "cpu_us")
        each = [[run[next(key for key in keys if key in run)] for run in runs] for runs in runs_within(part) if len(runs) > 1]
        spreads = sorted(max(values) / min(values) for values in each)
        if spreads:
            most = f"{statistics.median(spreads):.2f} in the middle, {spreads[-1]:.2f} at most"
            yield f"In the part {name} the largest figure of a command is {spreads[0]:.2f} times its smallest at least, {most}."
        else:
            yield f"The part {name} had one round, which tells nothing of noise."


def report(figures):
    """The figures as Markdown."""
    it = figures["machine"]
    yield "# Benchmarks\n"
    yield f"Made by `{figures['command']}` on {it['date']}, commit {it['commit']}. All programs of a table take turns in one run;"
    yield f"figures are medians of up to {figures['rounds']} rounds, of memory the most. `of first` and other ratios are medians of each"
    yield "round's own ratio, so that a slow moment meets both sides. Where a peak is missing it is too small to be known.\n"
    where = f"{it['processor']}, {it['cores']} cores, {it['memory_gb']} GB, Linux {it['kernel']}"
    yield f"Machine: {where}, virtualisation {it['virtualisation'] or 'unknown'}; load {it['load']:.1f} at the start.\n"
    yield "Tools: " + ", ".join(f"{name} {version}" for name, version in it["tools"].items()) + "."
    for name, part in figures["parts"].items():
        yield f"\n## {name.capitalize()}\n"
        yield from REPORTS[name](part)
        for what in part["left_out"]:
            yield f"\nLeft out: {what}."
    yield "\n## Targets"
    yield from lines(("part", "what", "measured", "min..max", "bound", ""), (
        (name, one["name"], f"{one['value']:.2f}{one['unit']}",
         f"{min(one['each']):.2f}..{max(one['each']):.2f}" if len(one["each"]) > 1 else "",
         one["bound"], "reached" if one["reached"] else "**missed**")
        for name, part in figures["parts"].items() for one in part["targets"]
    ))
    yield "\n## Noise\n"
    yield from noise(figures["parts"])


def asked(flags):
    """The command that repeats this."""
    words = [word for part in flags.only or () for word in ("--only", part)]
    words += ["--rounds", str(flags.rounds)] * (flags.rounds != ROUNDS and not flags.quick) + ["--quick"] * flags.quick
    return f'make bench BENCH_FLAGS="{shlex.join(words)}"' if words else "make bench"


def measured(flags):
    """All parts that are asked for; the JSON is written after each of them."""
    for name in ("pcap-analyzer", "pcapgen", "ns-probe", "ns-engine"):
        if not (BINARIES / name).exists():
            sys.exit(f"{BINARIES / name} is missing: `cargo build --release`, or set NETSPECTRA_BIN_DIR")
    if not shutil.which("hyperfine"):
        sys.exit("hyperfine is not installed; on Debian: apt-get install hyperfine")
    BENCH.mkdir(parents=True, exist_ok=True)
    figures = {"machine": machine(), "command": asked(flags), "rounds": flags.rounds, "parts": {}}
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; {flags.rounds} rounds in turn, medians")
    for name in [name for name in PARTS if name in (flags.only or PARTS)]:
        figures["parts"][name] = PARTS[name](flags)
        (BENCH / "bench.json").write_text(json.dumps(figures, indent=2) + "\n")
    shutil.rmtree(OUT, ignore_errors=True)
    targets = [one for part in figures["parts"].values() for one in part["targets"]]
    print(f"\n  {sum(one['reached'] for one in targets)} of {len(targets)} targets reached")
    print(f"  also in {os.path.relpath(BENCH / 'bench.json')}")
    return figures


def main():
    flags = argparse.ArgumentParser(description="Measures all that NetSpectra promises of its speed, in one run.")
    flags.add_argument("--rounds", type=int, default=ROUNDS, help=f"runs of each command (default: {ROUNDS})")
    flags.add_argument("--only", action="append", choices=PARTS, help="only this part; may be given again")
    flags.add_argument("--quick", action="store_true", help="a tenth of the packets, one round")
    flags.add_argument("--keep", action="store_true", help="captures above 1 GB too")
    flags.add_argument("--report", type=pathlib.Path, metavar="FILE", help="also write the figures as Markdown")
    flags.add_argument("--from-json", type=pathlib.Path, metavar="FILE", help="measure nothing, take these figures")
    flags = flags.parse_args()
    flags.rounds = 1 if flags.quick else flags.rounds
    if flags.rounds < 1:
        sys.exit("--rounds: at least 1")
    # So that every `with` block ends what it started.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, lambda *_: sys.exit("ended by a signal"))
    figures = json.loads(flags.from_json.read_text()) if flags.from_json else measured(flags)
    if flags.report:
        flags.report.write_text("\n".join(report(figures)) + "\n")


if __name__ == "__main__":
    main()
