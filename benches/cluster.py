#!/usr/bin/env python3
"""Runs over several processes against the same runs in one: wall time, CPU of all, bytes between them; and a slow disk.

NxW is N processes with W workers each, all on this machine. Every answer is compared with that of one process: a wrong
one ends the bench. A missed target is printed, never an error: speed is no test. Not here: processes that die (`make test`).
Captures are cached in target/bench as those of compare.py are (2.3 GB for --slow-sink).

Environment: NETSPECTRA_BIN_DIR, the folder of the four programs (default: target/release).
"""
import argparse, contextlib, ctypes, filecmp, json, os, pathlib, re, shutil, signal, socket, statistics, subprocess, sys, time

sys.dont_write_bytecode = True  # the folder of the benches stays as it is
from compare import BENCH, BINARIES, ROOT, capture, target
from live import STOPPED, Program, Server, fresh, probe, report

BATCH = ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1))
LIVE = ((1, 2), (2, 1))
ONE_PROCESS, TWO_PROCESSES = "1x2", "2x1"  # as many workers
PACKAGES = {"strace": "strace", "nats-server": "nats-server"}
SECONDS = 60  # of event time in a capture of pcapgen's
SAMPLE = 0.5  # seconds between two looks at the memory
OPEN_WINDOWS = 8  # windows of a second that only a stop closes: allowed_lateness and what is around it


def name_of(shape):
    return "x".join(map(str, shape))


def needs(*tools):
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        sys.exit(f"{', '.join(missing)} missing; on Debian: apt-get install {' '.join(PACKAGES[tool] for tool in missing)}")


def cluster_flags(folder, processes):
    """The flags of each process of a cluster on free ports; none for one alone."""
    if processes == 1:
        return [[]]
    with contextlib.ExitStack() as stack:
        listening = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(processes)]
        ports = [one.getsockname()[1] for one in listening]
    hosts = folder / "hosts"
    hosts.write_text("".join(f"127.0.0.1:{port}\n" for port in ports))
    return [["-n", processes, "-p", process, "--hostfile", hosts, "--wait", "20s"] for process in range(processes)]


