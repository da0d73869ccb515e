//! gzip files of several members (RFC 1952, 2.2), with what gzip itself puts up with behind the last one: zeros.

use flate2::bufread::GzDecoder;
use std::io::{self, BufRead, Read};

/// Decompresses members one behind the other.
pub struct Members<R> {
    /// `None` once all is read, or what follows is no member.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Members<R> {
    /// Over bytes that begin with a member.
    pub fn new(bytes: R) -> Self {
        Self { member: Some(GzDecoder::new(bytes)) }
    }

    /// Goes on behind the member that has ended.
    fn next_member(&mut self) -> io::Result<()> {
        let Some(ended) = self.member.take() else { return Ok(()) };
        let mut rest = ended.into_inner();
        let mut has_zeros = false;
        loop {
            let bytes = rest.fill_buf()?;
            match (bytes.first(), bytes.iter().position(|byte| *byte > 0)) {
                (None, _) => return Ok(()),
                (_, Some(0)) => break,
                (_, behind_zeros) => {
                    let zeros = behind_zeros.unwrap_or(bytes.len());
                    has_zeros = true;
                    rest.consume(zeros);
                }
            }
        }
        if !has_zeros && rest.fill_buf()?.first() == Some(&0x1f) {
            self.member = Some(GzDecoder::new(rest));
            return Ok(());
        }
        let mut head = Vec::new();
        rest.take(8).read_to_end(&mut head)?;
        Err(garbage(&head))
    }
}

fn garbage(bytes: &[u8]) -> io::Error {
    let what = match super::foreign::name(bytes) {
        Some(name) => name,
        None if super::Format::is_start(bytes) => "a capture that is not compressed",
        None => "something that is not gzip",
    };
    let why = format!("{what} follows the compressed data; unpack both and join what comes out");
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            self.next_member()?;
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn member(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("written");
        encoder.finish().expect("a member")
    }

    fn read(parts: &[&[u8]]) -> (Vec<u8>, Option<String>) {
        let mut out = Vec::new();
        // Few bytes at a time, so that every boundary is met.
        let bytes = io::BufReader::with_capacity(7, io::Cursor::new(parts.concat()));
        let error = Members::new(bytes).read_to_end(&mut out).err().map(|error| error.to_string());
        (out, error)
    }

    #[test]
    fn members_follow_one_another_and_zeros_may_follow_the_last() {
        let (one, two) = (member(b"one "), member(b"two"));
        assert_eq!(read(&[&one, &two]), (b"one two".to_vec(), None));
        assert_eq!(read(&[&one, &two, &[0; 512]]), (b"one two".to_vec(), None));
        assert_eq!(read(&[&one, &[0]]), (b"one ".to_vec(), None));
    }

    #[test]
    fn what_else_follows_a_member_is_named() {
        let one = member(b"one ");
        let capture = [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0];
        for (behind, says) in [
            (&b"garbage"[..], "not gzip"),
            (&[0, 0, 7], "not gzip"),
            (&capture, "a capture that is not compressed"),
            (b"\x28\xb5\x2f\xfd\0", "a zstd file"),
        ] {
            let (out, error) = read(&[&one, behind]);
            assert_eq!(out, b"one ");
            assert!(error.as_ref().is_some_and(|why| why.contains(says)), "{error:?}");
        }
        let (out, error) = read(&[&one, &one[..12]]);
        assert_eq!((out.starts_with(b"one "), error.is_some()), (true, true));
    }
}
