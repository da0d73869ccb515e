//! System calls that fail: which of them a run makes on its files, and runs in which one of them fails.

use super::live::tool;
use super::{Random, entries};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The calls that change files and folders, look at them, or make them last.
const CALLS: &str =
    "openat,mkdir,rename,renameat2,unlink,unlinkat,rmdir,getdents64,fsync,write,statx,ftruncate";
/// Errors that a disk, a mount, a limit or a right may give for any of them.
const ERRORS: [&str; 5] = ["EIO", "ENOSPC", "EROFS", "EMFILE", "EACCES"];

/// A system call on a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    call: String,
    path: String,
}

/// What happens at a point.
#[derive(Clone, Copy, Debug)]
enum Happens {
    Error {
        name: &'static str,
        for_good: bool,
    },
    /// The program is killed as it makes the call.
    Kill,
}

/// A point at which something happens.
#[derive(Clone, Debug)]
pub struct Fault {
    point: Point,
    happens: Happens,
}

impl Display for Fault {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let Self { point: Point { call, path }, happens } = self;
        match happens {
            Happens::Error { name, for_good: true } => write!(to, "{call} of {path}: {name} for good"),
            Happens::Error { name, for_good: false } => write!(to, "{call} of {path}: {name} once"),
            Happens::Kill => write!(to, "{call} of {path}: killed"),
        }
    }
}

/// A program under a tracer that is no parent of it: signals and the exit status are the program's own.
fn traced(options: &[&str], program: &str, args: &str, folder: &Path) -> Command {
    let mut command = Command::new(tool("strace"));
    command.args(["-D", "-f", "-qq"]).args(options).arg("--").arg(program).args(args.split_whitespace());
    command.current_dir(folder);
    command
}

/// A program whose calls are written to a file.
pub fn recorded(record: &Path, program: &str, args: &str, folder: &Path) -> Command {
    let options = ["-y", "-s", "4096", "-e", &format!("trace={CALLS}"), "-o", &record.display().to_string()];
    traced(&options, program, args, folder)
}

/// The calls of a record on paths that begin like this, each once.
pub fn points(record: &Path, begins: &str) -> Vec<Point> {
    let record = fs::read_to_string(record).unwrap();
    let mut points = BTreeSet::new();
    for line in record.lines() {
        let Some((call, args)) = line.split_once(' ').and_then(|(_, rest)| rest.trim_start().split_once('('))
        else {
            continue;
        };
        if !CALLS.split(',').any(|known| known == call) {
            continue;
        }
        // A path is between quotes, or behind the number of an open file.
        for path in args.split(['"', '<', '>']).filter(|path| path.starts_with(begins)) {
            points.insert(Point { call: call.into(), path: path.into() });
        }
    }
    points.into_iter().collect()
}

/// So many faults of these points: first a kill and an error at each, drawn evenly from all calls, then other errors.
pub fn draw(points: &[Point], count: usize, seed: u64) -> Vec<Fault> {
    let mut random = Random(seed);
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for point in points {
        let mut errors: Vec<_> = ERRORS
            .into_iter()
            .flat_map(|name| [false, true].map(|for_good| Happens::Error { name, for_good }))
            .collect();
        random.shuffle(&mut errors);
        let all = [Happens::Kill].into_iter().chain(errors);
        let fault = |happens| Fault { point: point.clone(), happens };
        for (number, fault) in all.map(fault).enumerate() {
            if number < 2 { first.push(fault) } else { rest.push(fault) }
        }
    }
    [&mut first, &mut rest].into_iter().for_each(|faults| random.shuffle(faults));
    // Calls in turn, so that a few faults are of many kinds.
    let mut by_call: BTreeMap<String, Vec<Fault>> = BTreeMap::new();
    for fault in first.into_iter().chain(rest).rev() {
        by_call.entry(fault.point.call.clone()).or_default().push(fault);
    }
    let mut drawn = Vec::new();
    while drawn.len() < count && by_call.values().any(|faults| !faults.is_empty()) {
        drawn.extend(by_call.values_mut().filter_map(Vec::pop));
    }
    drawn
}

impl Fault {
    /// Whether it kills the program.
    pub fn kills(&self) -> bool {
        matches!(self.happens, Happens::Kill)
    }

    /// The same in a run that has its files in another folder.
    pub fn moved(mut self, from: &Path, to: &Path) -> Self {
        self.point.path = self.point.path.replacen(&from.display().to_string(), &to.display().to_string(), 1);
        self
    }

    /// A program in which it happens.
    pub fn command(&self, program: &str, args: &str, folder: &Path) -> Command {
        let Self { point: Point { call, path }, happens } = self;
        let inject = match happens {
            Happens::Error { name, for_good } => {
                format!("inject={call}:error={name}:when=1{}", if *for_good { "+" } else { "" })
            }
            Happens::Kill => format!("inject={call}:signal=KILL:when=1"),
        };
        let trace = format!("trace={call}");
        traced(&["-o", "/dev/null", "-P", path, "-e", &trace, "-e", &inject], program, args, folder)
    }
}

/// What a folder holds that no finished run leaves there.
pub fn leftovers(folder: &Path) -> Vec<String> {
    entries(folder).into_iter().filter(|name| name.ends_with(".netspectra-partial")).collect()
}
