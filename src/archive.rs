//! Keeps the groups of closed windows for late packets: the latest in memory, the others in an unnamed file.
//!
//! Every closed window is kept, for a packet of it may still come; the file goes with the process.

use dataflows::block::Block;
use dataflows::groups::Archive;
use dataflows::window::Epoch;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of groups kept in memory, a worker and key set.
const IN_MEMORY: usize = 16 << 20;

/// Bytes that a block in memory takes beside its words: a rough measure of its header, allocation and map entry.
const BLOCK_OVERHEAD: usize = 160;

fn bytes_in_memory(block: &Block) -> usize {
    block.words.len() * 8 + BLOCK_OVERHEAD
}

/// Where a block of groups is.
enum Kept {
    Memory(Block),
    File { wide: bool, offset: u64, words: usize },
}

/// An archive of one worker and key set.
pub struct SpillingArchive {
    folder: PathBuf,
    file: Option<File>,
    end: u64,
    windows: BTreeMap<Epoch, Vec<Kept>>,
    /// Windows with blocks in memory, and the bytes that those take.
    in_memory_windows: BTreeSet<Epoch>,
    in_memory: usize,
    failed: Arc<dyn Fn(String) + Send + Sync>,
}

impl SpillingArchive {
    /// An archive that spills into this folder and tells of a failure to read or write there.
    pub fn new(folder: &Path, failed: Arc<dyn Fn(String) + Send + Sync>) -> Self {
        let folder = folder.to_owned();
        let (windows, in_memory_windows) = (BTreeMap::new(), BTreeSet::new());
        Self { folder, file: None, end: 0, windows, in_memory_windows, in_memory: 0, failed }
    }

    /// Moves the earliest windows to the file until enough memory is free.
    fn spill(&mut self) -> io::Result<()> {
        while self.in_memory > IN_MEMORY
            && let Some(window) = self.in_memory_windows.pop_first()
        {
            for kept in self.windows.get_mut(&window).into_iter().flatten() {
                let Kept::Memory(block) = kept else { continue };
                let file = match &mut self.file {
                    Some(file) => file,
                    none => none.insert(tempfile::tempfile_in(&self.folder)?),
                };
                let bytes = bytemuck::cast_slice(&block.words);
                file.write_all_at(bytes, self.end)?;
                let (offset, length) = (self.end, bytes.len() as u64);
                self.in_memory -= bytes_in_memory(block);
                *kept = Kept::File { wide: block.wide, offset, words: block.words.len() };
                self.end += length;
            }
        }
        Ok(())
    }

    fn read(&self, window: Epoch, wide: bool, offset: u64, words: usize) -> io::Result<Block> {
        let mut words = vec![0u64; words];
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        file.read_exact_at(bytemuck::cast_slice_mut(&mut words), offset)?;
        Ok(Block { window, wide, words: words.into(), ..Block::default() })
    }
}

impl Archive for SpillingArchive {
    fn put(&mut self, block: Block) {
        self.in_memory += bytes_in_memory(&block);
        self.in_memory_windows.insert(block.window);
        self.windows.entry(block.window).or_default().push(Kept::Memory(block));
        if let Err(error) = self.spill() {
            (self.failed)(format!(
                "cannot keep closed windows for late packets in {}: {error}",
                self.folder.display()
            ));
        }
    }

    fn take(&mut self, window: Epoch) -> Vec<Block> {
        let mut blocks = Vec::new();
        self.in_memory_windows.remove(&window);
        for kept in self.windows.remove(&window).unwrap_or_default() {
            match kept {
                Kept::Memory(block) => {
                    self.in_memory -= bytes_in_memory(&block);
                    blocks.push(block);
                }
                Kept::File { wide, offset, words } => match self.read(window, wide, offset, words) {
                    Ok(block) => blocks.push(block),
                    Err(error) => (self.failed)(format!("cannot read a closed window back: {error}")),
                },
            }
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_window_comes_back_from_memory_or_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut archive = SpillingArchive::new(folder.path(), Arc::new(|why| panic!("{why}")));
        let block = |window: Epoch| Block {
            window,
            wide: window % 2 == 1,
            words: (0..300_000).map(|word| word ^ window).collect::<Vec<_>>().into(),
            ..Block::default()
        };
        (0..20).for_each(|window| archive.put(block(window)));
        assert!(archive.end > 0 && archive.in_memory <= IN_MEMORY);
        for window in [19, 0, 7] {
            assert_eq!(archive.take(window), [block(window)]);
            assert_eq!(archive.take(window), []);
        }
    }
}
