//! Any bytes as a message from the bus: no panic, and a batch that is read visits as many packets as it says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netspectra::wire::batch::{Batch, Item};
use netspectra::wire::single;

fuzz_target!(|bytes: &[u8]| {
    let _ = single::decode(bytes.to_vec().into());
    if let Ok(batch) = Batch::read(bytes.to_vec().into()) {
        let mut packets = 0;
        batch.visit(|item| {
            if let Item::Packet(_) | Item::Stray(_) = item {
                batch.fields().iter().for_each(|column| drop(std::hint::black_box(column.value(packets as usize))));
                packets += 1;
            }
        });
        assert_eq!(packets, batch.packets);
    }
});
