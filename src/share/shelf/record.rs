//! What is kept of each content on the shelf: a file of its own, written whole or not at all.
//!
//! Four bytes that say what it is and in which version, a CRC32C, and the rest. A damaged one is set aside, the last such
//! one only, and the content is forgotten. Invariant: a file's name here is made from a hash of what it is about.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::identity::{DAMAGED, write_atomic};
use crate::share::cache::{Cache, open_plain};
use crate::share::leaves::Leaves;
use crate::share::{Content, Topic};
use crate::types::hex;

use super::held::{About, Mark};
use super::{Held, MAX_HELD, MAX_LEAVES, MAX_SUBJECTS, is_name};

/// The last byte is the version of the format.
const HEAD: [u8; 4] = *b"TRS\x01";
/// Head and checksum.
const HEADER: usize = 8;
/// The leaves of one content, for each of its subjects, are bounded at half of that.
const MAX_FILE: u64 = 32 << 20;
const ID: usize = 16;
/// More files than we ever leave there: what is beyond is not looked at.
const MAX_FILES: usize = 4 * MAX_HELD;

/// The directory; `None`: nothing is kept.
#[derive(Debug)]
pub(super) struct Records(Option<PathBuf>);

#[derive(Debug, Serialize, Deserialize)]
struct Record<'a> {
    topic: Topic,
    content: Content,
    mark: Mark,
    put: u64,
    #[serde(borrow)]
    path: &'a [u8],
    offer: Option<&'a str>,
    /// For each subject.
    batches: Vec<Vec<&'a [u8]>>,
}

/// The name of what is kept of a content, and of its copy. The same content that somebody offers by hand is another.
pub(super) fn id(content: &Content, offered: bool) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("tributary 1 shelf");
    hasher.update(&[u8::from(offered)]);
    for subject in &content.subjects {
        hasher.update(&subject.0);
    }
    let mut id = [0; ID];
    hasher.finalize_xof().fill(&mut id);
    hex(&id)
}

impl Records {
    pub(super) const fn at(dir: Option<PathBuf>) -> Self {
        Self(dir)
    }

    /// Keeps it. Where that fails the log says so: it is on the shelf all the same.
    pub(super) fn write(&self, held: &Held) {
        let Some(dir) = &self.0 else { return };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        let written = made.and_then(|()| write_atomic(&dir.join(held.id()), &encode(held)?));
        if let Err(error) = written {
            tracing::warn!(%error, "what is shared is not kept in {}: after a restart it is not shared any more", dir.display());
        }
    }

    pub(super) fn remove(&self, id: &str) {
        let Some(dir) = &self.0 else { return };
        match fs::remove_file(dir.join(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "what is not shared any more is still kept in {}", dir.display());
            }
            _ => {}
        }
    }

    /// What was kept and is still there; the rest is forgotten.
    pub(super) fn read(&self, cache: Option<&Cache>) -> Vec<Held> {
        let Some(dir) = &self.0 else { return Vec::new() };
        let Ok(entries) = fs::read_dir(dir) else {
            return Vec::new();
        };
        let mut held = Vec::new();
        for entry in entries.flatten().take(MAX_FILES) {
            let name = entry.file_name();
            let id = name.to_str().filter(|name| is_id(name));
            match id {
                Some(id) => held.extend(self.read_one(dir, id, cache)),
                // Left over from a power cut while it was written.
                None if name.as_bytes().ends_with(b".new") => drop(fs::remove_file(entry.path())),
                None => {}
            }
        }
        held
    }

    fn read_one(&self, dir: &Path, id: &str, cache: Option<&Cache>) -> Option<Held> {
        let path = dir.join(id);
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(%error, "{} cannot be read: what it says is shared is not", path.display());
                return None;
            }
        };
        let about = decode(&bytes).filter(|(about, _)| self::id(&about.content, about.offer.is_some()) == id);
        let Some((about, put)) = about else {
            let aside = dir.join(DAMAGED);
            let moved = fs::rename(&path, &aside);
            let failed = moved.err().map(|error| error.to_string());
            tracing::warn!(
                failed,
                "{} was damaged: what it says is not shared any more. It is kept as {}",
                path.display(),
                aside.display()
            );
            return None;
        };
        let held = Held::again(about, put, cache);
        if held.is_none() {
            tracing::debug!("a shared file is gone or was changed: it is not shared any more");
            self.remove(id);
        }
        held
    }
}

fn is_id(name: &str) -> bool {
    name.len() == 2 * ID
        && name
            .bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more: then the checksum is wrong.
    open_plain(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn encode(held: &Held) -> io::Result<Vec<u8>> {
    let about = held.about();
    let record = Record {
        topic: about.topic,
        content: about.content.clone(),
        mark: about.mark,
        put: held.put_at(),
        path: about.path.as_os_str().as_bytes(),
        offer: about.offer.as_deref(),
        batches: about
            .leaves
            .iter()
            .map(|leaves| leaves.batches().collect())
            .collect(),
    };
    let body = postcard::to_stdvec(&record).map_err(io::Error::other)?;
    Ok([&HEAD[..], &crc32c::crc32c(&body).to_le_bytes(), &body].concat())
}

/// What a file says and when it was put there; `None` where it is damaged.
fn decode(bytes: &[u8]) -> Option<(About, u64)> {
    let (header, body) = bytes.split_first_chunk::<HEADER>()?;
    let right = [&HEAD[..], &crc32c::crc32c(body).to_le_bytes()].concat();
    if header[..] != right[..] {
        return None;
    }
    let record: Record<'_> = postcard::from_bytes(body).ok()?;
    let path = PathBuf::from(OsStr::from_bytes(record.path));
    let content = record.content;
    let subjects = content.subjects.iter();
    let leaves = subjects.zip(&record.batches);
    let leaves =
        leaves.map(|(subject, batches)| Leaves::restore(*subject, content.total, batches.iter().copied()));
    let leaves: Vec<Leaves> = leaves.collect();
    let fits = (1..=MAX_SUBJECTS).contains(&content.subjects.len())
        && record.batches.len() == content.subjects.len()
        && record.mark.size() == content.total
        && leaves.iter().map(Leaves::len).sum::<usize>() <= MAX_LEAVES
        && record.offer.is_none_or(is_name)
        && path.is_absolute();
    let about = About {
        topic: record.topic,
        leaves,
        offer: record.offer.map(str::to_owned),
        path,
        mark: record.mark,
        content,
    };
    fits.then_some((about, record.put))
}
