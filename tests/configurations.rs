//! Configurations, flags and servers as people meet them: what the programs make of each, and what they say.
//!
//! The files of `tests/cases` are read as they lie there; each stands for a slip that users of comparable tools have
//! reported.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use support::live::{ENGINE, NatsServer, PROBE, number};
use support::*;

const ANALYZER: &str = env!("CARGO_BIN_EXE_pcap-analyzer");
/// What a YAML library tells programmers.
const LIBRARY: [&str; 7] =
    ["serde", "Options", "DuplicateKey", "deserialize", "invalid type", "mapping values", "simple key"];

/// Bytes of a file of `tests/cases`.
/// A capture that pauses for 18 hours between its first packet and all others.
fn pausing() -> Vec<u8> {
    let at = |second: u64| packet(second * 1000, "192.0.2.1", "192.0.2.2");
    pcap(&[0, 65_536, 65_537, 65_538].map(at))
}

fn case(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name)).unwrap()
}

fn text(name: &str) -> String {
    String::from_utf8(case(name)).unwrap()
}

/// A folder with a capture, `a.pcap`.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(1, 50, SECOND)));
    fs::create_dir(scratch.path("home")).unwrap();
    scratch
}

/// Runs a program with these variables in its environment.
fn run_with(scratch: &Scratch, program: &str, args: &str, variables: &[(&str, &str)]) -> Run {
    let mut command = scratch.command(program, args);
    for name in ["NETSPECTRA_LOG", "NETSPECTRA_LOG_FORMAT", "NOT_SET_XYZ"] {
        command.env_remove(name);
    }
    command.env("HOME", scratch.path("home")).envs(variables.iter().copied());
    Running::start(command).finish()
}

/// Asserts that a run with this configuration is refused, says all of this, and writes nothing.
fn assert_refused(scratch: &Scratch, config: &[u8], says: &[&str], variables: &[(&str, &str)]) -> Run {
    scratch.write("c.yaml", config);
    let before = entries(&scratch.path("."));
    let run = run_with(scratch, ANALYZER, "-c c.yaml a.pcap", variables);
    says.iter().for_each(|says| run.assert(2, says));
    for words in LIBRARY {
        assert!(!run.stderr.contains(words), "{words:?} are the library's: {run:?}");
    }
    assert_eq!(entries(&scratch.path(".")), before, "it wrote something: {run:?}");
    run
}

#[test]
fn slips_of_people_who_write_yaml_are_told_in_the_words_of_the_configuration() {
    for (name, says) in [
        ("30-dup-key.yaml", ["c.yaml:3:3: ", "`window` is given twice; the first one is in line 2"]),
        ("30-empty-file.yaml", ["c.yaml:1:1: ", "the file is empty"]),
        ("30-env-dollar.yaml", ["c.yaml:7:23: ", "written ${HOME} here, not $HOME"]),
        (
            "30-float-number.yaml",
            ["c.yaml:2:16: aggregator.num_workers", "`2.0` is not a whole number; write 2"],
        ),
        ("30-latin1-comment.yaml", ["c.yaml:8:6: ", "not UTF-8"]),
        ("30-missing-space.yaml", ["c.yaml:2:3: ", "write `window: 60s`"]),
        ("30-task-name-long.yaml", ["c.yaml:5:14: task name", "at most 200"]),
        ("30-two-docs.yaml", ["c.yaml:8:1: ", "a second YAML document"]),
        (
            "30-window-null.yaml",
            ["c.yaml:2:", "aggregator.window has no value; write a duration such as 60s, or `all`"],
        ),
    ] {
        assert_refused(&scratch(), &case(name), &says, &[]);
    }
}

#[test]
fn what_is_right_is_done() {
    for (name, folder) in [
        ("30-env-comment-apostrophe2.yaml", "out/x-'y"),
        ("30-env-escape.yaml", "out/${HOME}"),
        ("30-no-window.yaml", "o"),
        ("30-path-tilde.yaml", "home/x"),
    ] {
        let scratch = scratch();
        scratch.write("c.yaml", case(name));
        run_with(&scratch, ANALYZER, "-c c.yaml a.pcap", &[]).assert(0, "");
        assert!(scratch.path(folder).join("all/a.csv").exists(), "{name}: no {folder}");
    }
}

#[test]
fn sections_that_are_left_out_have_their_defaults() {
    for text in ["http: {memory: 1MiB}\n", "alerts: {rules: []}\n", "aggregator: {num_workers: 1}\n", "{}"] {
        let scratch = scratch();
        scratch.write("c.yaml", text);
        run_with(&scratch, ANALYZER, "-c c.yaml --window 60s a.pcap", &[]).assert(0, "");
        assert_holds(&scratch.path("snapshots"), &mixed(1, 50, SECOND), 60 * SECOND, SHIPPED);
    }
}

