//! The parts of a decoded frame that extra fields and measures are read from.
//!
//! A packet holds what the six shipped tasks need. Whatever else a task asks for is read from here, once, while the frame
//! is at hand, into the words of a [`crate::field::Plan`]. Finding these parts is the decoder's work.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

/// The parts of one frame around its outermost IP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layers<'a> {
    /// The frame as captured, link header first.
    pub frame: &'a [u8],
    /// Source address of the link header, 48 bits; 0 where it has none.
    pub source_mac: u64,
    /// Destination address of the link header, 48 bits; 0 where it has none.
    pub destination_mac: u64,
    /// Identifier of the second VLAN tag, 0..=4095; 0 without one.
    pub inner_vlan: u16,
    /// Label of the outermost MPLS header, 20 bits; 0 without one.
    pub mpls_label: u32,
    /// The interface that captured the frame; empty where the capture names none.
    pub interface: Text,
    /// From the first byte of the IP header to the end of the frame as captured.
    pub ip: &'a [u8],
    /// Bytes of the IP header and its payload by the header's length field; where that is 0 (segmentation offload, a
    /// jumbogram), what the frame's length on the wire leaves for them.
    pub ip_length: u32,
    /// What was captured of the bytes behind the IP header and its extension headers, without link-layer padding.
    pub transport: &'a [u8],
    /// Bytes behind the IP header and its extension headers, by the IP header's length field.
    pub transport_length: u32,
    /// IP protocol number of those bytes.
    pub protocol: u8,
    /// 0 for a whole packet, 1 for a first fragment, 2 for a later one.
    pub fragment: u8,
}

impl Layers<'_> {
    /// The byte of the IP header that holds DSCP (6 bits) and ECN (2 bits).
    pub fn traffic_class(&self) -> u8 {
        match self.ip {
            [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
            [_, second, ..] => *second,
            _ => 0,
        }
    }

    /// Time to live, or hop limit.
    pub fn ttl(&self) -> u8 {
        let at = if self.ip.first().is_some_and(|first| first >> 4 == 6) { 7 } else { 8 };
        self.ip.get(at).copied().unwrap_or(0)
    }

    /// Type and code of ICMP or ICMPv6; zeros for any other protocol, a later fragment, or where they were not captured.
    pub fn icmp(&self) -> [u8; 2] {
        match (self.protocol, self.fragment, self.transport) {
            (1 | 58, 0 | 1, [kind, code, ..]) => [*kind, *code],
            (1 | 58, 0 | 1, [kind]) => [*kind, 0],
            _ => [0; 2],
        }
    }

    /// Bytes above the transport header by the IP header's length field. A protocol without ports, and a later fragment,
    /// have no transport header here; that of TCP and DCCP has 20 and 12 bytes where its own length was not captured.
    pub fn payload_length(&self) -> u32 {
        let words = |at: usize, least: u32| {
            let bytes = self.transport.get(at).map(|byte| u32::from(*byte));
            bytes.map_or(least, |byte| if at == 12 { (byte >> 4) * 4 } else { byte * 4 })
        };
        let header = match (self.protocol, self.fragment) {
            (_, 2) => 0,
            (6, _) => words(12, 20),
            (17 | 136, _) => 8,
            (33, _) => words(4, 12),
            (132, _) => 12,
            (1 | 58, _) => 8,
            _ => 0,
        };
        self.transport_length.saturating_sub(header)
    }
}

/// A short text as a number: up to 15 bytes in the number itself, so that numbers are ordered as texts are; of a longer
/// one the first 7 bytes and a hash that stands for the whole, which this process has to have met to tell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Text(pub u128);

/// Long texts that were met, and their order. Names of interfaces are few; whoever makes up more than these gets them by
/// their hash.
static MET: Mutex<Option<Met>> = Mutex::new(None);
/// How many there are, for whoever asks often.
static COUNT: AtomicUsize = AtomicUsize::new(0);

#[derive(Default)]
struct Met {
    by_number: HashMap<u128, Arc<str>>,
    all: Vec<Arc<str>>,
}
/// How many of them are remembered.
const MOST_MET: usize = 1 << 16;
/// Last byte of the number of a long text.
const LONG: u8 = 0xff;
/// Bytes of a text that are kept: what is longer is cut off there, at a character.
pub const MAX_TEXT: usize = 255;

