//! What extra fields and measures are read from, frame by frame, against tshark: its answers are in `tests/fields/`,
//! written by `tests/fields.py`, which also compares whole folders of captures where tshark is.
//!
//! A frame without an IP header has its number alone. `?` stands where tshark gives no answer.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../examples/fields_of.rs"]
mod fields_of;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

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
