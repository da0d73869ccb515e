//! Snapshots as csv: `DIR/<window>/<task>.csv`, `summary.json` and, where a run may go on, `<task>.state`; and reading them
//! back.

use super::SinkError;
use super::earlier::Reuse;
use super::folder::{self, Files, FolderTarget, FolderWriter, sync_files};
use super::pieces::write_lines;
use super::registry::{Record, RecordWriter, Target, WriterKind};
use super::text::window_name;
use crate::engine::{Group, Written};
use crate::options::OwnOptions;
use crate::state::Manifest;
use dataflows::aggregator::{OptionsError, Task};
use dataflows::measure::DEFAULT;
use dataflows::rows::{Snapshot, TaskRows, ValueKind};
use dataflows::window::{Epoch, Windowing};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Ending of the file of what a task keeps beside its rows, for a run that goes on: words in the machine's order.
const KEPT: &str = ".state";

/// The `type` of a csv writer.
pub const TYPE: &str = "csv";

pub(super) const KIND: WriterKind = WriterKind { name: TYPE, keys: &["path"], read };

fn read(options: &OwnOptions) -> Result<Arc<dyn Target>, OptionsError> {
    folder::path(options).map(|path| into_folder(&path))
}

/// What a csv writer into this folder is configured as.
pub fn into_folder(path: &Path) -> Arc<dyn Target> {
    Arc::new(FolderTarget { path: path.to_owned(), files: |threads| Csv { threads } })
}

impl Record for FolderTarget<Csv> {
    fn folder(&self) -> &Path {
        &self.path
    }

    fn moved(&self, folder: &Path) -> Arc<dyn Target> {
        into_folder(folder)
    }

    fn open_record(&self, threads: usize) -> Result<Box<dyn RecordWriter>, SinkError> {
        Ok(Box::new(CsvWriter::open(&self.path, Csv { threads })?))
    }

    fn reader(&self, windowing: Windowing, counting: Option<Arc<str>>) -> Arc<dyn Written> {
        Arc::new(CsvReader { folder: self.path.clone(), windowing, counting })
    }
}

impl RecordWriter for CsvWriter {
    fn recover(&mut self, last: Option<&Manifest>) -> Result<(), SinkError> {
        FolderWriter::recover(self, last)
    }

    fn reuse(&mut self, reuse: Reuse) -> Result<(), SinkError> {
        FolderWriter::reuse(self, reuse)
    }
}

/// The files of a window, formatted on several threads.
pub struct Csv {
    /// Threads that format, at least 1.
    pub threads: usize,
}

/// A csv writer.
pub type CsvWriter = FolderWriter<Csv>;

impl Files for Csv {
    fn record(target: &FolderTarget<Self>) -> Option<&dyn Record> {
        Some(target)
    }

    fn build(&self, folder: &Path, snapshot: &Snapshot, sync: bool) -> Result<(), SinkError> {
        let mut files = Vec::with_capacity(snapshot.tasks.len());
        for task in &snapshot.tasks {
            let path = folder.join(format!("{}.csv", task.name));
            let written = File::create(&path).and_then(|mut file| {
                file.write_all(&header(task)?)?;
                Ok(file)
            });
            files.push((path.clone(), written.map_err(SinkError::io("write", &path))?));
        }
        files = write_lines(&snapshot.tasks, files, self.threads, |task, text, out, row| {
            text.row(out, &snapshot.tasks[task].schema, row, b',');
        })?;
        for task in &snapshot.tasks {
            if let Some(kept) = &task.kept {
                let path = folder.join(format!("{}{KEPT}", task.name));
                let written = File::create(&path).and_then(|mut file| {
                    file.write_all(bytemuck::cast_slice(kept))?;
                    Ok(file)
                });
                files.push((path.clone(), written.map_err(SinkError::io("write", &path))?));
            }
        }
        sync_files(&files, sync)
    }
}

/// Reads back what a csv writer has written.
pub struct CsvReader {
    /// The writer's folder.
    pub folder: PathBuf,
    /// How the windows are cut.
    pub windowing: Windowing,
    /// The first task that counts every packet, if any.
    pub counting: Option<Arc<str>>,
}

