//! Files that are not captures, known by their first bytes: what they are, and the command that turns them into one.

/// How a file becomes a capture.
enum Way {
    /// This command unpacks it to its standard output.
    Unpack(&'static str),
    /// Wireshark's editcap reads its format.
    Convert,
    /// It is no capture in any format.
    None,
}

/// First bytes, what starts with them, and what to do.
const KNOWN: &[(&[u8], &str, Way)] = &[
    (b"\xfd7zXZ\0", "an xz file", Way::Unpack("xz -dc")),
    (b"BZh", "a bzip2 file", Way::Unpack("bzip2 -dc")),
    (b"\x04\x22\x4d\x18", "an lz4 file", Way::Unpack("lz4 -dc")),
    (b"\x02\x21\x4c\x18", "an lz4 file", Way::Unpack("lz4 -dc")),
    (b"PK\x03\x04", "a zip archive", Way::Unpack("unzip -p")),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", Way::Unpack("7z x -so")),
    (b"Rar!\x1a\x07", "a rar archive", Way::Unpack("unrar p -inul")),
    (b"LZIP", "an lzip file", Way::Unpack("lzip -dc")),
    (b"\x89LZO\0", "an lzop file", Way::Unpack("lzop -dc")),
    (b"\x5d\0\0", "an lzma file", Way::Unpack("xz --format=lzma -dc")),
    (b"\x1f\x9d", "a compress (.Z) file", Way::Unpack("gzip -dc")),
    (b"\x1f\x8b", "a gzip file", Way::Unpack("gzip -dc")),
    (b"\x28\xb5\x2f\xfd", "a zstd file", Way::Unpack("zstd -dc")),
    (b"snoop\0\0\0", "a snoop capture", Way::Convert),
    (b"btsnoop\0", "a btsnoop capture", Way::Convert),
    (b"GMBU", "a Microsoft Network Monitor capture", Way::Convert),
    (b"RTSS", "a Microsoft Network Monitor capture", Way::Convert),
    (b"XCP\0", "a NetXray capture", Way::Convert),
    (b"TRSNIFF data", "a Sniffer capture", Way::Convert),
    (b"iptrace ", "an iptrace capture", Way::Convert),
    (b"\x1c\0\x01\xac", "an Ixia capture", Way::Convert),
    (b"\x1c\0\x01\xab", "an Ixia capture", Way::Convert),
    (b"PAR1", "a Parquet file", Way::None),
    (b"\x7fELF", "a program", Way::None),
    (b"<!DO", "an HTML page", Way::None),
    (b"<htm", "an HTML page", Way::None),
];

fn known(head: &[u8]) -> Option<&'static (&'static [u8], &'static str, Way)> {
    KNOWN.iter().find(|(magic, ..)| head.starts_with(magic))
}

/// What bytes that begin like this are, such as `an xz file`.
pub fn name(head: &[u8]) -> Option<&'static str> {
    known(head).map(|(_, name, _)| *name)
}

/// What the file of this name, which begins like this, is instead of a capture, and what to do about it.
pub fn advice(head: &[u8], file: &str) -> Option<String> {
    let (_, name, way) = known(head)?;
    Some(match way {
        Way::Unpack(command) if file == "-" => {
            format!("is {name}, which is not unpacked here; put `{command}` before it in the pipe")
        }
        Way::Unpack(command) => {
            let unpacked = quoted(&unpacked(file));
            format!(
                "is {name}, which is not unpacked here; `{command} {} > {unpacked}` does it",
                quoted(file)
            )
        }
        Way::Convert => {
            let (from, to) = if file == "-" {
                ("FILE".into(), "FILE.pcap".into())
            } else {
                (quoted(file), quoted(&converted(file)))
            };
            format!(
                "is {name}, a format that is not read; Wireshark's `editcap -F pcap {from} {to}` converts it"
            )
        }
        Way::None => format!("is {name}, not a capture"),
    })
}

/// The name without its last extension, if that leaves another one.
fn unpacked(file: &str) -> String {
    match file.rsplit_once('.') {
        Some((stem, _)) if stem.rsplit('/').next().is_some_and(|name| name.contains('.')) => stem.to_owned(),
        _ => format!("{file}.pcap"),
    }
}

fn converted(file: &str) -> String {
    match file.rsplit_once('.') {
        Some((stem, extension)) if !extension.contains('/') && !stem.is_empty() => format!("{stem}.pcap"),
        _ => format!("{file}.pcap"),
    }
}

/// A name as a shell reads it.
fn quoted(name: &str) -> String {
    let is_plain = |letter: char| letter.is_alphanumeric() || "-_./+:,@%".contains(letter);
    if name.chars().all(is_plain) { name.to_owned() } else { format!("'{}'", name.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_not_captures_are_named_with_the_command_that_helps() {
        for (head, file, says) in [
            (&b"\xfd7zXZ\0\0"[..], "a.pcap.xz", "`xz -dc a.pcap.xz > a.pcap`"),
            (b"BZh91AY", "day 1.bz2", "`bzip2 -dc 'day 1.bz2' > 'day 1.bz2.pcap'`"),
            (b"PK\x03\x04", "./x/it's.zip", r"`unzip -p './x/it'\''s.zip'"),
            (
                b"snoop\0\0\0\0\0\0\x02",
                "a.snoop",
                "a snoop capture, a format that is not read; Wireshark's `editcap -F pcap a.snoop a.pcap`",
            ),
            (b"\x04\x22\x4d\x18", "-", "put `lz4 -dc` before it"),
            (b"PAR1", "rows.parquet", "is a Parquet file, not a capture"),
        ] {
            let advice = advice(head, file).expect("it is known");
            assert!(advice.contains(says), "{advice}");
        }
        assert_eq!(advice(b"what", "a"), None);
    }
}
