#!/usr/bin/env python3
"""The live programs: rate over NATS, the probe's cost beside tcpdump's, a window's latency, an idle engine's CPU.

Rates need no rights; capturing needs root, for two network namespaces joined by a veth pair, and is left out without.
Not here: one stage (`cargo bench`), whether the answers are right (`make test`). A missed target is printed, never an
error: speed is no test. Everything that is started, namespaces too, is taken down in the end.

Environment: NETSPECTRA_BIN_DIR, the folder of the four programs (default: target/release).
"""
import argparse, contextlib, datetime, json, os, pathlib, re, shutil, signal, statistics, subprocess, sys, tempfile, time
import urllib.request

sys.dont_write_bytecode = True  # the folder of the benches stays as it is
from compare import BENCH, BINARIES, ROOT, capture, ratios, target

CAPTURE_SECONDS = 60  # of event time in a capture of pcapgen's
READY, DRAINED, STOPPED = 20, 300, 300  # seconds that may pass before a program is given up
POLL = 0.005
SNAPLEN = 128
PROBE, TCPDUMP = "ns-probe", "tcpdump -w /dev/null"
SINGLE, BATCH, PACED, JETSTREAM = "single, core", "batch, core", "batch, core, paced", "batch, JetStream"


class Program:
    """A program that runs: its standard error is in a file, and it is ended with the `with` block."""

    def __init__(self, name, command, folder, namespace=None, stdin=subprocess.DEVNULL):
        self.name, self.usage = name, None
        self.log, self.output = folder / f"{name}.err", folder / f"{name}.out"
        inside = ["ip", "netns", "exec", namespace] if namespace else []
        with open(self.log, "wb") as log, open(self.output, "wb") as output:
            # `ip netns exec` becomes the program, so this is the program's own process.
            self.child = subprocess.Popen(
                [*inside, *map(str, command)], stdin=stdin, stdout=output, stderr=log, cwd=folder
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.alive():
            self.child.kill()
            self.reap(0)

    def alive(self):
        return self.usage is None and not self.reap(os.WNOHANG)

    def reap(self, how):
        """Whether it has ended; then its exit status and its whole use of the CPU are known."""
        if self.usage is None:
            pid, status, usage = os.wait4(self.child.pid, how)
            if pid == 0:
                return False
            self.usage, self.child.returncode = usage, os.waitstatus_to_exitcode(status)
        return True

    def said(self):
        return self.log.read_text(errors="replace")

    def fail(self, why):
        sys.exit(f"{self.name}: {why}\n{self.said()}")

    def ready(self, words):
        self.until(lambda: words in self.said(), READY, f"has not said `{words}`")
        return self

    def until(self, true, seconds, otherwise, poll=POLL):
        """Waits for something that happens only while this program runs."""
        deadline = time.monotonic() + seconds
        while not (found := true()):
            if not self.alive():
                self.fail(f"exit {self.child.returncode}, and {otherwise}")
            if time.monotonic() > deadline:
                self.fail(f"{otherwise} in {seconds} s")
            time.sleep(poll)
        return found

    def ended(self, seconds=STOPPED):
        """Waits for its end; sys.exit unless it went well."""
        deadline = time.monotonic() + seconds
        while not self.reap(os.WNOHANG):
            if time.monotonic() > deadline:
                self.fail(f"has not ended in {seconds} s")
            time.sleep(POLL)
        if self.child.returncode:
            self.fail(f"exit {self.child.returncode}")
        return self

    def stop(self, with_signal=signal.SIGTERM):
        if self.alive():
            self.child.send_signal(with_signal)
        return self.ended()

    def cpu(self):
        """CPU seconds, user and system, of all its threads, those that have ended too."""
        if self.usage:
            return self.usage.ru_utime + self.usage.ru_stime
        # The clock of clock_getcpuclockid(3): utime + stime of /proc/PID/stat, which has them in ticks of 10 ms only.
        return time.clock_gettime((~self.child.pid << 3) | 2)


class Server(Program):
    """A nats-server on free ports of the loopback, with an empty store that it may fill."""

    def __init__(self, folder, namespace=None):
        conf = folder / "nats.conf"
        conf.write_text(
            f'listen: "127.0.0.1:-1"\nhttp: "127.0.0.1:-1"\nports_file_dir: "{folder}"\n'
            # A stated limit is not held against the free disk, on which the stream's own limit might be refused.
            f'jetstream {{ store_dir: "{folder}/store", max_file_store: 64GB }}\n'
        )
        super().__init__("nats-server", ["nats-server", "-c", conf], folder, namespace)
        try:
            ports = self.until(lambda: self.ports(folder), READY, "told no ports")
        except BaseException:
            self.__exit__()
            raise
        self.url, self.monitoring = ports["nats"][0], ports["monitoring"][0]

    @staticmethod
    def ports(folder):
        for file in folder.glob("*.ports"):
            with contextlib.suppress(ValueError):
                return json.loads(file.read_text())

    def delivered(self):
        """Whether every stored message has gone out to its consumer."""
        with urllib.request.urlopen(f"{self.monitoring}/jsz?consumers=true", timeout=READY) as answer:
            accounts = json.load(answer).get("account_details", [])
        streams = [stream for account in accounts for stream in account.get("stream_detail", [])]
        consumers = [consumer for stream in streams for consumer in stream.get("consumer_detail") or []]
        return bool(consumers) and all(consumer["num_pending"] == 0 for consumer in consumers)


class Link:
    """Two network namespaces joined by a veth pair that carries nothing of its own."""

    def __init__(self):
        self.sender, self.receiver = (f"nsbench{os.getpid()}{end}" for end in "ab")
        self.out, self.iface = "nsb0", "nsb1"

    def __enter__(self):
        try:
            for namespace in (self.sender, self.receiver):
                ip("netns", "add", namespace)
                # No neighbour discovery, so that there is only what is replayed.
                for scope in ("all", "default"):
                    path = f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"
                    quiet = ["sh", "-c", f"[ ! -e {path} ] || echo 1 > {path}"]
                    subprocess.run(["ip", "netns", "exec", namespace, *quiet], check=True)
                ip("-n", namespace, "link", "set", "lo", "up")
            ends = [self.out, "netns", self.sender, "type", "veth", "peer", "name", self.iface, "netns", self.receiver]
            ip("link", "add", *ends)
            ip("-n", self.sender, "link", "set", self.out, "arp", "off", "up")
            ip("-n", self.receiver, "link", "set", self.iface, "arp", "off", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for namespace in (self.sender, self.receiver):
            subprocess.run(["ip", "netns", "del", namespace], stderr=subprocess.DEVNULL)

    def replay(self, folder, path, pps, loops):
        """The tcpreplay that sends a capture so many times."""
        command = ["tcpreplay", "-q", "--preload-pcap", "-i", self.out, "--pps", str(pps), "--loop", str(loops), path]
        return Program("tcpreplay", command, folder, self.sender)


def ip(*words):
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def fresh():
    """An empty folder on the disk of the builds: /tmp may be memory."""
    with tempfile.TemporaryDirectory(prefix="live-", dir=BENCH) as folder:
        yield pathlib.Path(folder)


def engine(folder, server, *more, config=ROOT / "config.yaml", namespace=None):
    command = [BINARIES / "ns-engine", "-c", config, "-o", folder / "out", "--nats", server.url, *more]
    return Program("ns-engine", command, folder, namespace)


def probe(folder, server, *more, namespace=None):
    command = [BINARIES / "ns-probe", "-c", ROOT / "config.yaml", "--nats", server.url, "--json", *more]
    return Program("ns-probe", command, folder, namespace)


def report(finished):
    return json.loads(finished.output.read_text())["packets"]


def rate(path, pace, encoding, jetstream):
    """One replay over NATS into the engine, and what came of it."""
    bus = ["--jetstream"] if jetstream else []
    os.sync()  # or the run pays for writing back what the one before it left
    with fresh() as folder, Server(folder) as server, engine(folder, server, *bus) as sink:
        sink.ready("subscribed to")
        ready = sink.cpu(), server.cpu()
        began = time.monotonic()
        with probe(folder, server, *bus, "--read", path, "--pace", pace, "--encoding", encoding) as source:
            source.ended()
        published = time.monotonic()
        if jetstream:
            sink.until(server.delivered, DRAINED, "not everything stored was delivered", poll=0.05)
        sink.child.send_signal(signal.SIGTERM)
        books = folder / "out" / "ledger.json"
        sink.until(lambda: books.exists() or not sink.alive(), STOPPED, "there is no ledger")
        ledger_at = time.monotonic()
        sink.ended()
        done = time.monotonic()
        sent, counts = report(source), json.loads(books.read_text())["packets"]
        cpu = {"probe": source.cpu(), "engine": sink.cpu() - ready[0], "server": server.cpu() - ready[1]}
    seconds = {"probe": published - began, "ledger": ledger_at - began, "exit": done - began}
    absent = sent["sent"] + sent["dropped"] - counts["counted"]
    return {
        "sent": sent["sent"],
        "counted": counts["counted"],
        "lost": counts["lost"],
        "unaccounted": absent - counts["lost"],
        "seconds": seconds,
        "cpu": cpu,
        # What did not arrive was not analysed.
        "rate": counts["counted"] / seconds["exit"],
        "rate_to_ledger": counts["counted"] / seconds["ledger"],
    }


def rates(flags):
    # The single encoding has a tenth, so that it takes no longer than all others.
    millions, single_millions = 1 if flags.quick else 10, 1
    path, single = capture(millions), capture(single_millions)
    pace = CAPTURE_SECONDS * flags.rate / millions
    variants = {
        BATCH: (path, "max", "batch", False),
        PACED: (path, f"{pace:.4f}x", "batch", False),
        JETSTREAM: (path, "max", "batch", True),
        SINGLE: (single, "max", "single", False),
    }
    runs = {name: [] for name in variants}
    for turn in range(flags.rounds):
        for name, variant in variants.items():
            runs[name].append(rate(*variant))
        print(f"rates: round {turn + 1} of {flags.rounds} done", file=sys.stderr)

    print(f"\n  replay -> nats-server -> ns-engine, six tasks; {millions} M packets ({single_millions} M single), medians of {flags.rounds}")
    print(f"  {'':<20} {'M packets/s':>12} {'min..max':>14} {'to ledger':>10} {'lost':>10} {'unaccounted':>12}  CPU us/packet: probe engine server")
    results = {}
    for name, all_runs in runs.items():
        result = results[name] = {"runs": all_runs}
        for key in ("rate", "rate_to_ledger"):
            result[key] = statistics.median(run[key] for run in all_runs)
        # The worst of all rounds: a loss is none that happens in half of them.
        result["lost"] = max(run["lost"] for run in all_runs)
        result["unaccounted"] = max((run["unaccounted"] for run in all_runs), key=abs)
        result["cpu_us"] = {
            part: statistics.median(run["cpu"][part] / max(run["counted"], 1) * 1e6 for run in all_runs)
            for part in ("probe", "engine", "server")
        }
        each = [run["rate"] / 1e6 for run in all_runs]
        cpu = " ".join(f"{us:6.3f}" for us in result["cpu_us"].values())
        print(
            f"  {name:<20} {result['rate'] / 1e6:12.3f} {f'{min(each):.2f}..{max(each):.2f}':>14} {result['rate_to_ledger'] / 1e6:10.3f}"
            f" {result['lost']:>10} {result['unaccounted']:>12}  {'':<14} {cpu}"
        )
    durable = results[JETSTREAM]
    whole = [run["rate"] / 1e6 for run in durable["runs"]] if not durable["lost"] and not durable["unaccounted"] else 0
    targets = [
        target("M packets/s, JetStream, nothing lost", whole, "", 4, at_least=True),
        target("batch over single, core", results[BATCH]["rate"] / max(results[SINGLE]["rate"], 1), "x", 20, at_least=True),
    ]
    return {"packets": millions * 1e6, "packets_single": single_millions * 1e6, "pace": pace, "variants": results, "targets": targets}


def number(pattern, text):
    found = re.search(pattern, text)
    if not found:
        sys.exit(f"no `{pattern}` in:\n{text}")
    return int(found[1])


def captured(name, link, server, folder, path, pps, loops):
    """One capture of a replayed capture: packets, drops and CPU seconds from being ready to the end."""
    if name == PROBE:
        flags = ["--iface", link.iface, "-s", str(SNAPLEN)]
        program, words = probe(folder, server, *flags, namespace=link.receiver), "capturing on"
    else:
        command = ["tcpdump", "-n", "-i", link.iface, "-w", "/dev/null", "-s", str(SNAPLEN)]
        program, words = Program("tcpdump", command, folder, link.receiver), "listening on"
    with program:
        before = program.ready(words).cpu()
        with link.replay(folder, path, pps, loops) as replay:
            replay.ended()
        time.sleep(1.5)  # libpcap's ring hands over a block that is not full after a second
        sent = number(r"Actual: (\d+) packets", replay.output.read_text() + replay.said())
        program.stop(signal.SIGINT)
    if name == PROBE:
        packets = report(program)
        seen, dropped = packets["read"], packets["kernel_dropped"] + packets["interface_dropped"]
        unpublished = packets["dropped"]
    else:
        seen, dropped = (number(rf"(\d+) packets? {what}", program.said()) for what in ("captured", "dropped by kernel"))
        unpublished = 0
    cpu = program.cpu() - before
    return {"sent": sent, "captured": seen, "kernel_dropped": dropped, "dropped": unpublished, "cpu": cpu, "cpu_us": cpu / max(seen, 1) * 1e6}


def capture_cost(flags):
    packets, loops = 100_000, max(1, round(flags.pps * (2 if flags.quick else 10) / 100_000))
    runs = {PROBE: [], TCPDUMP: []}
    with fresh() as folder:
        path = folder / "replayed.pcap"
        size = ["--packets", str(packets), "--flows", "10000", "--size", "mixed"]
        subprocess.run([BINARIES / "pcapgen", *size, "-o", path], check=True)
        with Link() as link, Server(folder, link.receiver) as server:
            for turn in range(flags.rounds):
                for name, of_name in runs.items():
                    of_name.append(captured(name, link, server, folder, path, flags.pps, loops))
                print(f"capture: round {turn + 1} of {flags.rounds} done", file=sys.stderr)

    print(f"\n  capturing {packets * loops} packets at {flags.pps}/s from a veth, snap length {SNAPLEN}, medians of {flags.rounds}")
    print(f"  {'':<24} {'CPU us/packet':>14} {'min..max':>14} {'captured of sent':>22} {'kernel drops':>13} {'own drops':>10}")
    results = {}
    for name, all_runs in runs.items():
        each = [run["cpu_us"] for run in all_runs]
        total = {key: sum(run[key] for run in all_runs) for key in ("sent", "captured", "kernel_dropped", "dropped")}
        results[name] = {"cpu_us": statistics.median(each), **total, "runs": all_runs}
        of = f"{total['captured']} of {total['sent']}"
        print(
            f"  {name:<24} {results[name]['cpu_us']:14.3f} {f'{min(each):.2f}..{max(each):.2f}':>14} {of:>22}"
            f" {total['kernel_dropped']:>13} {total['dropped']:>10}"
        )
    over = ratios(runs[PROBE], runs[TCPDUMP], "cpu_us")
    return {"pps": flags.pps, "programs": results, "targets": [target("CPU a captured packet over tcpdump's", over, "x", 1.1)]}


def edited(folder, **values):
    """The shipped configuration with other values for some keys."""
    text = (ROOT / "config.yaml").read_text()
    for key, value in values.items():
        text, changed = re.subn(rf"^(\s*{key}:\s*)[^\s#]+", rf"\g<1>{value}", text, flags=re.MULTILINE)
        if changed != 1:
            sys.exit(f"config.yaml: {key} is there {changed} times, not once")
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def window_end(name):
    """Seconds since the Unix epoch at which the one-second window of this folder ends."""
    start = datetime.datetime.strptime(name, "%Y-%m-%dT%H-%M-%SZ").replace(tzinfo=datetime.timezone.utc)
    return start.timestamp() + 1


def latency(flags):
    """How long after its end each one-second window is on disk, with lateness 0 and a light load."""
    windows, pps = (6 if flags.quick else 30), 1000
    seen = {}
    with fresh() as folder:
        path = folder / "replayed.pcap"
        subprocess.run([BINARIES / "pcapgen", "--packets", str(pps), "--flows", "100", "-o", path], check=True)
        config = edited(folder, allowed_lateness="0s")
        out = folder / "out"
        with Link() as link, Server(folder, link.receiver) as server:
            with engine(folder, server, "--window", "1s", config=config, namespace=link.receiver) as sink:
                sink.ready("subscribed to")
                with probe(folder, server, "--iface", link.iface, namespace=link.receiver) as source:
                    source.ready("capturing on")
                    with link.replay(folder, path, pps, windows + 3) as replay:
                        while replay.alive():
                            now = time.time()
                            for name in os.listdir(out) if out.exists() else ():
                                if not name.startswith(".") and (out / name).is_dir():
                                    seen.setdefault(name, now)
                            time.sleep(POLL)
                        replay.ended()
                    source.stop(signal.SIGINT)
                sink.stop()
                lost = json.loads((out / "ledger.json").read_text())["packets"]["lost"]
    # The first window begins with the probe, not with the clock.
    delays = [at - window_end(name) for name, at in sorted(seen.items())[1:]]
    if not delays:
        sys.exit("no window came while packets did")
    middle, most = statistics.median(delays), max(delays)
    print(f"\n  latency: {len(delays)} windows of 1 s, lateness 0 s, {pps} packets/s, polled every {POLL * 1e3:g} ms; lost {lost}")
    print(f"  on disk after the window's end: median {middle * 1e3:.0f} ms, most {most * 1e3:.0f} ms")
    targets = [target("seconds until a window is on disk", most, "s", 1.0)]
    return {"windows": len(delays), "median_seconds": middle, "most_seconds": most, "delays": delays, "lost": lost, "targets": targets}


def idle(flags):
    """The share of a core that an engine without packets takes."""
    seconds = 3 if flags.quick else 15
    shares = {}
    for name, bus in (("core", []), ("JetStream", ["--jetstream"])):
        with fresh() as folder, Server(folder) as server, engine(folder, server, *bus) as sink:
            sink.ready("subscribed to")
            time.sleep(1)  # what starting leaves to do is not idling
            began, before = time.monotonic(), sink.cpu()
            time.sleep(seconds)
            shares[name] = (sink.cpu() - before) / (time.monotonic() - began) * 100
            sink.stop()
    print(f"\n  idle engine, {seconds} s: " + ", ".join(f"{share:.2f} % of a core with {name}" for name, share in shares.items()))
    return {"percent": shares, "targets": [target("idle engine's share of a core", max(shares.values()), "%", 2)]}


PARTS = {"rates": rates, "capture": capture_cost, "latency": latency, "idle": idle}
NEEDS = {
    "rates": ("nats-server",),
    "capture": ("nats-server", "ip", "tcpreplay", "tcpdump"),
    "latency": ("nats-server", "ip", "tcpreplay"),
    "idle": ("nats-server",),
}
NEEDS_ROOT = ("capture", "latency")


def main():
    flags = argparse.ArgumentParser(description="Measures the live programs: rate, capture cost, latency, idling.")
    flags.add_argument("--rounds", type=int, default=5, help="runs of each command (default: 5)")
    flags.add_argument("--pps", type=int, default=100_000, help="packets a second that are captured (default: 100000)")
    flags.add_argument("--rate", type=float, default=2.5, help="M packets/s of the paced replay (default: 2.5)")
    flags.add_argument("--only", action="append", choices=PARTS, help="only this part; may be given again")
    flags.add_argument("--quick", action="store_true", help="small captures, one round, short waits")
    flags.add_argument("--json", type=pathlib.Path, default=BENCH / "live.json", metavar="FILE", help="where the figures go")
    flags = flags.parse_args()
    if flags.quick:
        flags.rounds = 1
    if flags.rounds < 1 or flags.pps < 1 or flags.rate <= 0:
        sys.exit("--rounds, --pps and --rate: above 0")
    for name in ("ns-probe", "ns-engine", "pcapgen"):
        if not (BINARIES / name).exists():
            sys.exit(f"{BINARIES / name} is missing: `cargo build --release`, or set NETSPECTRA_BIN_DIR")
    # So that every `with` block ends what it started.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, lambda *_: sys.exit("ended by a signal"))
    BENCH.mkdir(parents=True, exist_ok=True)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    figures = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "rounds": flags.rounds}
    for name in flags.only or PARTS:
        missing = [tool for tool in NEEDS[name] if not shutil.which(tool)]
        if missing:
            print(f"\n  {name}: left out, {', '.join(missing)} not installed")
        elif name in NEEDS_ROOT and os.geteuid():
            print(f"\n  {name}: left out, it needs root")
        else:
            figures[name] = PARTS[name](flags)
        flags.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\n  also in {os.path.relpath(flags.json)}")


if __name__ == "__main__":
    main()
