//! System calls that fail: which of them a run makes on its files, and runs in which one of them fails.

use super::live::tool;
use super::{Random, entries};
use std::collections::BTreeSet;
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

/// A call that fails, once or for good.
#[derive(Clone, Debug)]
pub struct Fault {
    point: Point,
    error: &'static str,
    for_good: bool,
}

impl Display for Fault {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let Self { point: Point { call, path }, error, for_good } = self;
        write!(to, "{call} of {path}: {error}, {}", if *for_good { "for good" } else { "once" })
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

/// So many faults of these points, drawn evenly from all calls; all of them where there are fewer.
pub fn draw(points: &[Point], count: usize, seed: u64) -> Vec<Fault> {
    let mut all: Vec<Fault> = points
        .iter()
        .flat_map(|point| ERRORS.map(|error| (point, error)))
        .flat_map(|(point, error)| {
            [false, true].map(|for_good| Fault { point: point.clone(), error, for_good })
        })
        .collect();
    Random(seed).shuffle(&mut all);
    let mut drawn = Vec::new();
    let calls: BTreeSet<_> = points.iter().map(|point| point.call.clone()).collect();
    while drawn.len() < count && !all.is_empty() {
        for call in &calls {
            if let Some(at) = all.iter().position(|fault| fault.point.call == *call) {
                drawn.push(all.swap_remove(at));
            }
        }
    }
    drawn
}

impl Fault {
    /// The same in a run that has its files in another folder.
    pub fn moved(mut self, from: &Path, to: &Path) -> Self {
        self.point.path = self.point.path.replacen(&from.display().to_string(), &to.display().to_string(), 1);
        self
    }

    /// A program in which it happens.
    pub fn command(&self, program: &str, args: &str, folder: &Path) -> Command {
        let Self { point: Point { call, path }, error, for_good } = self;
        let when = if *for_good { "1+" } else { "1" };
        let inject = format!("inject={call}:error={error}:when={when}");
        let trace = format!("trace={call}");
        traced(&["-o", "/dev/null", "-P", path, "-e", &trace, "-e", &inject], program, args, folder)
    }
}

/// What a folder holds that no finished run leaves there.
pub fn leftovers(folder: &Path) -> Vec<String> {
    entries(folder).into_iter().filter(|name| name.ends_with(".netspectra-partial")).collect()
}
