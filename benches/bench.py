#!/usr/bin/env python3
"""The one bench that tells the truth: whole programs in turn in one run, memory, scaling, the live path; as table and JSON.

Not here: the stages of one run (`cargo bench`), clusters, writers, queries, outages (targets of their own in the Makefile).
A missed target is printed, never an error: speed is no test.

Environment: NETSPECTRA_BIN_DIR, the folder of the programs (default: target/release).
"""
import argparse, datetime, json, os, pathlib, platform, shutil, subprocess, sys

sys.dont_write_bytecode = True  # the folder of the benches stays as it is
import live as live_bench
from compare import BENCH, BINARIES, OUT, ROOT, analyzer, capture, measure, medians, ratio, round_robin, target

TWO, ONE, WINDOWS = "pcap-analyzer -w 2", "pcap-analyzer -w 1", "pcap-analyzer -w 2 --window 1s"
TCPDUMP, WC, NFPCAPD, SOFTFLOWD, ARGUS = "tcpdump -w /dev/null", "wc -l", "nfpcapd", "softflowd", "argus"
SLOW = (NFPCAPD, SOFTFLOWD, ARGUS)
FEW = 3  # rounds of large captures
LARGE = 2 << 30  # bytes of a capture that is not kept


def others(path, *names):
    """The commands of other programs over a capture, by name; what is not installed is left out, and said."""
    # softflowd: a table as large as need be, IPv6 too, and NetFlow 9 to a port of the loopback where nobody listens.
    softflowd = ["-d", "-6", "-m", "20000000", "-v", "9", "-n", "127.0.0.1:9", "-p", OUT / "pid", "-c", "none"]
    commands = {
        TCPDUMP: ["tcpdump", "-r", path, "-w", "/dev/null"],
        WC: ["wc", "-l", path],
        NFPCAPD: ["nfpcapd", "-r", path, "-w", OUT],
        SOFTFLOWD: ["softflowd", "-r", path, *softflowd],
        ARGUS: ["argus", "-r", path, "-w", OUT / "argus"],
    }
    for name in names:
        if not shutil.which(commands[name][0]):
            print(f"  {name}: not installed, left out")
    return {name: commands[name] for name in names if shutil.which(commands[name][0])}


def written(command):
    """Rows and bytes of all csv files that a run of pcap-analyzer leaves, and rows of five-tuples."""
    measure(command)
    found = {"rows": 0, "csv_bytes": 0, "flows": 0}
    for path in OUT.rglob("*.csv"):
        with open(path, "rb", buffering=0) as file:
            rows = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")) - 1
        found["rows"] += rows
        found["csv_bytes"] += path.stat().st_size
        found["flows"] += rows if path.stem == "per_five_tuple" else 0
    return found


def table(results, millions):
    """Prints a line a command; adds each one's rate and spread."""
    print(f"\n  {'command':<32} {'runs':>4} {'wall s':>8} {'min..max':>14} {'CPU s':>8} {'peak MB':>8} {'M packets/s':>12}")
    for name, result in results.items():
        walls = [run["wall"] for run in result["runs"]]
        result.update(rate=millions / result["wall"], wall_min=min(walls), wall_max=max(walls))
        spread = f"{min(walls):.2f}..{max(walls):.2f}"
        line = f"  {name:<32} {len(walls):>4} {result['wall']:8.3f} {spread:>14} {result['cpu']:8.3f}"
        print(f"{line} {result['peak_mb']:8.0f} {result['rate']:12.2f}")