#[test]
fn all_slips_of_a_file_are_told_in_one_run() {
    let text = "nats: {url: nats://h:4222, tokn: x}
aggregator:
  window: 60
  windw: 60s
  num_workers: many
  tasks:
    - {name: a, type: exakt, key_fields: [SrcIP]}
    - {name: b, type: exact, key_fields: [SrcIp]}
writers:
  - {type: csv, path: ''}
  - {type: jsonl, path: ./x, evry: 2, tasks: [a]}
http: {listen: nowhere, memory: 1}
alert: {}
";
    let says = [
        "c.yaml:1:28: nats: unknown key `tokn`; did you mean `token`?",
        "c.yaml:3:11: aggregator.window: `60`",
        "c.yaml:4:3: aggregator: unknown key `windw`; did you mean `window`?",
        "c.yaml:5:16: aggregator.num_workers: `many` is not a whole number",
        "c.yaml:7:23: task `a`: unknown type `exakt`",
        "c.yaml:8:",
        "c.yaml:10:23: csv writer: `path` is empty",
        "c.yaml:11:36: jsonl writer: unknown key `evry`; did you mean `every`?",
        "c.yaml:12:16: http.listen: `nowhere`",
        "c.yaml:12:33: http.memory: `1`",
        "c.yaml:13:1: unknown key `alert`; did you mean `alerts`?",
    ];
    let run = assert_refused(&scratch(), text.as_bytes(), &says, &[]);
    assert_eq!(run.stderr.lines().count(), says.len(), "{run:?}");
    assert!(run.stderr.lines().all(|line| line.starts_with("pcap-analyzer: c.yaml:")), "{run:?}");
}

/// A value of one letter took that letter out of every word of a message.
#[test]
fn a_value_from_the_environment_is_hidden_by_its_place() {
    let text = "aggregator: {window: \"${WINDOW}\", unknown_k: 1}\nnats: {user: '${USER_NAME}', password: '${SECRET}'}\n";
    let variables = [("WINDOW", "n"), ("USER_NAME", "u"), ("SECRET", "hunter2")];
    let says =
        ["`${WINDOW}`", "unknown key `unknown_k`; one of num_workers, window, allowed_lateness, tasks"];
    let run = assert_refused(&scratch(), text.as_bytes(), &says, &variables);
    assert!(!run.stderr.contains("hunter2") && !run.stderr.contains("`n`"), "{run:?}");
    let text = "aggregator: {tasks: [{name: \"${SECRET}\", type: exact, key_fields: [SrcIP], k: 3}]}\n";
    let says = ["task `${SECRET}`: unknown field `k`"];
    let run = assert_refused(&scratch(), text.as_bytes(), &says, &[("SECRET", "hunter2")]);
    assert!(!run.stderr.contains("hunter2"), "{run:?}");
}

#[test]
fn variables_that_are_not_set_are_told_all_at_once_and_never_of_a_comment() {
    let text = "# ${NOT_SET_XYZ}\naggregator: {window: ${NOT_SET_XYZ}}\nhttp: {token: \"${NOT_SET_XYZ}\"} # '${NOT_SET_XYZ}\n";
    let says = ["c.yaml:2:22: the environment variable `NOT_SET_XYZ` is not set", "c.yaml:3:15: "];
    let run = assert_refused(&scratch(), text.as_bytes(), &says, &[]);
    assert_eq!(run.stderr.lines().count(), 2, "{run:?}");
}

#[test]
fn a_probe_refuses_keys_that_no_program_knows() {
    let scratch = scratch();
    for (text, says) in [
        ("aggregator: {windw: 60s}\n", "unknown key `windw`"),
        ("writers: [{type: csv, pth: ./x}]\n", "unknown key `pth`"),
        ("http: {listn: x}\n", "unknown key `listn`"),
        ("alerts: {outputs: [{type: jsonl, file: x}]}\n", "unknown key `file`"),
        ("cluster: {hosts: x}\n", "unknown key `hosts`"),
        ("nats: {tls: {cafile: x}}\n", "unknown key `cafile`"),
        ("probe: {}\n", "unknown key `probe`"),
    ] {
        scratch.write("c.yaml", text);
        let run = run_with(&scratch, PROBE, "-c c.yaml --read a.pcap", &[]);
        run.assert(2, says);
        run.assert(2, "c.yaml:1:");
    }
}

