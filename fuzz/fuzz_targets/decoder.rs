//! Any bytes as a frame of any link type: no panic, and the fast path agrees with the general one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netspectra::decode::{Decoded, LinkType, decode, decode_with_layers, fast, general, link};

fuzz_target!(|bytes: &[u8]| {
    let Some((number, frame)) = bytes.split_first() else { return };
    let known = LinkType::KNOWN[usize::from(*number) % LinkType::KNOWN.len()];
    let length = frame.len() as u32;
    match (decode(known, frame, 0, length), decode_with_layers(known, frame, 0, length, Default::default())) {
        (Decoded::Ip(packet), Decoded::Ip((same, _))) => assert_eq!(packet, same),
        (Decoded::NonIp, Decoded::NonIp) | (Decoded::Malformed, Decoded::Malformed) => {}
        (without, with) => panic!("{without:?} without layers, {with:?} with them"),
    }
    if let Some(found) = link::find_ip(known, frame)
        && let Some(headers) = fast::read_with_payload(found.version, found.bytes, length)
    {
        assert_eq!(Some(headers), general::read_with_payload(&found, length));
    }
});
