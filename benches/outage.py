#!/usr/bin/env python3
"""A writer that is away for a while under load: a replay at a steady rate through JetStream into ns-engine, which writes
csv and ClickHouse; the server of the latter is killed in the middle and started again SECONDS later.

Tells what readiness and memory were meanwhile, how long it took to catch up, and whether all rows are where they belong.
usage: outage.py [PACKETS_A_SECOND [SECONDS]]        (default 500000 30)
Environment: as for compare.py; the Python of the tests (`make test-deps`).
"""
import json, pathlib, re, shutil, signal, subprocess, sys, time, urllib.error, urllib.request

import compare

RATE = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
AWAY = int(sys.argv[2]) if len(sys.argv) > 2 else 30
BEFORE, AFTER = 10, 20
FOLDER = compare.BENCH / "outage"
PYTHON = compare.TARGET / "test-python/bin/python3"
NATS, FRONT, HTTP = 14222, 18124, 19477


def start(*command, **options):
    return subprocess.Popen([str(word) for word in command], stderr=open(FOLDER / "log", "a"), **options)


def get(path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{HTTP}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def metric(text, name):
    found = re.search(rf"(?m)^netspectra_{name}(?:{{[^}}]*}})? (\S+)$", text)
    return float(found[1]) if found else 0.0


def ask(sql):
    request = urllib.request.Request(f"http://127.0.0.1:{FRONT}/?database=outage", data=sql.encode())
    with urllib.request.urlopen(request, timeout=600) as answer:
        return answer.read().decode()


def memory(process):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1000


def clickhouse():
    return start(PYTHON, compare.ROOT / "tests/clickhouse_front.py", FOLDER / "clickhouse", FRONT)


def until(what, ready, most=300):
    end = time.monotonic() + most
    while not ready():
        if time.monotonic() > end:
            sys.exit(f"no {what} within {most} s; see {FOLDER}/log")
        time.sleep(0.1)


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    seconds = BEFORE + AWAY + AFTER
    capture = FOLDER / "capture.pcap"
    options = ["--packets", RATE * seconds, "--flows", 200_000, "--size", "min", "--duration", f"{seconds}s"]
    subprocess.run([str(word) for word in [compare.BINARIES / "pcapgen", *options, "-o", capture]], check=True)
    server_of_rows = f'{{type: clickhouse, url: "http://127.0.0.1:{FRONT}", database: outage, retry: {{first: 500ms, most: 2s}}}}'
    (FOLDER / "config.yaml").write_text(compare.with_writers("{type: csv, path: ./snapshots}", server_of_rows))
    server = start("nats-server", "-a", "127.0.0.1", "-p", NATS, "--jetstream", "-sd", FOLDER / "nats")
    front = clickhouse()
    engine = None
    try:
        time.sleep(5)
        common = ["-c", FOLDER / "config.yaml", "--nats", f"nats://127.0.0.1:{NATS}", "--jetstream"]
        engine = start(
            compare.BINARIES / "ns-engine", *common, "--window", "1s", "-o", FOLDER / "out", "--http", f"127.0.0.1:{HTTP}"
        )
        until("engine", lambda: get("/readyz")[0] == 200)
        began = time.monotonic()
        probe = start(compare.BINARIES / "ns-probe", *common, "--read", capture, "--pace", "original", stdout=subprocess.DEVNULL)
        time.sleep(BEFORE)
        before = memory(engine)
        front.send_signal(signal.SIGKILL)
        print(f"{BEFORE} s: ready {get('/readyz')[0]}, peak {before:.0f} MB; ClickHouse killed")
        time.sleep(AWAY - 2)
        status, why = get("/readyz")
        queued = metric(get("/metrics")[1], "writer_queue_windows")
        windows = len(list((FOLDER / "out").glob("2*Z")))
        print(f"{BEFORE + AWAY - 2} s: ready {status} {why.strip()}; {queued:.0f} windows wait, csv has {windows}")
        time.sleep(2)
        front = clickhouse()
        back = time.monotonic()
        until("catching up", lambda: metric(get("/metrics")[1], "writer_queue_windows") <= 1 and get("/readyz")[0] == 200)
        print(f"caught up {time.monotonic() - back:.1f} s after it was back, peak {memory(engine):.0f} MB")
        probe.wait()
        print(f"replayed {RATE * seconds} packets in {time.monotonic() - began:.1f} s")
        peak = memory(engine)
        engine.terminate()
        if engine.wait() != 0:
            sys.exit(f"the engine failed; see {FOLDER}/log")
        ledger = json.loads((FOLDER / "out/ledger.json").read_text())["packets"]
        print(f"ledger: {ledger}; peak {peak:.0f} MB")
        wrong = 0
        for window in sorted((FOLDER / "out").glob("2*Z")):
            summary = json.loads((window / "summary.json").read_text())
            start_of = summary["window_start"].replace("T", " ").rstrip("Z")
            for task, totals in summary["tasks"].items():
                found = ask(
                    f"SELECT count(), sum(packets), sum(bytes) FROM {task} WHERE window_start = toDateTime64('{start_of}', 9, 'UTC')"
                )
                expected = "\t".join(str(totals[key]) for key in ("rows", "packets", "bytes"))
                wrong += found.strip() != expected
        print(f"{len(list((FOLDER / 'out').glob('2*Z')))} windows; tables that differ from csv's: {wrong}")
        sys.exit(bool(wrong) or ledger["lost"] > 0 or ledger["counted"] != RATE * seconds)
    finally:
        for process in (engine, front, server):
            if process:
                process.kill()
        capture.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
