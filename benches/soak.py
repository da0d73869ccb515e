#!/usr/bin/env python3
"""An hour of event time in some minutes: does anything grow that should not, and is the answer still exact in the end?

Two probes replay through JetStream into ns-engine with windows of 1 s, standing queries, sketches, alerts, every kind of
writer and HTTP. Meanwhile nats-server is killed and started again at random times, one packet is dated far ahead, and the
clock of the second probe is an hour ahead until it is corrected. What must stay bounded is sampled: memory, descriptors,
threads, and the disk of everything but the snapshots. Each figure of the fourth quarter is held against the third.

At the end, the csv has to be byte for byte what pcap-analyzer makes of the same captures, the ledger has to balance with
nothing lost, and every writer has to have every window. Exit status 1 where something grows or differs.

Environment: NETSPECTRA_BIN_DIR, the folder of the programs; the Python of the tests (`make test-deps`).
"""
import argparse, bisect, contextlib, json, os, pathlib, random, re, shutil, signal, socket, struct, subprocess, sys, threading, time
import urllib.error, urllib.request

sys.dont_write_bytecode = True  # the folder of the benches stays as it is
from compare import BENCH, BINARIES, ROOT, TARGET
from live import Program

FOLDER = BENCH / "soak"
PYTHON = TARGET / "test-python/bin/python3"
HOUR = 3600
FAR = 4_070_908_800  # 2099: as far ahead as a pcap's 32 bits of seconds go, nearly
LATENESS = 30  # seconds of event time; a few of wall time, so that a killed server makes few packets late
STREAM = 16  # MiB of the log: full in the first quarter, so that it has a plateau to show
RECENT = 32  # MiB of the latest windows for HTTP: likewise
WINDOWS, QUICK = 3600, 1100  # the archive of late packets holds 512 windows and some more, which is half of the short form
SPEED = 8.6  # windows a second of wall time: 3600 in 7 minutes
PACKETS, IN_ALL = 1000, 3_000_000  # packets a window, at least, and in all, so that the archive's memory is full early
JUMP_AT, SECOND_FROM, AHEAD_UNTIL = 0.45, 0.15, 0.40  # of the run: the stray packet, the second probe, its correction
BEHIND = 20  # seconds of wall time that windows may be behind the replay, kills of the server included
ROWS = 12
WRITERS = ("parquet", "jsonl", "nats", "clickhouse")
PARTS = (*WRITERS, "http", "alerts", "queries", "jumps", "kills")
INSERTED = ("per_src_ip", "per_protocol", "top_talkers")  # not all: this ClickHouse is one thread of Python
RULES = """
    - {name: busy, task: per_dst_ip, metric: bytes, comparison: ">", threshold: 60kB}
    - {name: much, task: per_protocol, metric: total.packets, comparison: ">", threshold: 1000, for: 2}
"""


class Figure:
    """A number that has to stay where it is: its name, unit, and what it may grow by."""

    def __init__(self, name, unit, share=0.05, slack=0.0, of=max):
        self.name, self.unit, self.share, self.slack, self.of = name, unit, share, slack, of

    def judge(self, third, fourth):
        before, after = self.of(third), self.of(fourth)
        limit = before * (1 + self.share) + self.slack
        return {"third": before, "fourth": after, "limit": limit, "flat": after <= limit}


