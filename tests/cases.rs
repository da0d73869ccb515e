//! Inputs on which comparable tools failed their users, each with the right answer: one table a subject.
//!
//! The inputs are in `tests/cases/`, made by hand, of documentation addresses. All of them are in the folder that the
//! program runs in. What is right was decided by tcpdump, tshark, gzip, zstd, or the specification.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use support::*;

/// A run of the analyser and its right answer.
struct Case {
    /// Options and inputs.
    args: &'static str,
    code: i32,
    /// Packets counted, not IP, malformed, filtered, and lost.
    packets: [u64; 5],
    /// What standard error says; nothing where a run went well and there is nothing to tell.
    says: &'static str,
}

const fn case(args: &'static str, code: i32, packets: [u64; 5], says: &'static str) -> Case {
    Case { args, code, packets, says }
}

/// All that is counted, without a word.
const fn counted(args: &'static str, packets: u64) -> Case {
    case(args, 0, [packets, 0, 0, 0, 0], "")
}

/// A run that does not begin.
const fn refused(args: &'static str, says: &'static str) -> Case {
    case(args, 2, [0; 5], says)
}

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    for name in entries(&cases) {
        fs::copy(cases.join(&name), scratch.path(&name)).unwrap();
    }
    scratch
}

fn packets(ledger: &serde_json::Value) -> [u64; 5] {
    ["counted", "non_ip", "malformed", "filtered", "lost"]
        .map(|account| ledger["packets"][account].as_u64().unwrap())
}

fn assert_cases(cases: &[Case]) {
    let scratch = scratch();
    for (number, Case { args, code, packets: expected, says }) in cases.iter().enumerate() {
        let out = format!("out-{number}");
        let run = scratch.analyze(&format!("-q -w 2 -o {out} {args}"));
        assert_eq!(run.code, Some(*code), "{args}: {run:?}");
        run.assert(*code, says);
        if *code == 2 {
            assert!(!scratch.path(&out).exists(), "{args}: wrote something");
        } else {
            assert_eq!(packets(&scratch.ledger(&out)), *expected, "{args}: {run:?}");
        }
    }
}

// Captures.

#[test]
fn ip_is_found_behind_every_header_that_hides_it() {
    const CASES: &[Case] = &[
        case("01-null-family.pcap", 0, [8, 1, 0, 0, 0], "address family 8"),
        counted("02-llc-snap.pcap", 2),
        counted("03-et-9100.pcap", 1),
        counted("03-et-cmd.pcap", 1),
        counted("03-et-edsa.pcap", 1),
        counted("03-et-eompls-cw.pcap", 1),
        counted("03-et-eompls-nocw-mac4.pcap", 1),
        counted("03-et-eompls-nocw-mac6.pcap", 1),
        counted("03-et-eompls-nocw.pcap", 1),
        counted("03-et-macsec.pcap", 1),
        counted("03-et-mpls-in-vlan.pcap", 1),
        counted("03-et-nsh.pcap", 1),
        counted("03-et-pbb.pcap", 1),
        counted("03-et-ppp-mp.pcap", 1),
        counted("03-et-pppoe-in-qinq.pcap", 1),
        counted("03-et-pppoe-pfc.pcap", 1),
        counted("03-et-qinq8200.pcap", 1),
        counted("03-et-realtek.pcap", 1),
        counted("03-et-teb.pcap", 1),
        counted("03-et-vntag.pcap", 1),
        counted("80-sll.pcap", 1),
        counted("60-jump.pcap", 4),
    ];
    assert_cases(CASES);
    // All hold packets of one flow; its addresses show that the right bytes were read.
    let scratch = scratch();
    for Case { args, .. } in &CASES[1..] {
        scratch.analyze(&format!("-o out {args}")).assert(0, "");
        let table = fs::read_to_string(scratch.path("out/all/per_five_tuple.csv")).unwrap();
        let rows: Vec<&str> = table.lines().skip(1).collect();
        assert_eq!(rows.len(), 1, "{args}: {table}");
        assert!(rows[0].starts_with("192.0.2.1,192.0.2.2,1000,53,17,"), "{args}: {table}");
    }
}