impl CsvReader {
    fn window(&self, window: Epoch) -> PathBuf {
        self.folder.join(window_name(self.windowing.span(window)))
    }
}

impl Written for CsvReader {
    fn groups(&self, task: &Task, window: Epoch) -> Result<Vec<Group>, String> {
        let path = self.window(window).join(format!("{}.csv", task.name));
        let wrong = |line: u64, why: &dyn std::fmt::Display| format!("{}:{line}: {why}", path.display());
        let file = match File::open(&path) {
            Ok(file) => file,
            // No packet of that window has come before.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.window(window).exists() => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        let (schema, measures) = (task.aggregator.schema(), task.aggregator.measures());
        let mut reader = ::csv::Reader::from_reader(io::BufReader::new(file));
        let header = reader.headers().map_err(|error| wrong(1, &error))?;
        if !header.iter().eq(schema.columns()) {
            return Err(wrong(1, &"has other columns than this task"));
        }
        let (mut record, mut groups) = (::csv::StringRecord::new(), Vec::new());
        while reader.read_record(&mut record).map_err(|error| wrong(0, &error))? {
            let line = record.position().map_or(0, |position| position.line());
            let keys = schema.key.columns().len();
            let key = schema.key.read(record.iter().take(keys));
            let number = |column: usize| record.get(keys + column)?.parse::<u64>().ok();
            let time = |column: usize| {
                let time: jiff::Timestamp = record.get(keys + column)?.parse().ok()?;
                u64::try_from(time.as_nanosecond()).ok()
            };
            let values = || {
                let mut words = vec![0; DEFAULT.len() + measures.more()];
                for (column, value) in schema.values.iter().enumerate() {
                    let word = measures.word_of(value.name)?;
                    words[word] = match value.kind {
                        ValueKind::Time => time(column)?,
                        ValueKind::Count | ValueKind::Bytes | ValueKind::Number => number(column)?,
                    };
                }
                Some(words)
            };
            let group = key.zip(values()).ok_or_else(|| wrong(line, &"is no row of this task"))?;
            groups.push(group);
        }
        Ok(groups)
    }

    fn kept(&self, task: &Task, window: Epoch) -> Result<Option<Vec<u64>>, String> {
        let path = self.window(window).join(format!("{}{KEPT}", task.name));
        match fs::read(&path) {
            Ok(bytes) if bytes.len() % 8 != 0 => Err(format!("{}: is cut off", path.display())),
            Ok(bytes) => Ok(Some(bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)).collect())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    fn summary(&self, window: Epoch) -> Result<Option<(u32, Option<u64>)>, String> {
        let folder = self.window(window);
        if !folder.exists() {
            return Ok(None);
        }
        read_summary(&folder, self.counting.as_deref()).map_err(|error| error.to_string())
    }
}

/// Revision of a finished folder, and the packets that a task of it holds.
fn read_summary(folder: &Path, task: Option<&str>) -> Result<Option<(u32, Option<u64>)>, SinkError> {
    let path = folder.join("summary.json");
    let failed = SinkError::io("read", &path);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(&failed)?,
    };
    let summary: serde_json::Value = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
    let revision = summary["revision"].as_u64().and_then(|revision| u32::try_from(revision).ok());
    let revision = revision.ok_or_else(|| failed(io::Error::other("has no revision")))?;
    Ok(Some((revision, task.and_then(|task| summary["tasks"][task]["packets"].as_u64()))))
}

fn header(task: &TaskRows) -> io::Result<Vec<u8>> {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    writer.write_record(task.schema.columns())?;
    writer.into_inner().map_err(|error| error.into_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::Writer;
    use dataflows::block::Block;
    use dataflows::exact::Exact;
    use dataflows::key::{KeyFields, Layout};
    use dataflows::packet::{Address, Packet, Transport};
    use dataflows::rows::Missing;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt;

    const KEYS: [&[&str]; 6] = [
        &["SrcIP", "DstIP", "SrcPort", "DstPort", "Protocol"],
        &["SrcIP/24/48", "SrcIP"],
        &["DstIP/8/3", "TCPFlags"],
        &["VLAN", "IPVersion"],
        &["DstIP", "SrcIP/1/1"],
        &["DstPort"],
    ];

    fn any_packet() -> impl Strategy<Value = Packet> {
        let address = || {
            prop_oneof![
                any::<u32>().prop_map(Address::v4),
                any::<u128>().prop_map(Address),
                Just(Address(0)),
                Just(Address(0xffff << 32 | 1)),
            ]
        };
        let transport = (any::<u16>(), any::<u16>(), any::<u8>(), any::<u8>(), 0u16..4096);
        (address(), address(), transport).prop_map(
            |(source, destination, (from, to, protocol, flags, vlan))| {
                let version = if source.is_v4() { 4 } else { 6 };
                let transport = Transport::new(from, to, protocol, flags, vlan, version);
                Packet { time: 0, transport, source, destination, length: 60 }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn groups_are_read_back_as_they_were_written(
            packets in proptest::collection::vec(any_packet(), 0..60),
            values in proptest::collection::vec((1u64..1 << 53, 1u64..1 << 53, any::<u64>(), any::<u64>()), 60),
            keys in 0..KEYS.len(),
        ) {
            let fields = KeyFields::parse(KEYS[keys]).expect("fields");
            let values = values.iter().map(|(packets, bytes, first, last)| vec![*packets, *bytes, *first, *last]);
            let groups: BTreeMap<String, Group> = packets.iter().zip(values).map(|(packet, values)| {
                let key = fields.mask().of(packet, &[]);
                (format!("{key:?}"), (key, values))
            }).collect();
            let run = |layout: Layout| {
                let groups = groups.values().filter(|(key, _)| key.layout() == layout);
                let words = groups.flat_map(|(key, values)| key.words().iter().chain(values)).copied().collect::<Vec<_>>();
                Block { layout, width: layout.words() + 4, words: words.into(), ..Block::default() }
            };
            let runs = [Layout::Compact, Layout::Wide].map(run);
            let task = Task { name: "task".into(), aggregator: Arc::new(Exact::new(fields)) };
            let rows = TaskRows { name: task.name.clone(), schema: task.aggregator.schema(), runs: runs.to_vec(), kept: None };
            let folder = tempfile::tempdir().expect("a folder");
            let windowing = Windowing::Every(60_000_000_000);
            let mut writer = CsvWriter::open(folder.path(), Csv { threads: 1 }).expect("a writer");
            let snapshot = Snapshot { window: 7, span: windowing.span(7), revision: 3, tasks: vec![rows], missing: Missing::default() };
            writer.prepare(&Arc::new(snapshot), Some(1)).and_then(|()| writer.publish()).expect("written");
            let reader = CsvReader { folder: folder.path().to_owned(), windowing, counting: Some(task.name.clone()) };
            let found = reader.groups(&task, 7).expect("groups");
            let found: BTreeMap<String, Group> = found.into_iter().map(|group| (format!("{:?}", group.0), group)).collect();
            prop_assert_eq!(&found, &groups);
            let total = groups.values().map(|(_, values)| values[0]).sum();
            prop_assert_eq!(reader.summary(7), Ok(Some((3, Some(total)))));
            prop_assert_eq!(reader.summary(8), Ok(None));
            prop_assert_eq!(reader.groups(&task, 8), Ok(Vec::new()));
        }
    }

    const WINDOWING: Windowing = Windowing::Every(60_000_000_000);

    fn writer(folder: &Path) -> CsvWriter {
        CsvWriter::open(folder, Csv { threads: 1 }).expect("a writer")
    }

    fn prepare(writer: &mut CsvWriter, window: Epoch, revision: u32, commit: u64) {
        let span = WINDOWING.span(window);
        let snapshot = Snapshot { window, span, revision, tasks: Vec::new(), missing: Missing::default() };
        writer.prepare(&Arc::new(snapshot), Some(commit)).expect("prepared");
    }

    /// The revisions of these windows that a reader sees, after a restart that finds this record; twice the same.
    fn recovered<const N: usize>(
        folder: &Path,
        manifest: &Manifest,
        windows: [Epoch; N],
    ) -> [Option<u32>; N] {
        let reader = CsvReader { folder: folder.to_owned(), windowing: WINDOWING, counting: None };
        let [first, second] = [(); 2].map(|()| {
            writer(folder).recover(Some(manifest)).expect("recovered");
            let entries = fs::read_dir(folder).expect("a folder");
            let name = |entry: io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
            let hidden = entries.map(name).filter(|name| name.to_string_lossy().starts_with('.'));
            // The mark of an engine that has not ended, and nothing else.
            assert_eq!(hidden.collect::<Vec<_>>(), [".live.netspectra-partial"]);
            windows.map(|window| reader.summary(window).expect("a summary").map(|(revision, _)| revision))
        });
        assert_eq!(first, second, "a second time there is nothing left to do");
        first
    }

    #[test]
    fn a_commit_that_was_recorded_is_finished_and_one_that_was_not_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut manifest = Manifest::new(Vec::new(), 0);
        let mut writer = writer(folder.path());
        for (window, commit) in [(1, 3), (2, 4), (1, 4), (3, 5)] {
            prepare(&mut writer, window, 0, commit);
            if commit == 3 {
                writer.publish().expect("published");
            }
            if commit == 4 {
                manifest.prepared = writer.prepared();
            }
        }
        let newer = manifest.prepared[1].inode;
        drop(writer);
        assert_eq!(recovered(folder.path(), &manifest, [1, 2, 3]), [Some(0), Some(0), None]);
        // The one that was there before has the same revision.
        let place = folder.path().join(window_name(WINDOWING.span(1)));
        assert_eq!(fs::metadata(place).expect("a folder").ino(), newer);
    }

    /// Copies folders and files, so that all have other inodes.
    fn copy(from: &Path, to: &Path) {
        fs::create_dir(to).expect("a folder");
        for entry in fs::read_dir(from).expect("a folder") {
            let path = entry.expect("an entry").path();
            let to = to.join(path.file_name().expect("a name"));
            match path.is_dir() {
                true => copy(&path, &to),
                false => drop(fs::copy(&path, &to).expect("a copy")),
            }
        }
    }

    /// A copy of a killed engine's folders lacked the windows of its last commit: their inodes were others there.
    #[test]
    fn a_copy_of_what_a_killed_run_has_left_is_finished_like_the_folder_itself() {
        // Killed before the new folder is in its place, and when the old one is not removed yet.
        for (case, is_exchanged) in [("before", false), ("after", true)] {
            let scratch = tempfile::tempdir().expect("a folder");
            let original = scratch.path().join("original");
            let mut writer = writer(&original);
            prepare(&mut writer, 1, 4, 8);
            writer.publish().expect("published");
            prepare(&mut writer, 1, 5, 9);
            prepare(&mut writer, 2, 0, 9);
            let mut manifest = Manifest::new(Vec::new(), 0);
            manifest.prepared = writer.prepared();
            drop(writer);
            if is_exchanged {
                let [aside, place, between] =
                    [manifest.prepared[0].aside.as_str(), &manifest.prepared[0].name, "between"]
                        .map(|name| original.join(name));
                for (from, to) in [(&aside, &between), (&place, &aside), (&between, &place)] {
                    fs::rename(from, to).expect("renamed");
                }
            }
            let mut earlier_version = manifest.clone();
            earlier_version.prepared.iter_mut().for_each(|prepared| prepared.summary = None);
            for (version, manifest) in [("this", manifest), ("earlier", earlier_version)] {
                let copied = scratch.path().join(version);
                copy(&original, &copied);
                let found = recovered(&copied, &manifest, [1, 2]);
                assert_eq!(found, [Some(5), Some(0)], "killed {case}, record of {version} version");
            }
        }
    }
}