#[test]
fn a_configuration_that_nobody_named_is_told_as_that() {
    let scratch = scratch();
    scratch.write("config.yaml", "services: {web: {image: nginx}}\n");
    for (program, args) in [(ANALYZER, "a.pcap"), (PROBE, "--read a.pcap")] {
        let run = run_with(&scratch, program, args, &[]);
        run.assert(2, "config.yaml:1:1: unknown key `services`");
        run.assert(2, "no -c names a configuration");
    }
    fs::remove_file(scratch.path("config.yaml")).unwrap();
    std::os::unix::fs::symlink("gone.yaml", scratch.path("config.yaml")).unwrap();
    run_with(&scratch, ANALYZER, "a.pcap", &[]).assert(2, "config.yaml");
}

#[test]
fn a_window_of_the_configuration_that_is_not_used_is_told() {
    let scratch = scratch();
    scratch.write("c.yaml", config(SHIPPED));
    let run = run_with(&scratch, ANALYZER, "-c c.yaml a.pcap", &[]);
    run.assert(0, "");
    let told = "`window: 60s` in c.yaml applies to ns-engine only; here use --window 60s";
    assert!(run.stdout.contains(told), "{run:?}");
    let run = run_with(&scratch, ANALYZER, "-c c.yaml --json a.pcap", &[]);
    assert!(run.stdout.contains(told), "{run:?}");
    for args in ["a.pcap", "-c c.yaml --window 60s a.pcap", "-c c.yaml --window all a.pcap"] {
        let run = run_with(&scratch, ANALYZER, args, &[]);
        run.assert(0, "");
        assert!(!run.stdout.contains("applies to ns-engine only"), "{run:?}");
    }
}

#[test]
fn a_word_that_is_not_a_level_silences_nothing() {
    let scratch = scratch();
    for word in ["verbose", "netspectra", "netspectra=loud", "info,"] {
        let run = run_with(&scratch, ANALYZER, "-o out a.pcap", &[("NETSPECTRA_LOG", word)]);
        run.assert(2, "error, warn (or warning), info, debug, trace, off");
        assert!(!scratch.path("out").exists());
    }
    run_with(&scratch, ANALYZER, "a.pcap", &[("NETSPECTRA_LOG_FORMAT", "xml")]).assert(2, "text, json");
    let missing = |level: &str| run_with(&scratch, ANALYZER, "missing.pcap", &[("NETSPECTRA_LOG", level)]);
    for level in ["warning", "Error", "async_nats=debug"] {
        missing(level).assert(2, "missing.pcap");
    }
    let run = run_with(&scratch, ANALYZER, "-o out a.pcap", &[("NETSPECTRA_LOG", "debug")]);
    assert!(run.code == Some(0) && run.stderr.contains("pcap-analyzer: debug: epoch 0 committed"), "{run:?}");
}

#[test]
fn programs_name_themselves_and_their_help_is_their_own() {
    let scratch = scratch();
    let programs = [
        (ANALYZER, "pcap-analyzer", "Exact traffic analysis of capture files"),
        (ENGINE, "ns-engine", "Exact traffic analysis of live links"),
        (PROBE, "ns-probe", "Captures an interface, or replays a capture file"),
        (env!("CARGO_BIN_EXE_pcapgen"), "pcapgen", "Writes a synthetic capture"),
    ];
    for (program, name, sentence) in programs {
        let version = run_with(&scratch, program, "-V", &[]).stdout;
        assert_eq!(version, format!("{name} {}\n", env!("CARGO_PKG_VERSION")));
        for help in ["-h", "--help"] {
            let help = run_with(&scratch, program, help, &[]).stdout;
            assert!(help.starts_with(sentence), "{help}");
            let (_, end) = help.split_once("\nExamples:\n").unwrap();
            let (examples, environment) = end.split_once("\n\nEnvironment:").unwrap();
            assert_eq!(examples.lines().count(), 3, "{examples}");
            assert!(examples.lines().all(|line| line.contains(name)), "{examples}");
            assert!(name == "pcapgen" || environment.contains("NETSPECTRA_LOG_FORMAT"), "{environment}");
        }
    }
}