impl Text {
    /// The number of a text. NUL and what is behind it is left out, and so is what is behind [`MAX_TEXT`] bytes.
    pub fn new(text: &str) -> Self {
        let text = text.split('\0').next().unwrap_or_default();
        let text = &text[..text.floor_char_boundary(MAX_TEXT)];
        let bytes = text.as_bytes();
        let mut number = [0; 16];
        if bytes.len() < number.len() {
            number[..bytes.len()].copy_from_slice(bytes);
            return Self(u128::from_be_bytes(number));
        }
        number[..7].copy_from_slice(&bytes[..7]);
        // FNV-1a: the same in every process and release.
        let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        number[7..15].copy_from_slice(&hash.to_be_bytes());
        number[15] = LONG;
        let number = u128::from_be_bytes(number);
        let mut met = MET.lock().unwrap_or_else(PoisonError::into_inner);
        let met = met.get_or_insert_default();
        if met.all.len() < MOST_MET && !met.by_number.contains_key(&number) {
            let text: Arc<str> = text.into();
            met.by_number.insert(number, text.clone());
            met.all.push(text);
            COUNT.store(met.all.len(), SeqCst);
        }
        Self(number)
    }

    /// The text. Of a long one that this process has not met: its first bytes, `~` and the hash.
    pub fn text(self) -> String {
        let bytes = self.0.to_be_bytes();
        if bytes[15] != LONG {
            let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            return String::from_utf8_lossy(&bytes[..length]).into_owned();
        }
        let met = MET.lock().unwrap_or_else(PoisonError::into_inner);
        match met.as_ref().and_then(|met| met.by_number.get(&self.0)) {
            Some(text) => text.to_string(),
            None => {
                let hash = bytes[7..15].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
                format!("{}~{hash}", String::from_utf8_lossy(&bytes[..7]))
            }
        }
    }

    /// The long texts that this process has met but for the first `known`, for another that is to tell them: there,
    /// [`Text::new`] makes them known.
    pub fn met_after(known: usize) -> Vec<Arc<str>> {
        if COUNT.load(SeqCst) <= known {
            return Vec::new();
        }
        let met = MET.lock().unwrap_or_else(PoisonError::into_inner);
        met.iter().flat_map(|met| met.all.iter().skip(known)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_and_short_ones_keep_their_order() {
        let texts = ["", "0", "1", "eth0", "eth0.100", "eth1", "fifteen letters", "wlan0"];
        let numbers: Vec<Text> = texts.iter().map(|text| Text::new(text)).collect();
        assert!(numbers.is_sorted() && numbers.windows(2).all(|pair| pair[0] != pair[1]));
        let long = r"\Device\NPF_{3F2504E0-4F89-11D3-9A0C-0305E82C3301}";
        for text in texts.iter().chain([&long, &"exactly sixteen!", &"ÄÖÜ ÄÖÜ ÄÖÜ ÄÖÜ"]) {
            assert_eq!(Text::new(text).text(), *text);
        }
        let endless = "ä".repeat(MAX_TEXT);
        assert_eq!(Text::new(&endless).text(), "ä".repeat(MAX_TEXT / 2));
        let unknown = Text(Text::new(long).0 ^ 1 << 64).text();
        assert!(unknown.starts_with(r"\Device~") && unknown.len() == 24, "{unknown}");
    }

    #[test]
    fn payloads_are_counted_by_the_ip_length() {
        let tcp = [0, 80, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0];
        let layers = Layers { transport: &tcp, transport_length: 132, protocol: 6, ..Layers::default() };
        assert_eq!(layers.payload_length(), 100, "a header of eight words");
        assert_eq!(Layers { transport: &tcp[..4], ..layers }.payload_length(), 112, "cut off: twenty bytes");
        assert_eq!(Layers { fragment: 2, ..layers }.payload_length(), 132);
        assert_eq!(Layers { protocol: 17, ..layers }.payload_length(), 124);
        assert_eq!(Layers { protocol: 47, ..layers }.payload_length(), 132);
    }

    #[test]
    fn the_traffic_class_and_hop_limit_of_both_versions_are_found() {
        let v4 = [0x45, 0xb8, 0, 20, 0, 0, 0, 0, 63];
        let v6 = [0x6b, 0x80, 0, 0, 0, 0, 17, 62];
        let layers = |ip| Layers { ip, ..Layers::default() };
        assert_eq!((layers(&v4).traffic_class(), layers(&v4).ttl()), (0xb8, 63));
        assert_eq!((layers(&v6).traffic_class(), layers(&v6).ttl()), (0xb8, 62));
    }
}
