//! The files of a directory, to be sent as they lie there.
//!
//! Invariants: a symbolic link below the directory is never followed, so nothing outside it is sent; what is not sent is
//! named with the reason; the list is sorted, and the same directory gives the same list.

use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::Item;
use super::error::UploadError;

/// Entries of one upload, of whatever kind: the list of them is some 10 MB then, and takes seconds to make.
const MAX_ENTRIES: usize = 100_000;
/// Directories in each other: real trees have a dozen, and what has more is a loop of mounts.
const MAX_DEPTH: usize = 64;

/// What is in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Its files, sorted by name; directories in it come with the files in them.
    pub items: Vec<Item>,
    /// What is not sent, by name, and why.
    pub left_out: Vec<(String, String)>,
}

/// Lists the files of a directory and of all directories in it.
///
/// # Errors
/// Where it cannot be read, or holds more than 100,000 entries.
pub fn list(dir: &Path) -> Result<Listing, UploadError> {
    let mut walk = Walk {
        listing: Listing::default(),
        entries: 0,
        waiting: Vec::new(),
    };
    walk.directory(dir, "", 0)
        .map_err(|error| error.fatal(&dir.display().to_string()))?;
    while let Some(Waiting { path, name, depth }) = walk.waiting.pop() {
        match walk.directory(&path, &format!("{name}/"), depth) {
            Ok(()) => {}
            Err(Trouble::Unreadable(error)) => walk.leave_out(name, format!("it cannot be read: {error}")),
            Err(error @ Trouble::TooMany) => return Err(error.fatal(&dir.display().to_string())),
        }
    }
    let mut listing = walk.listing;
    listing.items.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    listing.left_out.sort_unstable();
    Ok(listing)
}

enum Trouble {
    Unreadable(io::Error),
    TooMany,
}

impl Trouble {
    fn fatal(self, dir: &str) -> UploadError {
        match self {
            Self::Unreadable(error) => UploadError::Source {
                name: dir.to_owned(),
                why: error.to_string(),
            },
            Self::TooMany => UploadError::Usage(format!(
                "`{dir}` holds more than {MAX_ENTRIES} files: send the directories in it one by one"
            )),
        }
    }
}

/// A directory that is still to be looked at.
struct Waiting {
    path: PathBuf,
    name: String,
    depth: usize,
}

struct Walk {
    listing: Listing,
    entries: usize,
    waiting: Vec<Waiting>,
}

impl Walk {
    fn directory(&mut self, path: &Path, prefix: &str, depth: usize) -> Result<(), Trouble> {
        for entry in fs::read_dir(path).map_err(Trouble::Unreadable)? {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(Trouble::TooMany);
            }
            self.entry(&entry.map_err(Trouble::Unreadable)?, prefix, depth);
        }
        Ok(())
    }

    fn entry(&mut self, entry: &DirEntry, prefix: &str, depth: usize) {
        let raw = entry.file_name();
        let Some(own) = raw.to_str() else {
            let shown = format!("{prefix}{}", raw.to_string_lossy());
            return self.leave_out(shown, "its name is not UTF-8: rename it".to_owned());
        };
        let name = format!("{prefix}{own}");
        // Of the link itself, where it is one.
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) => return self.leave_out(name, format!("it cannot be looked at: {error}")),
        };
        let kind = metadata.file_type();
        if kind.is_symlink() {
            self.leave_out(name, "it is a symbolic link, which is not followed".to_owned());
        } else if kind.is_dir() {
            if depth + 1 >= MAX_DEPTH {
                let why = format!("it lies more than {MAX_DEPTH} directories deep: send it by itself");
                return self.leave_out(name, why);
            }
            self.waiting.push(Waiting {
                path: entry.path(),
                name,
                depth: depth + 1,
            });
        } else if kind.is_file() {
            self.listing.items.push(Item {
                name,
                size: metadata.len(),
                modified: metadata.modified().unwrap_or(UNIX_EPOCH),
            });
        } else {
            self.leave_out(name, "it is not a regular file".to_owned());
        }
    }

    fn leave_out(&mut self, name: String, why: String) {
        self.listing.left_out.push((name, why));
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn names(listing: &Listing) -> Vec<&str> {
        listing.items.iter().map(|item| item.name.as_str()).collect()
    }

    #[test]
    fn the_files_of_a_directory_and_of_those_in_it_come_sorted() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("b/c/empty")).unwrap();
        for name in ["z", "b/c/1", "b/0", "a b#?%41\u{fc}"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let listing = list(dir.path()).unwrap();
        assert_eq!(names(&listing), ["a b#?%41\u{fc}", "b/0", "b/c/1", "z"]);
        let sizes: Vec<_> = listing.items.iter().map(|item| item.size).collect();
        assert_eq!(sizes, [10, 3, 5, 1]);
        assert!(listing.left_out.is_empty());
        assert_eq!(list(dir.path()).unwrap(), listing, "the same again");
    }

    #[test]
    fn links_sockets_and_names_that_are_not_utf_8_are_left_out_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "x").unwrap();
        symlink(outside.path(), dir.path().join("directory")).unwrap();
        symlink(outside.path().join("secret"), dir.path().join("file")).unwrap();
        symlink(".", dir.path().join("loop")).unwrap();
        let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
        fs::write(dir.path().join(OsStr::from_bytes(b"odd\xff")), "x").unwrap();
        fs::write(dir.path().join("kept"), "x").unwrap();
        let listing = list(dir.path()).unwrap();
        assert_eq!(names(&listing), ["kept"]);
        let left: Vec<_> = listing.left_out.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(left, ["directory", "file", "loop", "odd\u{fffd}", "socket"]);
    }

    #[test]
    fn directories_too_deep_are_left_out_and_the_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut deep = dir.path().to_owned();
        for _ in 0..MAX_DEPTH {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("too deep"), "x").unwrap();
        deep.pop();
        fs::write(deep.join("deep"), "x").unwrap();
        let listing = list(dir.path()).unwrap();
        assert_eq!(listing.items.len(), 1);
        assert_eq!(listing.left_out.len(), 1);
        assert!(listing.left_out[0].1.contains("64"), "{:?}", listing.left_out);
    }

    #[test]
    fn what_is_no_directory_or_not_there_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let missing = list(&dir.path().join("missing")).unwrap_err();
        assert!(missing.to_string().contains("missing"), "{missing}");
    }
}