#[test]
fn flags_of_other_programs_are_refused_with_what_to_do_here() {
    let scratch = scratch();
    for (program, args, says) in [
        (ANALYZER, "-r a.pcap", "without a flag"),
        (ANALYZER, "-nn a.pcap", "never resolved"),
        (ANALYZER, "-n a.pcap", "never resolved"),
        (ANALYZER, "-w x.pcap a.pcap", "-o DIR writes snapshots"),
        (ANALYZER, "-A a.pcap", "payloads are not shown"),
        (ANALYZER, "-X a.pcap", "payloads are not shown"),
        (ANALYZER, "-s srcip/bytes a.pcap", "is a table"),
        (ANALYZER, "-t 10 a.pcap", "--window"),
        (ANALYZER, "-R folder", "DIR/*"),
        (ANALYZER, "-i eth0", "--iface"),
        (ANALYZER, "-o - a.pcap", "name a folder"),
        (ENGINE, "-o -", "name a folder"),
        (ENGINE, "-r a.pcap", "pcap-analyzer"),
        (ENGINE, "-w x.pcap", "-o DIR"),
        (PROBE, "-nn --read a.pcap", "never resolved"),
        (PROBE, "-C 100 --read a.pcap", "--rotate-size"),
        (PROBE, "-D", "--list"),
    ] {
        let run = run_with(&scratch, program, args, &[]);
        run.assert(2, says);
    }
    assert_eq!(entries(&scratch.path(".")), BTreeSet::from(["a.pcap".to_owned(), "home".to_owned()]));
    // Another name for a mode that others have.
    run_with(&scratch, PROBE, "--mode pub", &[]).assert(2, "name an interface");
}

/// A web server that answers 200 and its own page to anything.
fn web_server() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            thread::spawn(move || {
                connection.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                let (mut asked, mut some) = (Vec::new(), [0; 4096]);
                while let Ok(read @ 1..) = connection.read(&mut some) {
                    asked.extend_from_slice(&some[..read]);
                    if asked.windows(4).any(|four| four == b"\r\n\r\n") {
                        // What is left of the request is here at once.
                        connection.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                    }
                }
                let page = "<!DOCTYPE html><html><head><title>Welcome to nginx!</title></head></html>\n";
                let head = "Content-Type: text/html\r\nConnection: close";
                let length = page.len();
                // Who asked may be gone.
                let _ =
                    write!(connection, "HTTP/1.1 200 OK\r\n{head}\r\nContent-Length: {length}\r\n\r\n{page}");
            });
        }
    });
    port
}

#[test]
fn a_web_server_is_not_taken_for_clickhouse() {
    let scratch = scratch();
    let config = text("clickhouse-web200.yaml").replace("19011", &web_server().to_string());
    scratch.write("c.yaml", &config);
    let server = NatsServer::start();
    let check = format!("-c c.yaml --nats {} --check", server.url());
    for (program, args) in [(ANALYZER, "-c c.yaml a.pcap"), (ENGINE, &*check)] {
        let run = run_with(&scratch, program, args, &[]);
        run.assert(2, "not ClickHouse");
        run.assert(2, "<!DOCTYPE html>");
    }
}

#[test]
fn a_web_server_is_not_taken_for_nats() {
    let scratch = scratch();
    let url = format!("nats://127.0.0.1:{}", web_server());
    for (program, args) in [
        (PROBE, format!("--nats {url} --read a.pcap")),
        (ENGINE, format!("--nats {url} -o out")),
        (ENGINE, format!("--nats {url} --check")),
    ] {
        run_with(&scratch, program, &args, &[]).assert(2, "is not NATS: a web server answers there");
    }
}

/// A server with the users of a file of `tests/cases`.
fn server(name: &str) -> NatsServer {
    let options = text(name);
    let own = |line: &&str| !line.starts_with("port:") && !line.starts_with("host:");
    NatsServer::with(&options.lines().filter(own).collect::<Vec<_>>().join("\n"))
}

fn url(server: &NatsServer, user: &str) -> String {
    server.url().replace("nats://", &format!("nats://{user}@"))
}

