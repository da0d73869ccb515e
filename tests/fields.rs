//! What extra fields and measures are read from, frame by frame, against tshark: its answers are in `tests/fields/`,
//! written by `tests/fields.py`, which also compares whole folders of captures where tshark is.
//!
//! A frame without an IP header has its number alone. `?` stands where tshark gives no answer.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../examples/fields_of.rs"]
mod fields_of;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Answers in a folder, by the name of their capture.
fn answers(folder: &str) -> Vec<(String, String)> {
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        (name.strip_suffix(".csv").unwrap().to_owned(), fs::read_to_string(entry.path()).unwrap())
    };
    let mut answers: Vec<_> = fs::read_dir(here(folder)).unwrap().map(|entry| read(entry.unwrap())).collect();
    answers.sort();
    answers
}

fn is_as_answered(ours: &str, answer: &str) -> bool {
    let (ours, answer): (Vec<_>, Vec<_>) = (ours.split(',').collect(), answer.split(',').collect());
    let is_unknown = matches!(answer[..], [number, "?"] if number == ours[0]);
    let are_same = ours.len() == answer.len()
        && ours.iter().zip(&answer).all(|(ours, answer)| ours == answer || *answer == "?");
    is_unknown || are_same
}

/// Holds a capture against its answers; gives how many frames it has.
fn hold(capture: &Path, answers: &str) -> usize {
    let ours = fields_of::lines(fs::read(capture).unwrap()).unwrap();
    let mut answers = answers.lines();
    assert_eq!(answers.next(), Some(fields_of::COLUMNS));
    let answers: Vec<_> = answers.collect();
    assert_eq!(ours.len(), answers.len(), "{}: frames", capture.display());
    for (ours, answer) in ours.iter().zip(answers) {
        assert!(
            is_as_answered(ours, answer),
            "{}:\n{}\n{ours}\n{answer}",
            capture.display(),
            fields_of::COLUMNS
        );
    }
    ours.len()
}

#[test]
fn fields_behind_all_kinds_of_headers_are_those_of_tshark() {
    let answers = answers("tests/fields/cases");
    assert!(answers.len() > 20);
    for (name, answers) in &answers {
        assert!(hold(&here("tests/cases").join(name), answers) > 0, "{name}");
    }
}

#[test]
fn fields_of_real_captures_are_those_of_tshark() {
    let corpus = env::var_os("NETSPECTRA_CORPUS").map_or(here("../shared/pcaps"), PathBuf::from);
    let answers = answers("tests/fields/corpus");
    assert!(answers.len() >= 10);
    if !corpus.is_dir() {
        return eprintln!(
            "LEFT OUT: {} captures, because {} does not exist",
            answers.len(),
            corpus.display()
        );
    }
    for (name, answers) in &answers {
        let frames = hold(&corpus.join(name), answers);
        println!("{name}: {frames} frames");
    }
}

/// Fields that are keys of a table each, in as many runs as places for extra fields need.
const KEYS: [&[&str]; 2] = [
    &["DSCP", "ECN", "TTL", "ICMPType", "ICMPCode", "InnerVLAN", "MPLSLabel", "SrcMAC", "DstMAC", "Fragment"],
    &["Interface"],
];
const MEASURES: &str =
    "packets, syn, syn_ack, fin, rst, payload_bytes, ip_bytes, ttl_min, ttl_max, fragments, tcp_flags_or";

/// The tables of a capture: by field, the measures of each of its values.
fn tables(capture: &Path) -> BTreeMap<&'static str, BTreeMap<String, [u64; 11]>> {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = BTreeMap::new();
    for (run, fields) in KEYS.iter().enumerate() {
        let task = |field: &&str| {
            format!("    - {{name: {field}, type: exact, key_fields: [{field}], measures: [{MEASURES}]}}\n")
        };
        let tasks: String = fields.iter().map(task).collect();
        let (config, out) = (folder.path().join(format!("{run}.yaml")), folder.path().join(run.to_string()));
        fs::write(&config, format!("aggregator:\n  tasks:\n{tasks}")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pcap-analyzer"));
        command.args(["-q", "-w", "2", "-c"]).arg(&config).arg("-o").arg(&out).arg(capture);
        let ran = command.output().unwrap();
        assert!(matches!(ran.status.code(), Some(0 | 3)), "{}: {ran:?}", capture.display());
        for field in *fields {
            let mut reader = csv::Reader::from_path(out.join("all").join(format!("{field}.csv"))).unwrap();
            let rows = reader.records().map(|row| {
                let row = row.unwrap();
                let values: Vec<u64> = row.iter().skip(1).map(|cell| cell.parse().unwrap()).collect();
                (row[0].to_owned(), values.try_into().unwrap())
            });
            tables.insert(*field, rows.collect());
        }
    }
    tables
}