def batch(flags):
    """Ten million minimum-size packets, six tasks, csv, beside other programs."""
    millions = 1 if flags.quick else 10
    path = capture(millions)
    ours = {TWO: analyzer(path, 2), ONE: analyzer(path, 1), WINDOWS: analyzer(path, 2, "--window", "1s")}
    found = {name: written(ours[name]) for name in (TWO, WINDOWS)}
    runs = round_robin({**ours, **others(path, TCPDUMP, WC, *SLOW)}, flags.rounds, few=SLOW)
    results = {name: medians(of_name) for name, of_name in runs.items()}
    print(f"\nbatch: {millions} M minimum-size packets, {found[TWO]['flows']} flows, {path.stat().st_size / 1e6:.0f} MB")
    table(results, millions)
    for name, what in found.items():
        print(f"  {name}: {what['rows']} rows, {what['csv_bytes'] / 1e6:.0f} MB of csv")
    targets = [target("peak memory, 2 workers", results[TWO]["peak_mb"], " MB", 250)]
    targets.append(target("--window 1s over all", ratio(runs[WINDOWS], runs[TWO]), "x", 1.3))
    targets.append(target("1 worker over 2", ratio(runs[ONE], runs[TWO]), "x", 1.8, at_least=True))
    if TCPDUMP in runs:
        targets.append(target("2 workers over tcpdump's copy", ratio(runs[TWO], runs[TCPDUMP]), "x", 0.6))
    if NFPCAPD in runs:
        targets.append(target("nfpcapd over 2 workers", ratio(runs[NFPCAPD], runs[TWO]), "x", 16, at_least=True))
    return {"packets": millions * 10**6, "capture_bytes": path.stat().st_size, "written": found, "commands": results, "targets": targets}


def frames(flags):
    """Frames of all sizes, and full ones, against reading every byte once."""
    part, targets = {}, []
    for size, millions in (("mixed", 2), ("1514", 1)):
        millions = millions / 10 if flags.quick else millions
        path = capture(millions, size=size)
        runs = round_robin({TWO: analyzer(path, 2), **others(path, WC, TCPDUMP)}, flags.rounds)
        results = {name: medians(of_name) for name, of_name in runs.items()}
        print(f"\nframes: {millions:g} M of size {size}, {path.stat().st_size / 1e6:.0f} MB")
        table(results, millions)
        if WC in runs:
            targets.append(target(f"size {size}: 2 workers over wc -l", ratio(runs[TWO], runs[WC]), "x", 2))
        part[size] = {"packets": millions * 1e6, "capture_bytes": path.stat().st_size, "commands": results}
    return {**part, "targets": targets}


def scaled(millions, flows, zipf, rounds):
    """What two workers make of a capture; the capture goes if it is large. `None` where there is no room for it."""
    needed = millions * 1e6 * 77
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if shutil.disk_usage(BENCH).free < 1.5 * needed or memory < 1.5 * needed:
        print(f"  {millions:g} M packets: left out, {needed / 1e9:.1f} GB do not fit the disk or the memory")
        return None
    path = capture(millions, flows, zipf)
    found = written(analyzer(path, 2))
    result = medians([measure(analyzer(path, 2)) for _ in range(rounds)])
    if path.stat().st_size > LARGE:
        path.unlink()
    cost = result["wall"] * 1e3 / millions
    result.update(packets=millions * 1e6, drawn_from=flows, zipf=zipf, ns_per_packet=cost, **found)
    line = f"  {millions:>6g} {flows:>11} {zipf:>5g} {found['flows']:>10} {found['rows']:>10} {result['wall']:8.3f}"
    print(f"{line} {cost:10.1f} {result['peak_mb']:8.0f}")
    return result


def scale(flags):
    """Cost by packets, flows and how unequal these are."""
    tenth = 0.1 if flags.quick else 1
    few = min(flags.rounds, FEW)
    print(f"\nscale: 2 workers, minimum-size packets, medians of {flags.rounds} ({few} from 60 M packets on)")
    print(f"  {'M pkts':>6} {'drawn from':>11} {'zipf':>5} {'flows':>10} {'rows':>10} {'wall s':>8} {'ns/packet':>10} {'peak MB':>8}")
    shapes = [(1, 100_000, 1.05), (10, 1_000_000, 1.05), (100, 10_000_000, 1.05), (100, 1_000_000, 1.05)]
    shapes += [(10, 1000, 1.05), (10, 20_000_000, 1.05), (10, 1_000_000, 0), (10, 1_000_000, 1.4), (60, 20_000_000, 0)]
    results, targets = {}, []
    for millions, flows, zipf in shapes:
        rounds = few if millions >= 60 else flags.rounds
        results[(millions, flows, zipf)] = scaled(millions * tenth, int(flows * tenth), zipf, rounds)
    base, many = results[(10, 1_000_000, 1.05)], results[(60, 20_000_000, 0)]
    for flows, what in ((10_000_000, "ten times the flows"), (1_000_000, "the same flows")):
        if large := results[(100, flows, 1.05)]:
            over = large["ns_per_packet"] / base["ns_per_packet"]
            targets.append(target(f"ns a packet, 100 M over 10 M, {what}", over, "x", 1.2))
    if many:
        fixed = results[(10, 1000, 1.05)]["peak_mb"]
        bytes_a_flow = (many["peak_mb"] - fixed) * 1e6 / many["flows"]
        targets.append(target("memory a flow beyond the fixed part", bytes_a_flow, " B", 100))
    return {"runs": [result for result in results.values() if result], "targets": targets}