#[test]
fn filters_answer_what_the_file_answers_and_refuse_the_rest() {
    assert_cases(&[
        case("-f ip6 96-null-macos.pcap", 0, [1, 0, 0, 1, 0], ""),
        case("-f ip6 96-null-be.pcap", 0, [1, 0, 0, 1, 0], ""),
        case("-f ip6 96-null-macos.pcapng", 0, [1, 0, 0, 1, 0], ""),
        case("-f ip 96-null-be.pcap", 0, [1, 0, 0, 1, 0], ""),
        case("-f ip 96-null-macos.pcap", 0, [1, 0, 0, 1, 0], ""),
        counted("-f udp 96-null-be.pcap", 2),
        counted("-f udp 96-null-macos.pcap", 2),
        counted("-f udp 96-null-macos.pcapng", 2),
        refused("-f inbound 80-plain.pcap", "filter `inbound`"),
        refused("-f outbound 80-plain.pcap", "live capture"),
        refused("-f 'ifindex 1' 80-plain.pcap", "live capture"),
        counted("-f inbound 80-sll.pcap", 1),
        case(
            "-f udp 40-link-nflog.pcap",
            0,
            [0, 1, 0, 0, 0],
            "40-link-nflog.pcap: 1 packet of link type 239 (NFLOG)",
        ),
        case(
            "-f tcp 40-link-user0.pcap",
            0,
            [0, 1, 0, 0, 0],
            "40-link-user0.pcap: 1 packet of link type 147 (USER0)",
        ),
        case("40-link-user0.pcap", 0, [0, 1, 0, 0, 0], "link type 147"),
        refused("-f 'udp prot 53' 40-link-user0.pcap", "`udp prot 53`"),
        case("-f 'net 192.0.2.0/24' 03-et-mpls-in-vlan.pcap", 0, [0, 0, 0, 1, 0], "vlan and mpls and (net"),
        case("-f 'port 53' 03-et-9100.pcap", 0, [0, 0, 0, 1, 0], "vlan and vlan and (port 53)"),
        case("-f 'port 54' 03-et-9100.pcap", 0, [0, 0, 0, 1, 0], ""),
        counted("-f '(port 53) or (vlan and vlan and (port 53))' 03-et-9100.pcap", 1),
    ]);
}

#[test]
fn what_captures_say_of_themselves_is_heard() {
    assert_cases(&[
        case(
            "61-isb.pcapng",
            0,
            [2, 0, 0, 0, 5050],
            "61-isb.pcapng: the file reports 5050 packets dropped during capture",
        ),
        case(
            "14-caplen-gt-len.pcap",
            3,
            [2, 0, 2, 0, 0],
            "2 records contradict themselves (the first at byte 102: 62",
        ),
        case("-f udp 14-caplen-gt-len.pcap", 3, [2, 0, 2, 0, 0], "2 records contradict themselves"),
        case(
            "15-zero-tail.pcap",
            3,
            [1, 0, 0, 0, 0],
            "15-zero-tail.pcap: at byte 102: zeros where a record should be",
        ),
        refused("70-shb-v2.pcapng", "70-shb-v2.pcapng: is pcapng version 2.0"),
        case("05-unpadded-len-padded.pcapng", 0, [2, 0, 0, 0, 0], "no multiple of 4 (the first at byte 48)"),
        case("05-unpadded-len-nopad.pcapng", 0, [2, 0, 0, 0, 0], "no multiple of 4 (the first at byte 48)"),
        counted("13-spb.pcapng", 3),
        counted("11-gz-zeropad.pcap.gz", 2),
        case("11-gz-garbage.pcap.gz", 3, [2, 0, 0, 0, 0], "not gzip"),
        counted("11-zst-long28.pcap.zst", 102),
        case(
            "04-cat.pcap",
            0,
            [4, 0, 0, 0, 0],
            "contains 2 concatenated captures (the second begins at byte 180)",
        ),
        case("04-cat-gz.pcap.gz", 0, [4, 0, 0, 0, 0], "2 concatenated captures"),
        counted("04-cat-pcapng.pcapng", 2),
        case("04-cat-pcap-pcapng.pcap", 0, [3, 0, 0, 0, 0], "2 concatenated captures"),
    ]);
}

#[test]
fn what_is_no_capture_is_named_with_the_command_that_helps() {
    assert_cases(&[
        refused(
            "10-xz.pcap.xz",
            "10-xz.pcap.xz: is an xz file, which is not unpacked here; `xz -dc 10-xz.pcap.xz > 10-xz.pcap`",
        ),
        refused("10-bz2.pcap.bz2", "`bzip2 -dc 10-bz2.pcap.bz2 > 10-bz2.pcap`"),
        refused("10-snoop.snoop", "`editcap -F pcap 10-snoop.snoop 10-snoop.pcap`"),
    ]);
    let scratch = scratch();
    let xz = fs::read(scratch.path("10-xz.pcap.xz")).unwrap();
    scratch.analyze_stdin("-o out -", &xz).assert(2, "put `xz -dc` before it");
    for (name, head, says) in
        [("a.lz4", &b"\x04\x22\x4d\x18"[..], "`lz4 -dc a.lz4"), ("a.zip", b"PK\x03\x04", "`unzip -p a.zip")]
    {
        scratch.write(name, [head, &[0; 60]].concat());
        scratch.analyze(&format!("-o out {name}")).assert(2, says);
    }
    assert!(!scratch.path("out").exists());
}

