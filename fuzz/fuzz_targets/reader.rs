//! Any bytes as a capture: no panic, every frame within the bytes, and the same frames however the bytes are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netspectra::capture::{Format, Frame, Stop};

/// Scans in pieces of `step` bytes, as a reader does that gets no more at once.
fn scan(bytes: &[u8], step: usize) -> (Vec<Frame>, bool) {
    let Ok((mut format, header)) = Format::open(bytes) else { return (Vec::new(), false) };
    let (mut frames, mut at, mut want) = (Vec::new(), header, step);
    loop {
        let end = bytes.len().min(at.saturating_add(want));
        let piece = &bytes[at.min(end)..end];
        let scanned = format.scan(piece, |frame| {
            assert!(frame.start + frame.captured as usize <= piece.len());
            frames.push(Frame { start: at + frame.start, ..frame });
        });
        assert!(scanned.consumed <= piece.len() as u64 || piece.len() >= 12);
        at = at.saturating_add(scanned.consumed as usize);
        match scanned.stop {
            Stop::Damaged(_) => return (frames, true),
            Stop::Needs(_) if end == bytes.len() || at >= bytes.len() => return (frames, false),
            Stop::Needs(more) => want = if scanned.consumed == 0 { more.max(want + 1) } else { step },
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    assert_eq!(scan(bytes, usize::MAX), scan(bytes, 1 + bytes.len() / 3));
});
