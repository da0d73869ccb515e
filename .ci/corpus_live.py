#!/usr/bin/env python3
"""Holds ns-probe and ns-engine against pcap-analyzer, capture by capture: the same packets, the same bytes of answer.

usage: corpus_live.py BIN_DIR CORPUS [NAME...]

Each capture that pcap-analyzer reads is replayed through a nats-server of this script's own: batch and single encoding, over
core NATS and JetStream. The snapshot trees must be the same, nothing lost, and with batches the books' totals equal.
Prints a line for each that differs, then 'N passed, N failed'; exit 1 when any failed.
"""
import concurrent.futures, filecmp, json, os, pathlib, queue, shutil, signal, subprocess, sys, tempfile, time

MODES = [("batch", False), ("batch", True), ("single", False), ("single", True)]
AT_ONCE = 2


class Server:
    """A nats-server on a free port."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        command = ["nats-server", "-a", "127.0.0.1", "-p", "-1", "-js", "-sd", str(self.folder / "store"),
                   "--ports_file_dir", str(self.folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not (files := list(self.folder.glob("*.ports"))) or not files[0].read_text().strip():
            if time.monotonic() > deadline:
                raise SystemExit("nats-server has not started within 20 s")
            time.sleep(0.02)
        self.url = json.loads(files[0].read_text())["nats"][0]

    def stop(self):
        self.process.kill()
        self.process.wait()


def differences(left, right, below=""):
    """Files that are not the same in both folders; the ledgers are left out."""
    compared = filecmp.dircmp(left, right, ignore=["ledger.json"])
    found = [below + name for name in compared.left_only + compared.right_only]
    _, wrong, odd = filecmp.cmpfiles(left, right, compared.common_files, shallow=False)
    found += [below + name for name in wrong + odd]
    for name in compared.common_dirs:
        found += differences(f"{left}/{name}", f"{right}/{name}", f"{below}{name}/")
    return found


def live(bin_dir, server, capture, out, stream, encoding, jetstream):
    """Replays a capture through an engine; gives what the engine's ledger says."""
    config = out.with_suffix(".yaml")
    text = (pathlib.Path(__file__).parents[1] / "config.yaml").read_text()
    text = text.replace("stream: GONS_PACKETS", f"stream: {stream}").replace("gons.", f"{stream}.")
    config.write_text(text.replace("max_bytes: 10GiB", "max_bytes: 64MiB"))
    bus = ["-c", config, "--nats", server.url] + ["--jetstream"] * jetstream
    engine = subprocess.Popen([f"{bin_dir}/ns-engine", *bus, "-w", "2", "--window", "60s", "-o", out],
                              stderr=subprocess.PIPE, text=True)
    try:
        said = ""
        while "subscribed to" not in said:
            said = engine.stderr.readline()
            if not said:
                return f"the engine ended: exit {engine.wait()}"
        probe = subprocess.run([f"{bin_dir}/ns-probe", *bus, "--encoding", encoding, "-q", "-r", capture],
                               capture_output=True, text=True, timeout=120)
        if probe.returncode != 0:
            return f"the probe ended: exit {probe.returncode}: {probe.stderr}"
        engine.send_signal(signal.SIGTERM)
        _, errors = engine.communicate(timeout=120)
        if engine.returncode != 0:
            return f"the engine ended: exit {engine.returncode}: {errors}"
    finally:
        engine.kill()
    return json.loads((out / "ledger.json").read_text())


def check(bin_dir, server, capture, folder):
    """Problems with one capture; `None` where pcap-analyzer does not read it."""
    offline = folder / "offline"
    run = subprocess.run([f"{bin_dir}/pcap-analyzer", "-q", "--window", "60s", "-o", offline, capture],
                         capture_output=True, text=True)
    if run.returncode not in (0, 3):
        return None
    expected = json.loads((offline / "ledger.json").read_text())
    problems = []
    for encoding, jetstream in MODES:
        mode = f"{encoding}, {'JetStream' if jetstream else 'core'}"
        out = folder / f"{encoding}-{jetstream}"
        stream = f"S{encoding}{int(jetstream)}{folder.name}".replace("-", "_")
        ledger = live(bin_dir, server, capture, out, stream, encoding, jetstream)
        if isinstance(ledger, str):
            problems.append(f"{mode}: {ledger}")
            continue
        if different := differences(offline, out):
            problems.append(f"{mode}: {len(different)} files differ, such as {different[0]}")
        if ledger["packets"]["lost"]:
            problems.append(f"{mode}: lost {ledger['packets']['lost']}")
        same = ["packets", "bytes", "windows"] if encoding == "batch" else ["windows"]
        problems += [f"{mode}: {part} {ledger[part]}, offline {expected[part]}" for part in same
                     if ledger[part] != expected[part]]
    return problems


def main():
    bin_dir, corpus, *names = sys.argv[1:]
    names = names or sorted(name for name in os.listdir(corpus) if (pathlib.Path(corpus) / name).is_file())
    passed = failed = unreadable = 0
    with tempfile.TemporaryDirectory() as top, concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        servers = queue.Queue()
        for number in range(AT_ONCE):
            folder = pathlib.Path(top) / f"server{number}"
            folder.mkdir()
            servers.put(Server(folder))

        def one(number, name):
            server = servers.get()
            folder = pathlib.Path(top) / f"c{number}"
            folder.mkdir()
            try:
                return check(bin_dir, server, pathlib.Path(corpus) / name, folder)
            finally:
                servers.put(server)
                shutil.rmtree(folder)

        try:
            for name, problems in zip(names, pool.map(one, range(len(names)), names)):
                if problems is None:
                    unreadable += 1
                elif problems:
                    failed += 1
                    print(f"FAIL {name}")
                    for problem in problems:
                        print(f"     {problem}")
                else:
                    passed += 1
        finally:
            while not servers.empty():
                servers.get().stop()
    print(f"live as offline: {passed} passed, {failed} failed; {unreadable} no captures")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