def files(folder):
    """Every file under a folder but the ledger, whose inputs name processes and files."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return found - {pathlib.Path("ledger.json")}


def check_same(expected, found, what):
    """Ends the bench unless both folders hold the same snapshots and the same counts."""
    if differing := files(expected) ^ files(found):
        sys.exit(f"{what}: only one side has {sorted(map(str, differing))[:5]}")
    for path in sorted(files(expected)):
        if not filecmp.cmp(expected / path, found / path, shallow=False):
            sys.exit(f"{what}: {path} is another one")
    ledgers = [json.loads((folder / "ledger.json").read_text()) for folder in (expected, found)]
    for part in ("packets", "bytes", "windows"):
        if ledgers[0][part] != ledgers[1][part]:
            sys.exit(f"{what}: {part} of the ledger: {ledgers[1][part]} in place of {ledgers[0][part]}")
    return ledgers[1]


def own_network():
    """Moves this program and what it starts into a network with nothing but a loopback, where it may: whether it has."""
    new_network = 0x4000_0000  # CLONE_NEWNET of unshare(2)
    if os.geteuid() or not shutil.which("ip") or ctypes.CDLL(None).unshare(new_network):
        return False
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return True


def loopback_bytes():
    """Bytes that have gone over the loopback, headers and acknowledgements too."""
    with open("/proc/net/dev") as table:
        return int(re.search(r"^\s*lo:\s*(\d+)", table.read(), re.MULTILINE)[1])


def batch_run(shape, path, out):
    """One job over all processes of a shape: from the first one's start to the last one's end."""
    processes, workers = shape
    os.sync()  # or the run pays for writing back what the one before it left
    with fresh() as folder, contextlib.ExitStack() as stack:
        flags = cluster_flags(folder, processes)
        shutil.rmtree(out, ignore_errors=True)
        before, began = loopback_bytes(), time.monotonic()
        running = []
        for process, cluster in enumerate(flags):
            # The shipped configuration by name: its six tasks, whatever folder this is run from.
            command = [BINARIES / "pcap-analyzer", "-c", ROOT / "config.yaml", "-w", workers, "-q", "-o", out, *cluster, path]
            running.append(stack.enter_context(Program(f"pcap-analyzer-{process}", command, folder)))
        for program in running:
            program.reap(0)
        wall, between = time.monotonic() - began, loopback_bytes() - before
        for program in running:
            program.ended()
        # Below about 15 MB a process this is Python's own size: Linux keeps a process's peak across exec.
        peak = sum(program.usage.ru_maxrss for program in running) * 1024 / 1e6
        return {"wall": wall, "cpu": sum(program.cpu() for program in running), "peak_mb": peak, "bytes_between": between}


def batch(flags):
    millions = 1 if flags.quick else 10
    path = capture(millions)
    runs = {name_of(shape): [] for shape in BATCH}
    with fresh() as folder:
        # The first turn is not measured: there every shape's answer is compared.
        for turn in range(flags.rounds + 1):
            for shape in BATCH:
                out = folder / ("one" if turn == 0 and shape == (1, 1) else "out")
                run = batch_run(shape, path, out)
                if turn > 0:
                    runs[name_of(shape)].append(run)
                elif shape != (1, 1):
                    check_same(folder / "one", out, f"pcap-analyzer {name_of(shape)}")
            print(f"batch: round {turn} of {flags.rounds} done", file=sys.stderr)

    print(f"\n  pcap-analyzer, processes x workers, six tasks, {millions} M packets; medians of {flags.rounds} in turn")
    print(f"  {'':<6} {'wall s':>8} {'min..max':>14} {'CPU s':>8} {'min..max':>14} {'peak MB':>8} {'M packets/s':>12} {'MB over lo':>11}")
    results = {}
    for name, all_runs in runs.items():
        walls, cpus = ([run[key] for run in all_runs] for key in ("wall", "cpu"))
        middle = {key: statistics.median(run[key] for run in all_runs) for key in ("wall", "cpu", "bytes_between")}
        results[name] = {**middle, "peak_mb": max(run["peak_mb"] for run in all_runs), "runs": all_runs}
        print(
            f"  {name:<6} {middle['wall']:8.3f} {spread(walls):>14} {middle['cpu']:8.3f} {spread(cpus):>14}"
            f" {results[name]['peak_mb']:8.0f} {millions / middle['wall']:12.2f} {middle['bytes_between'] / 1e6:11.1f}"
        )
    return {"packets": millions * 10**6, "shapes": results, "targets": cpu_targets(results, "batch")}


def spread(values):
    return f"{min(values):.2f}..{max(values):.2f}"


def cpu_targets(results, what):
    ratio = results[TWO_PROCESSES]["cpu"] / results[ONE_PROCESS]["cpu"]
    return [target(f"CPU of {TWO_PROCESSES} over {ONE_PROCESS}, {what}", ratio, "x", 1.2)]


def live_run(shape, path, expected):
    """One replay into JetStream and out of it: from the probe's start to the last engine's end."""
    processes, workers = shape
    os.sync()
    with fresh() as folder, Server(folder) as server, contextlib.ExitStack() as stack:
        engines = []
        for process, cluster in enumerate(cluster_flags(folder, processes)):
            command = engine_command(folder, server, "-w", workers, *cluster)
            engines.append(stack.enter_context(Program(f"ns-engine-{process}", command, folder)))
        for engine in engines:
            engine.ready("subscribed to" if processes == 1 else f"cluster of {processes} processes has formed")
        ready = [program.cpu() for program in (server, *engines)]
        began = time.monotonic()
        with probe(folder, server, "--jetstream", "--read", path, "--id", "bench") as source:
            source.ended()
        # A stop takes all that the stream holds.
        engines[0].child.send_signal(signal.SIGTERM)
        for engine in engines:
            engine.ended()
        wall = time.monotonic() - began
        used = [program.cpu() - before for program, before in zip((server, *engines), ready)]
        ledger = check_same(expected, folder / "out", f"ns-engine --jetstream {name_of(shape)}")
        counted, sent = ledger["packets"]["counted"], report(source)["sent"]
        if counted != sent:
            sys.exit(f"ns-engine --jetstream {name_of(shape)}: {sent} packets sent, {counted} counted")
        cpu = {"cpu": sum(used[1:]), "cpu_server": used[0], "cpu_probe": source.cpu()}
        return {"wall": wall, **cpu, "counted": counted, "rate": counted / wall}


def engine_command(folder, server, *more):
    return [BINARIES / "ns-engine", "-c", ROOT / "config.yaml", "-o", folder / "out", "--nats", server.url, "--jetstream", *more]


def offline(folder, path, window):
    """What pcap-analyzer makes of the capture with the engine's windows."""
    out = folder / "offline"
    flags = ["-c", ROOT / "config.yaml", "--window", window, "-q", "-o", out, path]
    with Program("pcap-analyzer", [BINARIES / "pcap-analyzer", *flags], folder) as analyzer:
        analyzer.ended()
    return out


