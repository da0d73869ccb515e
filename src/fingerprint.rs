//! A number for bytes that is the same on every machine and in every version: FNV-1a, 64 bits.
//!
//! For telling apart what differs by chance, never against anybody who wants two to be the same.

/// The FNV-1a hash of no bytes.
pub const EMPTY: u64 = 0xcbf2_9ce4_8422_2325;

/// The FNV-1a hash of these bytes.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    extend(EMPTY, bytes)
}

/// The FNV-1a hash of bytes that have this hash, followed by these.
pub fn extend(hash: u64, bytes: &[u8]) -> u64 {
    let add = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(hash, add)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the authors: isthe.com/chongo/tech/comp/fnv.
    #[test]
    fn it_is_fnv_1a() {
        assert_eq!(fingerprint(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fingerprint(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fingerprint(b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(extend(fingerprint(b"foo"), b"bar"), fingerprint(b"foobar"));
    }
}
