//! Edits of the rules while an engine runs: the configuration file is looked at several times a second, and on SIGHUP.

use super::rule::Rule;
use crate::config::{Config, Registries};
use crate::{say, warn};
use crossbeam_channel::{Receiver, Sender, never, unbounded};
use signal_hook::consts::SIGHUP;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// No edits ever: of a run whose rules stay.
pub fn none() -> Receiver<Vec<Rule>> {
    never()
}

/// No edits, but a SIGHUP does no harm: in a cluster it may be sent to all processes.
pub fn ignore() -> io::Result<Receiver<Vec<Rule>>> {
    signal_hook::flag::register(SIGHUP, Arc::default())?;
    Ok(never())
}

/// Follows the rules of a configuration file, of which `now` is in force.
///
/// What cannot be read, or has another section of tasks than the one that runs, is told of and changes nothing.
pub fn follow(file: &Path, registries: &Registries, now: &Config) -> io::Result<Receiver<Vec<Rule>>> {
    let (edits, received) = unbounded();
    let asked = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGHUP, asked.clone())?;
    let follower = Follower {
        file: file.to_owned(),
        registries: registries.clone(),
        tasks: now.task_texts.clone(),
        settled: None,
        rules: now.alerts.rules.clone(),
    };
    thread::Builder::new().name("rules".into()).spawn(move || follower.run(&asked, &edits))?;
    Ok(received)
}

struct Follower {
    file: PathBuf,
    registries: Registries,
    tasks: Vec<String>,
    /// What an edit cannot change, as it was read last: flags may have changed what runs.
    settled: Option<String>,
    rules: Vec<Rule>,
}

/// What differs where a file is another one, or has been written.
fn stamp(file: &Path) -> Option<(u64, u64, i64, i64)> {
    let stamp = |file: Metadata| (file.ino(), file.len(), file.mtime(), file.mtime_nsec());
    file.metadata().ok().map(stamp)
}

impl Follower {
    fn run(mut self, asked: &AtomicBool, edits: &Sender<Vec<Rule>>) {
        // The file may have been edited since it was read.
        let mut seen = None;
        loop {
            thread::sleep(LOOK);
            let now = stamp(&self.file);
            let is_asked = asked.swap(false, SeqCst);
            // A file that is away is being replaced.
            if !is_asked && (now == seen || now.is_none()) {
                continue;
            }
            seen = now;
            match self.read() {
                Ok(rules) if rules == self.rules => {
                    if is_asked {
                        say!("{}: the rules are the same", self.file.display());
                    }
                }
                Ok(rules) => {
                    say!("{}: {} rules are in force", self.file.display(), rules.len());
                    self.rules.clone_from(&rules);
                    if edits.send(rules).is_err() {
                        return;
                    }
                }
                Err(why) => warn!("{why}; the rules stay as they are"),
            }
        }
    }

    fn read(&mut self) -> Result<Vec<Rule>, String> {
        let config = Config::load(&self.file, &self.registries).map_err(|error| error.to_string())?;
        if config.task_texts != self.tasks {
            let file = self.file.display();
            return Err(format!(
                "{file}: the tasks are others than those that run; start the engine again for that"
            ));
        }
        let before = self.settled.replace(config.settled());
        if before.is_some() && before != self.settled {
            warn!("{}: more than rules was edited; start the engine again for that", self.file.display());
        }
        Ok(config.alerts.rules)
    }
}
