//! Keeps the groups of closed windows for late packets: the latest in memory, the others in an unnamed file.
//!
//! Every closed window is kept until it is forgotten, for a packet of it may still come; the file goes with the process.
//! What a window leaves in the file when it is taken or forgotten is used again before the file grows, so the file is never
//! longer than what was in it at one time.

use dataflows::block::Block;
use dataflows::groups::Archive;
use dataflows::key::Layout;
use dataflows::window::Epoch;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
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
    File { layout: Layout, width: usize, words: usize, extents: Vec<Range<u64>> },
}

/// Which bytes of a file are in use.
#[derive(Default)]
struct Space {
    /// All bytes in use are before it.
    end: u64,
    /// Start and end of each free extent before that; no two of them touch.
    free: BTreeMap<u64, u64>,
}

impl Space {
    /// Extents of so many bytes together: free ones, the first in the file first, then new ones at its end.
    fn allocate(&mut self, mut bytes: u64) -> Vec<Range<u64>> {
        let mut extents = Vec::new();
        while bytes > 0 {
            let (start, end) = self.free.pop_first().unwrap_or((self.end, u64::MAX));
            let used = start.saturating_add(bytes).min(end);
            if start == self.end {
                self.end = used;
            } else if used < end {
                self.free.insert(used, end);
            }
            bytes -= used - start;
            extents.push(start..used);
        }
        extents
    }

    /// Takes an extent back.
    fn release(&mut self, extent: &Range<u64>) {
        let Range { mut start, mut end } = *extent;
        if let Some((&before, _)) =
            self.free.range(..start).next_back().filter(|(_, before)| **before == start)
        {
            self.free.remove(&before);
            start = before;
        }
        end = self.free.remove(&end).unwrap_or(end);
        if end == self.end {
            self.end = start;
        } else {
            self.free.insert(start, end);
        }
    }
}

/// An archive of one worker and key set.
pub struct SpillingArchive {
    folder: PathBuf,
    file: Option<File>,
    space: Space,
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
        let space = Space::default();
        Self { folder, file: None, space, windows, in_memory_windows, in_memory: 0, failed }
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
                let mut bytes: &[u8] = bytemuck::cast_slice(&block.words);
                let extents = self.space.allocate(bytes.len() as u64);
                for extent in &extents {
                    let (now, later) = bytes.split_at((extent.end - extent.start) as usize);
                    file.write_all_at(now, extent.start)?;
                    bytes = later;
                }
                self.in_memory -= bytes_in_memory(block);
                let (layout, width) = (block.layout, block.width);
                *kept = Kept::File { layout, width, words: block.words.len(), extents };
            }
        }
        Ok(())
    }

    fn read(&self, extents: &[Range<u64>], words: usize) -> io::Result<Vec<u64>> {
        let mut words = vec![0u64; words];
        let mut bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        for extent in extents {
            let (now, later) = bytes.split_at_mut((extent.end - extent.start) as usize);
            file.read_exact_at(now, extent.start)?;
            bytes = later;
        }
        Ok(words)
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
                Kept::File { layout, width, words, extents } => {
                    match self.read(&extents, words) {
                        Ok(words) => {
                            let words = words.into();
                            blocks.push(Block { window, layout, width, words, ..Block::default() });
                        }
                        Err(error) => (self.failed)(format!("cannot read a closed window back: {error}")),
                    }
                    extents.iter().for_each(|extent| self.space.release(extent));
                }
            }
        }
        blocks
    }

    fn forget(&mut self, window: Epoch) {
        self.in_memory_windows.remove(&window);
        for kept in self.windows.remove(&window).unwrap_or_default() {
            match kept {
                Kept::Memory(block) => self.in_memory -= bytes_in_memory(&block),
                Kept::File { extents, .. } => extents.iter().for_each(|extent| self.space.release(extent)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(folder: &Path) -> SpillingArchive {
        SpillingArchive::new(folder, Arc::new(|why| panic!("{why}")))
    }

    fn block(window: Epoch, words: u64) -> Block {
        Block {
            window,
            layout: if window % 2 == 1 { Layout::Wide } else { Layout::Compact },
            width: 7,
            words: (0..words).map(|word| word ^ window).collect::<Vec<_>>().into(),
            ..Block::default()
        }
    }

    #[test]
    fn every_window_comes_back_from_memory_or_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut archive = archive(folder.path());
        (0..20).for_each(|window| archive.put(block(window, 300_000)));
        assert!(archive.space.end > 0 && archive.in_memory <= IN_MEMORY);
        for window in [19, 0, 7] {
            assert_eq!(archive.take(window), [block(window, 300_000)]);
            assert_eq!(archive.take(window), []);
        }
    }

    /// A capture with 60 late packets for one wide window left a file of 710 MB.
    #[test]
    fn a_window_that_is_revised_again_and_again_uses_its_part_of_the_file_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut archive = archive(folder.path());
        (1..20).for_each(|window| archive.put(block(window, 200_000 + window)));
        for revision in 0..60 {
            // The earliest window, always a little larger; another one now and then.
            for (window, words) in [(0, 400_000 + revision * 6), (1 + revision % 7, 200_000 + revision * 6)] {
                archive.take(window);
                archive.put(block(window, words));
            }
        }
        let file = archive.file.as_ref().expect("a file");
        let live: u64 = (19 * 200_500 + 400_500) * 8;
        let length = file.metadata().expect("metadata").len();
        assert!(length <= live + live / 4, "{length} bytes for {live}");
        assert_eq!(archive.take(0), [block(0, 400_000 + 59 * 6)]);
        assert_eq!(archive.take(3), [block(3, 200_000 + 58 * 6)]);
        assert_eq!(archive.take(12), [block(12, 200_012)]);
    }

    /// A run of 1 s windows kept all of them, for as long as it lived.
    #[test]
    fn windows_that_are_forgotten_leave_their_room_to_later_ones() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut archive = archive(folder.path());
        for window in 0..60 {
            archive.put(block(window, 200_000));
            if let Some(old) = window.checked_sub(30) {
                archive.forget(old);
            }
        }
        let length = archive.file.as_ref().and_then(|file| file.metadata().ok()).expect("a file").len();
        assert!(length <= 31 * 200_000 * 8, "{length} bytes for 30 windows");
        assert_eq!(
            (archive.windows.len(), archive.take(29), archive.take(30)),
            (30, vec![], vec![block(30, 200_000)])
        );
        (0..60).for_each(|window| archive.forget(window));
        assert_eq!((archive.in_memory, archive.space.end, archive.space.free.len()), (0, 0, 0));
    }

    #[test]
    fn free_extents_are_joined_and_used_before_the_file_grows() {
        let mut space = Space::default();
        let extents: Vec<_> = (0..5).flat_map(|_| space.allocate(10)).collect();
        assert_eq!((extents[4].clone(), space.end), (40..50, 50));
        for at in [1, 3, 2] {
            space.release(&extents[at]);
        }
        assert_eq!(space.free, BTreeMap::from([(10, 40)]));
        assert_eq!(space.allocate(25).first(), Some(&(10..35)));
        assert_eq!(space.allocate(8), [35..40, 50..53]);
        space.release(&(35..40));
        space.release(&(50..53));
        space.release(&(40..50));
        assert_eq!((space.end, space.free.len(), space.allocate(0)), (35, 0, Vec::new()));
    }
}