def live(flags):
    needs("nats-server")
    millions = 1 if flags.quick else 10
    path = capture(millions)
    runs = {name_of(shape): [] for shape in LIVE}
    with fresh() as folder:
        expected = offline(folder, path, f"{SECONDS}s")
        for turn in range(flags.rounds):
            for shape in LIVE:
                runs[name_of(shape)].append(live_run(shape, path, expected))
            print(f"live: round {turn + 1} of {flags.rounds} done", file=sys.stderr)

    print(f"\n  replay -> JetStream -> ns-engine, processes x workers, {millions} M packets; medians of {flags.rounds} in turn")
    print(f"  {'':<6} {'M packets/s':>12} {'min..max':>14} {'CPU s: engines':>15} {'min..max':>14} {'server':>8} {'probe':>8}")
    results = {}
    for name, all_runs in runs.items():
        keys = ("wall", "cpu", "cpu_server", "cpu_probe", "rate")
        middle = {key: statistics.median(run[key] for run in all_runs) for key in keys}
        results[name] = {**middle, "runs": all_runs}
        rates = [run["rate"] / 1e6 for run in all_runs]
        print(
            f"  {name:<6} {middle['rate'] / 1e6:12.3f} {spread(rates):>14} {middle['cpu']:15.3f}"
            f" {spread([run['cpu'] for run in all_runs]):>14} {middle['cpu_server']:8.3f} {middle['cpu_probe']:8.3f}"
        )
    return {"packets": millions * 10**6, "shapes": results, "targets": cpu_targets(results, "live")}


def memory(pid):
    """Resident MB now and at most so far; nothing once the process has ended."""
    with contextlib.suppress(OSError):
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        found = [re.search(rf"^{key}:\s*(\d+) kB", status, re.MULTILINE) for key in ("VmRSS", "VmHWM")]
        if all(found):
            return [int(one[1]) * 1024 / 1e6 for one in found]
    return None


def windows(folder):
    return {name for name in os.listdir(folder) if re.match(r"\d{4}-", name)} if folder.exists() else set()