def middle(values):
    return sorted(values)[len(values) // 2]


def low(values):
    return sorted(values)[len(values) // 10]


# Descriptors come and go with every file that is written: where they stand between two of them shows a leak, their peak does
# not.
FIGURES = {
    "rss": Figure("memory of ns-engine", "MB"),
    "probe": Figure("memory of ns-probe", "MB"),
    "descriptors": Figure("descriptors", "", 0, 3, low),
    "threads": Figure("threads", "", 0, 0, middle),
    "archive": Figure("unlinked files (archive)", "MB", slack=1),
    "state": Figure("records of commits", "MB", slack=0.1),
    "outbox": Figure("outbox", "MB", 0.25, 4),
    "manifest": Figure("manifest", "kB", slack=1),
    "log": Figure("log of JetStream", "MB"),
    "recent": Figure("windows for HTTP", "MB"),
}


def megabytes(number):
    return number / 1e6


def get(url):
    """The body of an answer, or None."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()
    except OSError:
        return None


def metric(text, name):
    """The sum of all series of a metric."""
    found = re.findall(rf"(?m)^netspectra_{name}(?:{{[^}}]*}})? (\S+)$", text or "")
    return sum(map(float, found))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def used(folder, but=None):
    """Bytes on disk below a folder."""
    total = 0
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != but]
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
    return total


# Captures.


def generate(path, packets, windows, seed, events):
    options = ["--packets", packets, "--flows", max(1000, packets // 20), "--size", "mixed", "--snaplen", 96]
    options += ["--duration", f"{windows}s", "--seed", seed] + ["--events"] * events
    command = [str(word) for word in [BINARIES / "pcapgen", *options, "-o", path]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def frames(capture):
    """Offset and time (seconds) of every frame of a capture of pcapgen's: little-endian, microseconds."""
    at, header = 24, struct.Struct("<IIII")
    while at < len(capture):
        seconds, micros, kept, _ = header.unpack_from(capture, at)
        yield at, seconds + micros / 1e6
        at += header.size + kept


def misdate(path, windows):
    """Dates one frame of a capture far ahead."""
    capture = bytearray(path.read_bytes())
    found = list(frames(capture))
    at, _ = found[int(len(found) * JUMP_AT)]
    struct.pack_into("<I", capture, at, FAR)
    path.write_bytes(capture)
    return len(found)


def second(path, windows, ahead):
    """Cuts a capture to the second probe's part of the run, as its clock dates it; gives each frame's place and when it is
    due, seconds of event time after the run's start."""
    capture = path.read_bytes()
    found = list(frames(capture))
    start = found[0][1]
    first = bisect.bisect_left(found, start + SECOND_FROM * windows, key=lambda frame: frame[1])
    cut = bytearray(capture[:24] + capture[found[first][0]:])
    moved = found[first][0] - 24
    due = [(at - moved, at_time - start) for at, at_time in found[first:]]
    for at, time_due in due:
        if ahead and time_due < AHEAD_UNTIL * windows:
            (seconds,) = struct.unpack_from("<I", cut, at)
            struct.pack_into("<I", cut, at, seconds + HOUR)
    path.write_bytes(cut)
    return bytes(cut), due


def feed(pipe, capture, due, began, speed):
    """Writes a capture at the pace of the run: a replay's own pace would not wait behind a clock that is set back."""
    ends, times = [at for at, _ in due[1:]] + [len(capture)], [when for _, when in due]
    written = 0
    with contextlib.suppress(BrokenPipeError), pipe:
        while written < len(capture):
            passed = (time.monotonic() - began) * speed
            number = bisect.bisect_right(times, passed)
            end = ends[number - 1] if number else 24
            pipe.write(capture[written:end])
            pipe.flush()
            written = max(written, end)
            time.sleep(0.05)


# Programs.


class Nats:
    """A nats-server on ports of its own that is killed and comes again on them."""

    def __init__(self, folder):
        self.port, self.monitoring, self.starts = free_port(), free_port(), 0
        self.conf, self.folder, self.running = folder / "nats.conf", folder, None
        self.conf.write_text(
            f'listen: "127.0.0.1:{self.port}"\nhttp: "127.0.0.1:{self.monitoring}"\n'
            f'jetstream {{ store_dir: "{folder}/store", max_file_store: 64GB }}\n'
        )
        self.url = f"nats://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        self.starts += 1
        self.running = Program(f"nats-server-{self.starts}", ["nats-server", "-c", self.conf], self.folder)
        self.running.ready("Server is ready")

    def kill(self):
        self.running.child.kill()
        self.running.reap(0)

    def streams(self):
        """What the server tells of its streams, in detail; None while it is away."""
        told = get(f"http://127.0.0.1:{self.monitoring}/jsz?consumers=true")
        accounts = json.loads(told).get("account_details", []) if told else []
        return [stream for account in accounts for stream in account.get("stream_detail", [])] or None

    def delivered(self):
        streams = self.streams()
        consumers = [consumer for stream in streams or [] for consumer in stream.get("consumer_detail") or []]
        return bool(consumers) and all(consumer["num_pending"] == 0 for consumer in consumers)


def killing(nats, flags, began, seconds, over):
    """Kills the server at random moments, and starts it again soon after each."""
    dice = random.Random(flags.seed)
    moments = sorted(dice.uniform(0.05, 0.95) * seconds for _ in range(flags.kills))
    for moment in moments:
        if over.wait(max(0, began + moment - time.monotonic())):
            return
        nats.kill()
        # Whatever happens, it comes again: probes wait for it.
        over.wait(dice.uniform(0.1, 2))
        nats.start()


def configuration(folder, front, parts):
    """The example of alerts with other windows and rules and these writers."""
    text = (ROOT / "examples/alerts.yaml").read_text()
    text = re.sub(r"(?m)^writers:\n(  .*\n)+", "", text)
    text = re.sub(r"(?m)^  window: .*", f"  window: 1s\n  allowed_lateness: {LATENESS}s", text)
    text = re.sub(r"(?m)^nats:\n", f"nats:\n  jetstream: {{max_bytes: {STREAM}MiB}}\n", text)
    text = text.replace("  outputs:", RULES + "  outputs:").replace("./alerts.jsonl", f"{folder}/alerts.jsonl")
    if "queries" not in parts:
        text = re.sub(r"(?m)^    - \{name: \w+, *type: (?!exact).*\n", "", text)
        text = re.sub(r"(?m)^    - \{name: [\w-]+, *task: (?!per_).*\n", "", text)
    if "alerts" not in parts:
        text = text[: text.index("\nalerts:")] + "\n"
    inserted = [name for name in INSERTED if name in text]
    writers = {
        "csv": f"{{type: csv, path: {folder}/out}}",
        "parquet": f"{{type: parquet, path: {folder}/parquet}}",
        "jsonl": f"{{type: jsonl, path: {folder}/jsonl}}",
        "nats": "{type: nats, subject: soak.snapshots}",
        "clickhouse": f'{{type: clickhouse, url: "http://127.0.0.1:{front}", database: soak, tasks: [{", ".join(inserted)}],'
        " retry: {first: 500ms, most: 2s}}",
    }
    live, offline = folder / "live.yaml", folder / "offline.yaml"
    chosen = "".join(f"  - {writer}\n" for name, writer in writers.items() if name == "csv" or name in parts)
    live.write_text(f"{text}\nhttp: {{memory: {RECENT}MiB}}\nwriters:\n{chosen}")
    offline_text = text.replace("alerts.jsonl", "alerts-offline.jsonl")
    offline.write_text(f"{offline_text}\nwriters:\n  - {{type: csv, path: {folder}/offline}}\n")
    return live, offline


def clickhouse(folder, port):
    """ClickHouse as the tests have it."""
    command = [PYTHON, ROOT / "tests/clickhouse_front.py", folder / "clickhouse", port]
    return Program("clickhouse", command, folder).ready("ready ")


# Samples.


def descriptors(pid):
    """How many descriptors a process has, and the bytes on disk of those files that have no name any more."""
    count, unlinked = 0, 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            status = os.stat(f"/proc/{pid}/fd/{name}")
            count += 1
            # Only regular files have data on disk.
            unlinked += status.st_blocks * 512 if status.st_nlink == 0 and status.st_mode & 0o170000 == 0o100000 else 0
    return count, unlinked


def resident(pid, *names):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return [int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in names]


def sample(folder, engine, probe, nats, http):
    pid = engine.child.pid
    rss, anonymous, threads = resident(pid, "VmRSS", "RssAnon", "Threads")
    count, unlinked = descriptors(pid)
    state = folder / "out.state"
    manifests = [path.stat().st_size for path in state.glob("manifest-*.json") if path.exists()]
    taken = {
        "rss": rss * 1024 / 1e6,
        "anonymous": anonymous * 1024 / 1e6,
        "threads": threads,
        "descriptors": count,
        "archive": megabytes(unlinked),
        "state": megabytes(used(state, but="outbox")),
        "outbox": megabytes(used(state / "outbox")),
        "manifest": max(manifests, default=0) / 1e3,
        "windows": len([name for name in os.listdir(folder / "out") if name[0] != "."]) if (folder / "out").exists() else 0,
    }
    with contextlib.suppress(OSError, TypeError):
        taken["probe"] = resident(probe.child.pid, "VmRSS")[0] * 1024 / 1e6
    if streams := nats.streams():
        taken["log"] = megabytes(sum(stream["state"]["bytes"] for stream in streams))
        consumers = [consumer for stream in streams for consumer in stream.get("consumer_detail") or []]
        taken["pending"] = sum(consumer["num_pending"] for consumer in consumers)
    if http:
        numbers = get(f"http://127.0.0.1:{http}/metrics")
        get(f"http://127.0.0.1:{http}/api/v1/windows?limit=10")
        get(f"http://127.0.0.1:{http}/api/v1/windows/latest/per_src_ip?limit=100")
        taken["recent"] = megabytes(metric(numbers, "recent_bytes"))
        taken["queue"] = metric(numbers, "writer_queue_windows")
    return taken


def sampling(samples, began, over, every, *what):
    while not over.wait(every):
        try:
            samples.append({"at": time.monotonic() - began, **sample(*what)})
        except (OSError, ValueError):
            return  # the engine has ended


def table(samples):
    """The peaks of equal parts of the run, a row each."""
    columns = ["windows", *FIGURES, "queue", "pending"]
    print(f"\n  {'at s':>6} " + " ".join(f"{name:>11}" for name in columns))
    print(f"  {'':>6} " + " ".join(f"{FIGURES[name].unit if name in FIGURES else '':>11}" for name in columns))
    rows = []
    for part in range(ROWS):
        of_part = samples[len(samples) * part // ROWS : len(samples) * (part + 1) // ROWS]
        if not of_part:
            continue
        row = {name: max((taken[name] for taken in of_part if name in taken), default=None) for name in columns}
        row["at"] = of_part[-1]["at"]
        cells = ("" if row[name] is None else f"{row[name]:.2f}".rstrip("0").rstrip(".") for name in columns)
        print(f"  {row['at']:6.0f} " + " ".join(f"{cell:>11}" for cell in cells))
        rows.append(row)
    return rows


def verdict(samples):
    """Whether each figure stays where it is in the second half."""
    half, three_quarters = len(samples) // 2, len(samples) * 3 // 4
    judged = {}
    print(f"\n  {'':<28} {'3rd quarter':>12} {'4th quarter':>12} {'at most':>10}")
    for key, figure in FIGURES.items():
        third = [taken[key] for taken in samples[half:three_quarters] if key in taken]
        fourth = [taken[key] for taken in samples[three_quarters:] if key in taken]
        if not third or not fourth:
            continue
        it = judged[key] = figure.judge(third, fourth)
        shown = f"{it['third']:12.2f} {it['fourth']:12.2f} {it['limit']:10.2f} {figure.unit:<3}"
        print(f"  {figure.name:<28} {shown} {'flat' if it['flat'] else 'GROWS'}")
    return judged


def behind(samples, speed):
    """How far windows were behind the replay at most, seconds of wall time beyond the allowed lateness, and when."""
    lag = lambda taken: taken["at"] - (taken["windows"] + LATENESS) / speed
    worst = max(samples, key=lag)
    return max(0, lag(worst)), worst["at"]


# What came of it.


def tables_of(folder):
    return {str(path.relative_to(folder)) for path in folder.glob("[2a]*/*.csv")}


def compare_tables(folder):
    """Tables that are not those of pcap-analyzer, and how many there are; windows that were revised on the way."""
    ours, theirs = tables_of(folder / "out"), tables_of(folder / "offline")
    same = lambda name: (folder / "out" / name).read_bytes() == (folder / "offline" / name).read_bytes()
    wrong = sorted(ours ^ theirs) + [name for name in sorted(ours & theirs) if not same(name)]
    revised = sum(json.loads(path.read_text())["revision"] > 0 for path in (folder / "out").glob("[2a]*/summary.json"))
    return {"tables": len(theirs), "wrong": wrong, "revised": revised}


def compare_writers(folder, front, parts):
    """Windows that a writer does not have, by its name; in ClickHouse also those whose sums are others than csv's."""
    windows = {path.name for path in (folder / "out").glob("[2a]*")}
    missing = {}
    if "parquet" in parts:
        missing["parquet"] = len(windows ^ {path.name.removeprefix("window=") for path in (folder / "parquet").glob("window=*")})
    if "jsonl" in parts:
        missing["jsonl"] = len(windows ^ {path.name for path in (folder / "jsonl").glob("[2a]*")})
    if "clickhouse" in parts:
        summaries = [json.loads((folder / "out" / name / "summary.json").read_text()) for name in windows]
        missing["clickhouse"] = 0
        for task in INSERTED:
            expected = {
                (summary["window_start"].replace("T", " ").rstrip("Z"), *(str(summary["tasks"][task][key]) for key in ("rows", "packets", "bytes")))
                for summary in summaries
                if task in summary["tasks"] and summary["tasks"][task]["rows"]
            }
            if not expected:
                continue
            sql = f"SELECT toString(window_start), count(), sum(packets), sum(bytes) FROM {task} GROUP BY window_start"
            request = urllib.request.Request(f"http://127.0.0.1:{front}/?database=soak", data=sql.encode())
            with urllib.request.urlopen(request, timeout=600) as answer:
                found = {tuple(line.split("\t")) for line in answer.read().decode().splitlines()}
            missing["clickhouse"] += len(expected ^ found)
    return missing


def events_of(path):
    found = path.read_text().splitlines() if path.exists() else []
    return {event: sum(f'"event":"{event}"' in line for line in found) for event in ("raised", "withdrawn")}


def check(folder, front, flags, offline, captures, sent):
    """All that has to be right in the end; what is not, as sentences."""
    command = [BINARIES / "pcap-analyzer", "-q", "-c", offline, "-w", 2, "--window", "1s", "-o", folder / "offline", *captures]
    subprocess.run([str(word) for word in command], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    tables, missing = compare_tables(folder), compare_writers(folder, front, flags.parts)
    ledger = json.loads((folder / "out/ledger.json").read_text())["packets"]
    alerts = events_of(folder / "alerts.jsonl")
    print(f"\n  {tables['tables']} tables, {len(tables['wrong'])} differ from pcap-analyzer's; {tables['revised']} windows were revised")
    print(f"  ledger: {ledger}")
    print(f"  alerts: {alerts}, offline {events_of(folder / 'alerts-offline.jsonl')}; windows that writers miss: {missing}")
    wrong = []
    if tables["wrong"]:
        wrong.append(f"{len(tables['wrong'])} tables differ, first {tables['wrong'][0]}")
    if ledger["lost"] or ledger["counted"] != sent:
        wrong.append(f"{ledger['counted']} of {sent} packets counted, {ledger['lost']} lost")
    if ledger["read"] != sum(ledger[key] for key in ("counted", "filtered", "non_ip", "malformed")):
        wrong.append("the ledger does not balance")
    if "alerts" in flags.parts and not alerts["raised"]:
        wrong.append("no alert was raised")
    wrong += [f"{name} does not have {count} windows" for name, count in missing.items() if count]
    return {**tables, "ledger": ledger, "alerts": alerts, "missing": missing}, wrong


def run(folder, flags):
    windows, parts, jumps = flags.windows, flags.parts, "jumps" in flags.parts
    packets = max(PACKETS, IN_ALL // windows) * windows
    first, other = folder / "first.pcap", folder / "second.pcap"
    generate(first, packets, windows, flags.seed, True)
    generate(other, packets // 5, windows, flags.seed + 1, False)
    sent = misdate(first, windows) if jumps else sum(1 for _ in frames(first.read_bytes()))
    capture, due = second(other, windows, jumps)
    sent += len(due)
    front, http = free_port(), free_port() if "http" in parts else None
    config, offline = configuration(folder, front, parts)
    samples, over = [], threading.Event()
    with contextlib.ExitStack() as stack:
        nats = Nats(folder)
        stack.callback(lambda: nats.running.__exit__())
        # So that nobody starts what is not ended again.
        stack.callback(over.set)
        if "clickhouse" in parts:
            stack.enter_context(clickhouse(folder, front))
        bus = ["-c", config, "--nats", nats.url, "--jetstream"]
        more = ["--http", f"127.0.0.1:{http}"] if http else []
        engine = stack.enter_context(Program("ns-engine", [BINARIES / "ns-engine", *bus, "-o", folder / "out", *more], folder))
        engine.ready("subscribed to")
        began, seconds = time.monotonic(), windows / flags.speed
        replay = [BINARIES / "ns-probe", *bus, "--id", "first", "--read", first, "--pace", f"{flags.speed}x"]
        probe = stack.enter_context(Program("first", replay, folder))
        piped = [BINARIES / "ns-probe", *bus, "--id", "second", "--read", "-"]
        threads = [(sampling, (samples, began, over, flags.every, folder, engine, probe, nats, http))]
        if "kills" in parts:
            threads.append((killing, (nats, flags, began, seconds, over)))
        threads = [threading.Thread(target=target, args=args) for target, args in threads]
        for thread in threads:
            thread.start()
        probe.until(lambda: time.monotonic() - began >= SECOND_FROM * seconds, seconds, "")
        late = stack.enter_context(Program("second", piped, folder, stdin=subprocess.PIPE))
        feed(late.child.stdin, capture, due, began, flags.speed)
        for source in (probe, late):
            source.ended(seconds + 120)
        over.set()
        for thread in threads:
            thread.join()
        print(f"  replayed {sent} packets of {windows} s in {time.monotonic() - began:.0f} s; nats-server was killed {nats.starts - 1} times")
        engine.until(nats.delivered, 120, "not everything stored was delivered", poll=0.05)
        engine.stop()
        rows, judged = table(samples), verdict(samples)
        found, wrong = check(folder, front, flags, offline, (first, other), sent)
    lag, when = behind(samples, flags.speed)
    print(f"  windows were {lag:.0f} s behind the replay at most, after {when:.0f} s")
    if lag > BEHIND:
        wrong.append(f"windows were {lag:.0f} s behind the replay after {when:.0f} s")
    wrong += [f"{FIGURES[key].name} grows: {it['third']:.2f} to {it['fourth']:.2f}" for key, it in judged.items() if not it["flat"]]
    return {"windows": windows, "packets": sent, "rows": rows, "figures": judged, **found, "faults": wrong, "samples": samples}


def options():
    flags = argparse.ArgumentParser(description="An hour of event time, compressed: what grows, and is the answer exact?")
    flags.add_argument("--windows", type=int, help=f"windows of 1 s (default: {WINDOWS}; quick: {QUICK})")
    flags.add_argument("--speed", type=float, default=SPEED, help=f"windows a second of wall time (default: {SPEED})")
    flags.add_argument("--seed", type=int, default=1, help="of the captures and of the kills (default: 1)")
    flags.add_argument("--kills", type=int, help="kills of nats-server (default: 8; quick: 2)")
    flags.add_argument("--quick", action="store_true", help="a form of two minutes: fewer windows, as many packets")
    flags.add_argument("--no-jumps", action="append_const", dest="without", const="jumps", help="all clocks are right")
    flags.add_argument("--without", action="append", choices=PARTS, help="leave this out, to find what grows; may be given again")
    flags.add_argument("--keep", action="store_true", help=f"leave captures, snapshots and logs in {FOLDER}")
    flags.add_argument("--json", type=pathlib.Path, default=BENCH / "soak.json", metavar="FILE", help="where the figures go")
    flags = flags.parse_args()
    flags.windows = flags.windows or (QUICK if flags.quick else WINDOWS)
    flags.kills = (2 if flags.quick else 8) if flags.kills is None else flags.kills
    flags.parts = set(PARTS) - set(flags.without or ())
    flags.every = 1 if flags.quick else 2
    if flags.windows < 100 or flags.speed <= 0 or flags.kills < 0:
        sys.exit("--windows: from 100 on; --speed: above 0; --kills: from 0 on")
    return flags


def main():
    flags = options()
    for name in ("ns-probe", "ns-engine", "pcap-analyzer", "pcapgen"):
        if not (BINARIES / name).exists():
            sys.exit(f"{BINARIES / name} is missing: `cargo build --release`, or set NETSPECTRA_BIN_DIR")
    # So that every `with` block ends what it started.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, lambda *_: sys.exit("ended by a signal"))
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    print(f"{flags.windows} windows of 1 s at {flags.speed:g} a second, seed {flags.seed}, without {sorted(set(PARTS) - flags.parts)}")
    found = run(FOLDER, flags)
    flags.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n  also in {os.path.relpath(flags.json)}")
    if not flags.keep:
        shutil.rmtree(FOLDER)
    sys.exit("\n".join(found["faults"]) or 0)


if __name__ == "__main__":
    main()