#[test]
fn a_zstd_window_beyond_the_limit_is_told_with_the_way_out() {
    let scratch = scratch();
    // A frame header with a window of 2^31 bytes, and a last raw block.
    scratch.write("big.zst", [&b"\x28\xb5\x2f\xfd\x00\xa8"[..], &[0x81, 0, 0], &[0; 16]].concat());
    for way in ["over 1024 MiB", "zstd -dc --long=31"] {
        scratch.analyze("-o out big.zst").assert(2, way);
    }
}

#[test]
fn a_file_that_is_also_standard_input_is_refused() {
    let scratch = scratch();
    for args in [["80-plain.pcap", "-"], ["-", "80-plain.pcap"]] {
        let ran = Command::new(env!("CARGO_BIN_EXE_pcap-analyzer"))
            .args(["-o", "out"])
            .args(args)
            .current_dir(scratch.path("."))
            .stdin(fs::File::open(scratch.path("80-plain.pcap")).unwrap())
            .stdout(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8(ran.stderr).unwrap();
        assert_eq!((ran.status.code(), stderr.contains("same file")), (Some(2), true), "{args:?}: {stderr}");
    }
    assert!(!scratch.path("out").exists());
}

#[test]
fn the_summary_names_what_more_than_one_per_cent_of_a_file_is_instead_of_ip() {
    let scratch = scratch();
    let arp = Record { time: START, length: 60, bytes: [&[0xff; 12][..], &[8, 6], &[0; 28]].concat() };
    let with_arps = |arps: usize| [vec![arp.clone(); arps], records(&mixed(1, 100 - arps, SECOND))].concat();
    scratch.write("few", pcap_of(&with_arps(1)));
    scratch.write("more", pcap_of(&with_arps(2)));
    let run = scratch.analyze("-o out few");
    run.assert(0, "");
    assert!(!run.stdout.contains("0x0806"), "{run:?}");
    let run = scratch.analyze("-o out few more");
    run.assert(0, "");
    let says = "\nmore: 2 of 100 frames are not IP: link type 1 (EN10MB): EtherType 0x0806 (ARP) 2\n";
    assert!(run.stdout.contains(says) && !run.stdout.contains("few: "), "{run:?}");
    let run = scratch.analyze("--json -o out more");
    let summary: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(summary["non_ip"][0]["kinds"][0]["ether_type"], json!("0x0806"));
    // What may hide IP is a warning too: here, encrypted MACsec.
    let macsec = [&[2; 12][..], &[0x88, 0xe5, 0x0c, 0, 0, 0, 0, 1], &[0; 40]].concat();
    scratch.write("hidden", pcap_of(&[Record { time: START, length: 60, bytes: macsec }]));
    let run = scratch.analyze("-q -o out hidden");
    run.assert(0, "hidden: 1 of 1 frame may hold IP that is not decoded, and count as non_ip: EtherType 0x88e5 (MACsec)");
}

#[test]
fn a_filter_that_misses_only_what_is_behind_tags_is_told_in_the_summary() {
    let scratch = scratch();
    // Packets with and without a tag, and packets that only have one.
    let tagged = Packet { vlan: Some(7), ..packet(1, "10.0.0.1", "10.0.0.2") };
    scratch.write("mixed", pcap(&[packet(0, "10.0.0.1", "10.0.0.2"), tagged.clone()]));
    let run = scratch.analyze("-o out -f 'host 10.0.0.1' mixed");
    run.assert(0, "");
    assert!(
        run.stdout.contains("use `(host 10.0.0.1) or (vlan and (host 10.0.0.1))` to include them"),
        "{run:?}"
    );
    scratch.write("tagged", pcap(&[tagged]));
    scratch.analyze("-q -o out -f 'host 10.0.0.1' tagged").assert(0, "(vlan and (host 10.0.0.1))");
    let run = scratch.analyze("-o out -f '(host 10.0.0.1) or (vlan and (host 10.0.0.1))' mixed");
    run.assert(0, "");
    assert!(!run.stdout.contains("to include them"), "{run:?}");
    assert_eq!(scratch.ledger("out")["packets"]["counted"], 2);
}

// Configurations (30-*.yaml): rows such as `refused("-c 30-dup-key.yaml 80-plain.pcap", "...")` belong into a table here.

// Servers (NATS, ClickHouse): tests that start one belong here.