def slow_sink(flags):
    """Every folder of a window takes seconds to make while packets come at their own pace; then it may catch up."""
    needs("strace", "nats-server")
    # A capture of 60 s: half a million packets a second as they are, a sixth of that when it is ten times as fast.
    millions, times, delay = (1, 10, 0.2) if flags.quick else (30, 1, 2)
    path = capture(millions)
    with fresh() as folder, Server(folder) as server:
        expected = offline(folder, path, "1s")
        count = len(windows(expected))
        trace, out = folder / "strace.out", folder / "out"
        made = "?mkdir,?mkdirat"  # some machines have only one of the two
        # With -D the engine is our own child, and strace its shadow.
        slowed = ["strace", "-D", "-f", "--seccomp-bpf", "-o", trace, "-e", f"trace={made}"]
        slowed += ["-e", f"inject={made}:delay_enter={round(delay * 1e6)}"]
        with Program("ns-engine", [*slowed, *engine_command(folder, server, "--window", "1s")], folder) as sink:
            sink.ready("subscribed to")
            began = time.monotonic()
            samples, behind = [], 0

            def look():
                """Takes a sample when it is time; whether the engine still runs."""
                nonlocal behind
                passed = time.monotonic() - began
                if not samples or passed - samples[-1]["seconds"] >= SAMPLE:
                    if now := memory(sink.child.pid):
                        written = len(windows(out))
                        behind = max(behind, min(passed * times, SECONDS) - written)
                        samples.append({"seconds": passed, "rss_mb": now[0], "peak_mb": now[1], "windows": written})
                return sink.alive()

            def until(true, seconds, otherwise):
                deadline = time.monotonic() + seconds
                while look() and not true():
                    if time.monotonic() > deadline:
                        sink.fail(f"{otherwise} in {seconds:.0f} s")
                    time.sleep(0.05)

            most = count * delay * 2 + STOPPED
            with probe(folder, server, "--jetstream", "--read", path, "--pace", f"{times}x", "--id", "bench") as source:
                until(lambda: not source.alive(), most, "the replay has not ended")
                source.ended()
            replayed = time.monotonic() - began
            until(lambda: len(windows(out)) >= count - OPEN_WINDOWS, most, "it has not caught up")
            sink.child.send_signal(signal.SIGTERM)
            until(lambda: False, most, "it has not ended")
            sink.ended()
            done = time.monotonic() - began
        ledger = check_same(expected, out, "ns-engine behind a slow sink")
        delayed = trace.read_text(errors="replace").count("(DELAYED)")
    if ledger["packets"]["lost"] or delayed < count:
        sys.exit(f"{ledger['packets']['lost']} packets lost; {delayed} folders for {count} windows were slowed down")
    peak = max(sample["peak_mb"] for sample in samples)
    during = [sample["rss_mb"] for sample in samples if sample["seconds"] <= replayed]
    third = max(1, len(during) // 3)
    middle, last = statistics.median(during[-2 * third : -third]), statistics.median(during[-third:])

    rate = millions * 1e6 / replayed
    print(f"\n  a slow sink: {millions} M packets at {rate / 1e3:.0f} k/s in {count} windows of 1 s, {delay:g} s for each one's folder")
    print(f"  {'seconds':>8} {'windows':>8} {'RSS MB':>8} {'most so far':>12}")
    for sample in samples[:: max(1, len(samples) // 16)]:
        print(f"  {sample['seconds']:8.1f} {sample['windows']:>8} {sample['rss_mb']:8.0f} {sample['peak_mb']:12.0f}")
    print(f"  replayed after {replayed:.1f} s, all written after {done:.1f} s; at most {behind:.0f} windows behind")
    print(f"  peak memory {peak:.0f} MB; CPU {sink.cpu():.1f} s; nothing lost; the tree is pcap-analyzer's")
    return {
        "packets": millions * 10**6,
        "windows": count,
        "delay_seconds": delay,
        "replayed_seconds": replayed,
        "done_seconds": done,
        "windows_behind": behind,
        "peak_mb": peak,
        "cpu": sink.cpu(),
        "samples": samples,
        "targets": [target("memory, last third over middle third", last / middle, "x", 1.2)],
    }


PARTS = {"batch": batch, "live": live}


def main():
    flags = argparse.ArgumentParser(description="Measures runs over several processes, and an engine behind a slow sink.")
    flags.add_argument("--rounds", type=int, default=5, help="runs of each shape (default: 5)")
    flags.add_argument("--only", action="append", choices=PARTS, help="only this part; may be given again")
    flags.add_argument("--slow-sink", action="store_true", help="instead: memory behind a sink of 2 s a window (minutes, strace)")
    flags.add_argument("--quick", action="store_true", help="1 M packets, one round, a sink that is less slow")
    flags.add_argument("--json", type=pathlib.Path, metavar="FILE", help="where the figures go (default: cluster.json or slow-sink.json in target/bench)")
    flags = flags.parse_args()
    if flags.quick:
        flags.rounds = 1
    if flags.rounds < 1:
        sys.exit("--rounds: at least 1")
    for name in ("pcap-analyzer", "ns-engine", "ns-probe", "pcapgen"):
        if not (BINARIES / name).exists():
            sys.exit(f"{BINARIES / name} is missing: `cargo build --release`, or set NETSPECTRA_BIN_DIR")
    # So that every `with` block ends what it started.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, lambda *_: sys.exit("ended by a signal"))
    BENCH.mkdir(parents=True, exist_ok=True)
    where = flags.json or BENCH / ("slow-sink.json" if flags.slow_sink else "cluster.json")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    figures = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "rounds": flags.rounds, "own_network": own_network()}
    if not figures["own_network"]:
        print("without root and ip (iproute2) the bytes over the loopback are those of everybody on this machine")
    parts = {"slow_sink": slow_sink} if flags.slow_sink else {name: PARTS[name] for name in flags.only or PARTS}
    for name, part in parts.items():
        figures[name] = part(flags)
        where.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\n  also in {os.path.relpath(where)}")


if __name__ == "__main__":
    main()