#[test]
fn a_password_in_an_address_may_be_percent_encoded() {
    let (scratch, server) = (scratch(), server("nats-denied.conf"));
    let url = url(&server, "special:p%40s%3As%2Fw%23d%2541");
    let run = run_with(&scratch, PROBE, &format!("--nats {url} --read a.pcap --json"), &[]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(!run.stderr.contains("w#d") && !run.stderr.contains("w%23d"), "{run:?}");
}

#[test]
fn a_probe_needs_no_right_but_to_publish_its_packets_and_to_hear_answers() {
    let (scratch, server) = (scratch(), server("nats-denied.conf"));
    let args = format!("--nats {} --read a.pcap --json", url(&server, "least:pw"));
    let run = run_with(&scratch, PROBE, &args, &[]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(number(&report["packets"]["sent"]), 50);
}

#[test]
fn a_right_to_ask_jetstream_that_is_missing_is_named_at_once() {
    let (scratch, server) = (scratch(), server("nats-10047.conf"));
    let began = Instant::now();
    let args = format!("--nats {} --jetstream", url(&server, "nojsapi:pw"));
    for (program, args) in [
        (PROBE, format!("{args} --read a.pcap")),
        (ENGINE, format!("{args} -o out")),
        (ENGINE, format!("{args} --check")),
    ] {
        let run = run_with(&scratch, program, &args, &[]);
        assert!(matches!(run.code, Some(1 | 2)), "{run:?}");
        assert!(run.stderr.contains("$JS.API"), "{run:?}");
    }
    // Each had waited for half a minute.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

#[test]
fn limits_and_subjects_that_a_stream_cannot_have_are_named_also_by_check() {
    let (scratch, server) = (scratch(), server("nats-10047.conf"));
    let url = url(&server, "full:pw");
    let args = format!("--nats {url} --jetstream");
    let runs = [
        (PROBE, format!("{args} --read a.pcap")),
        (ENGINE, format!("{args} -o out")),
        (ENGINE, format!("{args} --check")),
    ];
    // A probe has read its file by then.
    let code = |program: &str| if program == PROBE { 1 } else { 2 };
    for (program, args) in &runs {
        let run = run_with(&scratch, program, args, &[]);
        run.assert(code(program), "nats.jetstream.max_bytes");
        run.assert(code(program), "max_file_store");
    }
    scratch.write("other.yaml", "nats: {jetstream: {stream: OTHER, max_bytes: 10MB}}\n");
    let other = run_with(&scratch, PROBE, &format!("-c other.yaml {args} --read a.pcap"), &[]);
    assert_eq!(other.code, Some(0), "{other:?}");
    scratch.write("config.yaml", "nats: {jetstream: {max_bytes: 10MB}}\n");
    for (program, args) in &runs {
        run_with(&scratch, program, args, &[]).assert(code(program), "nats.jetstream.stream");
    }
    let check = run_with(&scratch, ENGINE, &runs[2].1, &[]);
    check.assert(2, "the stream OTHER has the subjects");
}

/// The same replay counted twice although its name was the same.
#[test]
fn a_replay_under_the_default_name_is_the_same_run_each_time() {
    let (scratch, server) = (scratch(), NatsServer::start());
    let nats = format!("--nats {}", server.url());
    let engine = scratch.start_engine(&format!("{nats} --window 1s -o out"));
    for _ in 0..2 {
        scratch.replay(&format!("{nats} --read a.pcap"));
    }
    let ledger = engine.stop_engine(&scratch.path("out"));
    assert_eq!(number(&ledger["packets"]["counted"]), 50, "{ledger}");
}

#[test]
fn a_replay_that_waits_for_a_gap_says_until_when() {
    let (scratch, server) = (scratch(), NatsServer::start());
    // One frame alone that is so far ahead of those around it is dated by mistake, and nobody waits for it.
    scratch.write("jump.pcap", pausing());
    let args = format!("--nats {} --read jump.pcap --pace original", server.url());
    let mut probe = scratch.start_probe(&args);
    probe.wait_until_says("waiting 655");
    assert!(probe.said().contains("--pace max does not wait"), "{}", probe.said());
    probe.signal("TERM");
    let run = probe.wait();
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[test]
fn a_flag_names_another_input_than_the_configuration() {
    let scratch = scratch();
    let input = |entry: &str| {
        format!("inputs:\n  - {{{entry}}}\nnats: {{url: \"nats://127.0.0.1:1\", connect_timeout: 100ms}}\n")
    };
    scratch.write("c.yaml", input("type: interface, interface: absent0"));
    // A server that is away is told with status 1 by a run, and as a mistake by a check.
    for (args, code, says) in [
        ("", 2, "cannot capture on absent0"),
        ("--iface absent1", 2, "cannot capture on absent1"),
        ("--nats nats://127.0.0.1:2", 1, "127.0.0.1:2"),
        ("--jetstream", 1, "127.0.0.1:1"),
    ] {
        run_with(&scratch, ENGINE, &format!("-c c.yaml -o out {args}"), &[]).assert(code, says);
        run_with(&scratch, ENGINE, &format!("-c c.yaml --check {args}"), &[]).assert(2, says);
    }
    scratch.write("c.yaml", input("type: nats"));
    run_with(&scratch, ENGINE, "-c c.yaml --check", &[]).assert(2, "127.0.0.1:1");
    // Programs that read none of them accept those that they know.
    run_with(&scratch, PROBE, "-c c.yaml --read absent.pcap", &[]).assert(2, "absent.pcap");
    scratch.write("c.yaml", input("type: netflow"));
    let says = "c.yaml:2:12: unknown input type `netflow`; one of nats, interface";
    run_with(&scratch, PROBE, "-c c.yaml --read absent.pcap", &[]).assert(2, says);
}