def live(flags):
    """The live path, by the parts of its own bench that have a target here."""
    options = argparse.Namespace(quick=flags.quick, rounds=1 if flags.quick else 5, pps=100_000, rate=2.5)
    part = {"targets": []}
    for name in ("rates", "capture"):
        missing = [tool for tool in live_bench.NEEDS[name] if not shutil.which(tool)]
        if missing or name in live_bench.NEEDS_ROOT and os.geteuid():
            print(f"\n  {name}: left out, it needs {', '.join(missing) or 'root'}")
            continue
        print(f"\nlive: {name}")
        part[name] = live_bench.PARTS[name](options)
        part["targets"] += part[name].pop("targets")
    return part


PARTS = {"batch": batch, "frames": frames, "scale": scale, "live": live}


def first_line(*command):
    """What a program says of itself first; nothing where it is not installed or says nothing."""
    if not shutil.which(command[0]):
        return ""
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return ((run.stdout or run.stderr).strip().splitlines() or [""])[0]


def machine():
    """Where and with what this runs."""
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    tools = [("hyperfine", "--version"), ("tcpdump", "--version"), ("nfpcapd", "-V"), ("argus", "-h"), ("wc", "--version"), ("nats-server", "--version")]
    return {
        "date": datetime.date.today().isoformat(),
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "kernel": platform.release(),
        "virtualisation": first_line("systemd-detect-virt"),
        "load": os.getloadavg()[0],
        "commit": first_line("git", "describe", "--always", "--dirty"),
        "tools": {tool[0]: said for tool in tools if (said := first_line(*tool))},
    }


def rows_of(commands):
    """A Markdown table of commands."""
    yield "| command | runs | wall s | min..max | CPU s | peak MB | M packets/s |"
    yield "|---|---|---|---|---|---|---|"
    for name, it in commands.items():
        spread = f"{it['wall_min']:.2f}..{it['wall_max']:.2f}"
        yield f"| `{name}` | {len(it['runs'])} | {it['wall']:.2f} | {spread} | {it['cpu']:.2f} | {it['peak_mb']:.0f} | {it['rate']:.1f} |"


