//! Any bytes as a frame of any link type: no panic, and the fast path agrees with the general one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netspectra::decode::{LinkType, decode, fast, general, link};

fuzz_target!(|bytes: &[u8]| {
    let Some((number, frame)) = bytes.split_first() else { return };
    let known = LinkType::KNOWN[usize::from(*number) % LinkType::KNOWN.len()];
    decode(known, frame, 0, frame.len() as u32);
    if let Some(found) = link::find_ip(known, frame)
        && let Some(headers) = fast::read(found.version, found.bytes)
    {
        assert_eq!(Some(headers), general::read(&found));
    }
});