/// The same from the answers for its frames; `None` where one of them is not known.
fn sums(answers: &str) -> Option<BTreeMap<&'static str, BTreeMap<String, [u64; 11]>>> {
    const COLUMNS: [(&str, usize); 11] = [
        ("DSCP", 1),
        ("ECN", 2),
        ("TTL", 3),
        ("ICMPType", 4),
        ("ICMPCode", 5),
        ("InnerVLAN", 6),
        ("MPLSLabel", 7),
        ("SrcMAC", 8),
        ("DstMAC", 9),
        ("Interface", 10),
        ("Fragment", 11),
    ];
    let mut sums: BTreeMap<_, BTreeMap<String, [u64; 11]>> =
        COLUMNS.map(|(field, _)| (field, BTreeMap::new())).into();
    for line in answers.lines().skip(1).filter(|line| line.contains(',')) {
        let cells: Vec<&str> = line.split(',').collect();
        let number = |column: usize| cells.get(column)?.parse::<u64>().ok();
        let (ttl, fragment, flags) = (number(3)?, number(11)?, number(13)?);
        let has = |flag: u64| u64::from(flags & flag > 0);
        let (syn, ack) = (has(2), has(16));
        for (field, column) in COLUMNS {
            let rows = sums.entry(field).or_default();
            let row = rows.entry((*cells.get(column)?).to_owned()).or_insert([
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                u64::MAX,
                0,
                0,
                0,
            ]);
            let add = [1, syn * (1 - ack), syn * ack, has(1), has(4), number(16)?, number(14)?];
            row.iter_mut().zip(add).for_each(|(sum, add)| *sum += add);
            (row[7], row[8]) = (row[7].min(ttl), row[8].max(ttl));
            row[9] += u64::from(fragment > 0);
            row[10] |= flags;
        }
    }
    Some(sums)
}

#[test]
fn tables_of_fields_and_measures_add_up_to_what_tshark_says_of_the_frames() {
    let corpus = env::var_os("NETSPECTRA_CORPUS").map_or(here("../shared/pcaps"), PathBuf::from);
    let mut held = 0;
    for (answers, captures) in
        [(answers("tests/fields/cases"), here("tests/cases")), (answers("tests/fields/corpus"), corpus)]
    {
        for (name, answers) in answers.iter().filter(|(name, _)| captures.join(name).exists()) {
            let Some(expected) = sums(answers) else { continue };
            assert_eq!(tables(&captures.join(name)), expected, "{name}");
            held += 1;
        }
    }
    assert!(held >= 10, "only {held} captures were held against their answers");
    println!("{held} captures");
}

#[test]
fn the_tables_of_the_documentation_have_every_field_and_measure() {
    use netspectra::dataflows::{field::FIELDS, measure::MEASURES};
    let (readme, aggregators) = (here("README.md"), here("docs/AGGREGATORS.md"));
    let (readme, aggregators) =
        (fs::read_to_string(readme).unwrap(), fs::read_to_string(aggregators).unwrap());
    for field in FIELDS {
        let row = format!("| `{}` | `{}` | {} |\n", field.name, field.column, field.about);
        assert!(readme.contains(&row), "README.md lacks {row}");
    }
    for measure in MEASURES {
        let row = format!("| `{}` | {} |\n", measure.name, measure.about);
        assert!(aggregators.contains(&row), "docs/AGGREGATORS.md lacks {row}");
    }
}