def report(figures):
    """The figures as Markdown."""
    it = figures["machine"]
    where = f"{it['processor']}, {it['cores']} cores, {it['memory_gb']} GB, Linux {it['kernel']}"
    yield "# Benchmarks\n"
    yield f"Made by `{figures['command']}` on {it['date']}, commit {it['commit']}: all programs in turn in one run, medians."
    yield f"Machine: {where}, virtualisation {it['virtualisation'] or 'unknown'}; load {it['load']:.1f} at the start.\n"
    yield "Tools: " + "; ".join(it["tools"].values()) + ".\n"
    yield "## Targets\n\n| what | measured | bound | |\n|---|---|---|---|"
    for part in figures["parts"].values():
        for one in part["targets"]:
            yield f"| {one['name']} | {one['value']:.2f}{one['unit']} | {one['bound']} | {'reached' if one['reached'] else '**missed**'} |"
    if part := figures["parts"].get("batch"):
        packets, flows = part["packets"] // 10**6, part["written"][TWO]["flows"]
        yield f"\n## Batch\n\n{packets} M minimum-size packets, {flows} flows, {part['capture_bytes'] / 1e6:.0f} MB; six tasks, csv.\n"
        yield from rows_of(part["commands"])
        for name, what in part["written"].items():
            yield f"\n`{name}` writes {what['rows']} rows, {what['csv_bytes'] / 1e6:.0f} MB."
    if part := figures["parts"].get("frames"):
        for size in ("mixed", "1514"):
            yield f"\n## Frames of size {size}\n\n{part[size]['packets'] / 1e6:g} M, {part[size]['capture_bytes'] / 1e6:.0f} MB.\n"
            yield from rows_of(part[size]["commands"])
    if part := figures["parts"].get("scale"):
        yield "\n## Scale\n\nTwo workers, minimum-size packets, window of everything.\n"
        yield "| M packets | drawn from | zipf | flows | rows | wall s | min..max | ns a packet | peak MB |\n|---|---|---|---|---|---|---|---|---|"
        for run in part["runs"]:
            walls = [one["wall"] for one in run["runs"]]
            cells = [f"{run['packets'] / 1e6:g}", run["drawn_from"], f"{run['zipf']:g}", run["flows"], run["rows"], f"{run['wall']:.2f}"]
            cells += [f"{min(walls):.2f}..{max(walls):.2f}", f"{run['ns_per_packet']:.0f}", f"{run['peak_mb']:.0f}"]
            yield "| " + " | ".join(map(str, cells)) + " |"
    part = figures["parts"].get("live", {})
    if rates := part.get("rates"):
        yield "\n## Live\n\nA replay through nats-server into an engine, all on this machine; six tasks, csv.\n"
        yield "| variant | M packets/s | lost | CPU us a packet: probe, engine, server |\n|---|---|---|---|"
        for name, one in rates["variants"].items():
            cpu = ", ".join(f"{us:.2f}" for us in one["cpu_us"].values())
            yield f"| {name} | {one['rate'] / 1e6:.2f} | {one['lost']} | {cpu} |"
    if cost := part.get("capture"):
        yield f"\nCapturing {cost['pps']} packets/s from a veth pair:\n\n| program | CPU us a packet | captured of sent |\n|---|---|---|"
        for name, one in cost["programs"].items():
            yield f"| `{name}` | {one['cpu_us']:.3f} | {one['captured']} of {one['sent']} |"
    if part := figures["parts"].get("batch"):
        spreads = [one["wall_max"] / one["wall_min"] for one in part["commands"].values()]
        yield f"\n## Noise\n\nIn the batch part the slowest run of a command took {min(spreads):.2f} to {max(spreads):.2f} times the quickest."
        yield "Ratios of commands that take turns are medians of each round's own ratio, so that a slow moment meets both sides."


def main():
    flags = argparse.ArgumentParser(description="Measures all that NetSpectra promises of its speed, in one run.")
    flags.add_argument("--rounds", type=int, default=7, help="runs of each command (default: 7)")
    flags.add_argument("--only", action="append", choices=PARTS, help="only this part; may be given again")
    flags.add_argument("--quick", action="store_true", help="a tenth of the packets, one round")
    flags.add_argument("--report", type=pathlib.Path, metavar="FILE", help="also write the figures as Markdown")
    flags.add_argument("--from-json", type=pathlib.Path, metavar="FILE", help="measure nothing, take these figures")
    flags = flags.parse_args()
    flags.rounds = 1 if flags.quick else flags.rounds
    if flags.rounds < 1:
        sys.exit("--rounds: at least 1")
    if flags.from_json:
        figures = json.loads(flags.from_json.read_text())
    else:
        for name in ("pcap-analyzer", "pcapgen", "ns-probe", "ns-engine"):
            if not (BINARIES / name).exists():
                sys.exit(f"{BINARIES / name} is missing: `cargo build --release`, or set NETSPECTRA_BIN_DIR")
        if not shutil.which("hyperfine"):
            sys.exit("hyperfine is not installed")
        BENCH.mkdir(parents=True, exist_ok=True)
        asked = "".join(f" --only {part}" for part in flags.only or ()) + (" --quick" if flags.quick else "")
        figures = {"machine": machine(), "command": f"make bench{f' BENCH_FLAGS={asked!r}' if asked else ''}", "parts": {}}
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; {flags.rounds} rounds in turn, medians")
        for name in flags.only or PARTS:
            figures["parts"][name] = PARTS[name](flags)
            (BENCH / "bench.json").write_text(json.dumps(figures, indent=2) + "\n")
        shutil.rmtree(OUT, ignore_errors=True)
        print(f"\n  also in {os.path.relpath(BENCH / 'bench.json')}")
    if flags.report:
        flags.report.write_text("\n".join(report(figures)) + "\n")


if __name__ == "__main__":
    main()
