//! What to do about a word of the system: the causes of failed writes that a user can take away.

use std::io;
use std::path::Path;

/// What to do when this action on a path failed so; empty where the system's word is all there is to say.
pub(super) fn way_out(action: &str, error: &io::Error, path: &Path) -> &'static str {
    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) && leads_nowhere(path) {
        return "; a symbolic link in this path leads nowhere: make what it leads to, or remove the link";
    }
    if let Some(rustix::io::Errno::NOLCK | rustix::io::Errno::OPNOTSUPP) =
        rustix::io::Errno::from_io_error(error)
    {
        return "; this file system does not support locks (flock); write to another one";
    }
    match error.kind() {
        io::ErrorKind::FileTooLarge => {
            "; a limit on the size of files: `ulimit -f`, or LimitFSIZE= of the unit, raises it"
        }
        io::ErrorKind::StorageFull => "; make room, or write elsewhere (-o)",
        io::ErrorKind::QuotaExceeded => "; the quota of this user is used up",
        io::ErrorKind::ReadOnlyFilesystem => "; write elsewhere (-o)",
        io::ErrorKind::PermissionDenied if action == "read" => {
            "; the user that runs this has to be able to read it"
        }
        io::ErrorKind::PermissionDenied => "; the user that runs this has to be able to write there",
        io::ErrorKind::OutOfMemory => {
            "; a limit on memory: `ulimit -v`, or MemoryMax= of the unit, raises it"
        }
        _ => match rustix::io::Errno::from_io_error(error) {
            Some(rustix::io::Errno::MFILE) => {
                "; a limit on open files: `ulimit -n`, or LimitNOFILE= of the unit, raises it"
            }
            _ => "",
        },
    }
}

/// Whether a part of the path is a symbolic link to nothing.
fn leads_nowhere(path: &Path) -> bool {
    let is_lost = |part: &&Path| part.is_symlink() && !part.exists();
    path.ancestors().any(|part| is_lost(&part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_that_a_user_can_take_away_are_told_with_what_to_do() {
        for (errno, says) in [
            (13, "the user that runs this"),
            (24, "ulimit -n"),
            (27, "ulimit -f"),
            (28, "make room"),
            (30, "elsewhere"),
            (37, "flock"),
            (122, "quota"),
        ] {
            let told = way_out("write", &io::Error::from_raw_os_error(errno), Path::new("/"));
            assert!(told.contains(says), "{errno}: {told}");
        }
        assert_eq!(way_out("write", &io::Error::from_raw_os_error(5), Path::new("/")), "");
    }

    #[test]
    fn where_reading_fails_nothing_is_said_of_writing() {
        let told = way_out("read", &io::Error::from_raw_os_error(13), Path::new("/"));
        assert!(told.contains("read") && !told.contains("write"), "{told}");
    }

    #[test]
    fn a_link_that_leads_nowhere_is_told_of() {
        let folder = tempfile::tempdir().expect("a folder");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("gone"), &link).expect("a link");
        let missing = io::Error::from_raw_os_error(2);
        assert!(way_out("write", &missing, &link.join("all")).contains("leads nowhere"));
        assert_eq!(way_out("write", &missing, &folder.path().join("gone")), "");
    }
}
