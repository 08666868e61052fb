//! Copies of what was downloaded, kept to be served when the user's own file is gone: a directory of files that are named
//! by hashes of what is in them, each last modified when it was last served.
//!
//! Invariants: what goes first is decided by [`evict`], which is pure; a copy never makes the disk fuller than
//! [`floor`] allows, also while it is made; a name in here is made from a hash, and nothing a peer says becomes one.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{OFlag, copy_file_range};
use nix::libc::off_t;
use nix::sys::statvfs::statvfs;

use crate::clock;

/// The part of a disk that copies leave free, at least (SEC-E5).
const FLOOR_PART: u64 = 20;
/// And how much of it in any case.
const FLOOR: u64 = 1 << 30;
/// The disk's free space is looked at whenever so much more was copied.
const CHUNK: u64 = 64 << 20;
/// Ends the name of a copy that is being made.
const UNFINISHED: &str = ".new";
/// Where the file system cannot copy by itself.
const BUFFER: usize = 256 << 10;
/// More files than there can be copies: what is beyond is not looked at.
const MAX_FILES: usize = 4096;

/// What counts of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) id: String,
    pub(super) size: u64,
    pub(super) served: SystemTime,
}

/// What copies may take, and what there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) most: u64,
    pub(super) age: Duration,
    /// Bytes of the disk that are free.
    pub(super) free: u64,
    /// How many of them are to stay so.
    pub(super) floor: u64,
}

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    /// What is to stay free of a disk of that size.
    floor: fn(u64) -> u64,
}

/// What a disk of this size keeps free.
pub(super) fn floor(disk: u64) -> u64 {
    FLOOR.max(disk / FLOOR_PART)
}

/// Which copies go, in that order, so that `need` more bytes have room, and whether they have it then: those that were not
/// served for too long, then the least recently served. Where they cannot have it, only what has no room as it is goes.
pub(super) fn evict(copies: &[Copy], need: u64, room: Room, now: SystemTime) -> (Vec<&Copy>, bool) {
    let mut order: Vec<&Copy> = copies.iter().collect();
    order.sort_by(|a, b| (a.served, &a.id).cmp(&(b.served, &b.id)));
    // A calendar that was never set says nothing of an age.
    let old = |copy: &Copy| {
        let age = now.duration_since(copy.served).unwrap_or_default();
        clock::is_set(copy.served) && clock::is_set(now) && age > room.age
    };
    let (aged, order): (Vec<_>, Vec<_>) = order.into_iter().partition(|copy| old(copy));
    let mut gone = aged;
    let mut freed: u64 = gone.iter().map(|copy| copy.size).sum();
    let mut left: u64 = order.iter().map(|copy| copy.size).sum();
    let fits = |left: u64, freed: u64| {
        let free = room.free.saturating_add(freed).checked_sub(need);
        left.saturating_add(need) <= room.most && free.is_some_and(|free| free >= room.floor)
    };
    for copy in order {
        if fits(left, freed) {
            break;
        }
        left -= copy.size;
        freed = freed.saturating_add(copy.size);
        gone.push(copy);
    }
    if fits(left, freed) {
        return (gone, true);
    }
    match need {
        0 => (gone, false),
        _ => (evict(copies, 0, room, now).0, false),
    }
}

impl Cache {
    pub(super) const fn at(dir: PathBuf, floor: fn(u64) -> u64) -> Self {
        Self { dir, floor }
    }

    pub(super) fn path(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    /// The copies there are. What is none of those `known` is removed: nobody could find it. But for what is not finished,
    /// where one is being made.
    pub(super) fn copies(&self, known: &dyn Fn(&str) -> bool, copying: bool) -> Vec<Copy> {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let mut copies = Vec::new();
        for entry in entries.flatten().take(MAX_FILES) {
            let id = entry.file_name().to_string_lossy().into_owned();
            match entry.metadata() {
                Ok(metadata) if metadata.is_file() && known(&id) => copies.push(Copy {
                    id,
                    size: metadata.len(),
                    served: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                }),
                Ok(_) if copying && id.ends_with(UNFINISHED) => {}
                Ok(metadata) if !metadata.is_dir() => remove(&entry.path()),
                _ => {}
            }
        }
        copies
    }

    /// What there is room for.
    pub(super) fn room(&self, most: u64, age: Duration) -> io::Result<Room> {
        let stat = statvfs(&self.dir)?;
        let bytes =
            |blocks: u128| u64::try_from(blocks * u128::from(stat.fragment_size())).unwrap_or(u64::MAX);
        Ok(Room {
            most,
            age,
            free: bytes(stat.blocks_available().into()),
            floor: (self.floor)(bytes(stat.blocks().into())),
        })
    }

    pub(super) fn remove(&self, id: &str) {
        remove(&self.path(id));
    }

    /// Makes the directory where it is missing.
    pub(super) fn make(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)
    }

    /// Copies the first `total` bytes of a file, which has been found to fit: shares the disk's blocks where the file
    /// system can. `stop` is asked now and then.
    ///
    /// # Errors
    /// Where the disk fills up, the file ends early, or it was to stop; nothing is left behind then.
    pub(super) fn copy(&self, from: &File, id: &str, total: u64, stop: &dyn Fn() -> bool) -> io::Result<()> {
        let temporary = self.path(&format!("{id}{UNFINISHED}"));
        let copied = (|| {
            let to = File::options()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .custom_flags(OFlag::O_NOFOLLOW.bits())
                .open(&temporary)?;
            let mut done = 0;
            while done < total {
                let end = total.min(done.saturating_add(CHUNK));
                let room = self.room(0, Duration::ZERO)?;
                if stop() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                if room.free.saturating_sub(end - done) < room.floor {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                copy_range(from, &to, done, end)?;
                done = end;
            }
            // Not synced: what a power cut leaves is found wrong piece by piece, or too short.
            fs::rename(&temporary, self.path(id))
        })();
        if copied.is_err() {
            remove(&temporary);
        }
        copied
    }
}

/// Opens a file that is to be served: a regular one, by its own name.
pub(super) fn open_plain(path: &Path) -> io::Result<File> {
    let regular = |metadata: fs::Metadata| match metadata.is_file() {
        true => Ok(()),
        false => Err(io::Error::other("it is not a regular file")),
    };
    // Looked at first: to open a device may do something.
    regular(fs::symlink_metadata(path)?)?;
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    regular(file.metadata()?)?;
    Ok(file)
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "{} cannot be removed: remove it by hand", path.display());
        }
        _ => {}
    }
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let large = |_| io::Error::from(io::ErrorKind::FileTooLarge);
    let mut read = off_t::try_from(start).map_err(large)?;
    let mut write = read;
    let mut left = usize::try_from(end - start).map_err(large)?;
    while left > 0 {
        match copy_file_range(from, Some(&mut read), to, Some(&mut write), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => left -= copied.min(left),
            Err(Errno::EINTR) => {}
            Err(Errno::EXDEV | Errno::ENOSYS | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPERM) => {
                return copy_by_hand(from, to, end - left as u64, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
        let part = buffer.get_mut(..most).unwrap_or_default();
        from.read_exact_at(part, at)?;
        to.write_all_at(part, at)?;
        at += part.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;
    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// 2027, and so many days.
    fn at(day: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + day * DAY
    }

    fn copy(id: &str, size: u64, served: SystemTime) -> Copy {
        Copy {
            id: id.into(),
            size,
            served,
        }
    }

    const ROOM: Room = Room {
        most: 10 * GIB,
        age: Duration::from_secs(30 * 24 * 3600),
        free: 100 * GIB,
        floor: 10 * GIB,
    };

    fn gone(copies: &[Copy], need: u64, room: Room, now: SystemTime) -> (Vec<&str>, bool) {
        let (gone, fits) = evict(copies, need, room, now);
        (gone.into_iter().map(|copy| &copy.id[..]).collect(), fits)
    }

    #[test]
    fn sec_e5_the_least_recently_served_copies_go_first_and_no_more_than_must() {
        let copies = [
            copy("b", 4 * GIB, at(2)),
            copy("c", 4 * GIB, at(3)),
            copy("a", GIB, at(1)),
        ];
        assert_eq!(gone(&copies, 0, ROOM, at(3)), (vec![], true));
        assert_eq!(gone(&copies, GIB, ROOM, at(3)), (vec![], true));
        assert_eq!(gone(&copies, 2 * GIB, ROOM, at(3)), (vec!["a"], true));
        assert_eq!(gone(&copies, 3 * GIB, ROOM, at(3)), (vec!["a", "b"], true));
        assert_eq!(gone(&copies, 11 * GIB, ROOM, at(3)), (vec![], false), "in vain");
        let smaller = Room { most: GIB, ..ROOM };
        assert_eq!(gone(&copies, 0, smaller, at(3)), (vec!["a", "b", "c"], true));
        let none = Room { most: 0, ..ROOM };
        assert_eq!(gone(&copies, 0, none, at(3)).0.len(), 3, "it was switched off");
    }

    #[test]
    fn sec_e5_a_floor_of_free_disk_is_left() {
        assert_eq!(
            (floor(0), floor(10 * GIB), floor(200 * GIB)),
            (GIB, GIB, 10 * GIB)
        );
        let copies = [copy("a", GIB, at(1)), copy("b", GIB, at(2))];
        let full = |free| Room { free, ..ROOM };
        assert_eq!(gone(&copies, GIB, full(11 * GIB), at(2)), (vec![], true));
        assert_eq!(gone(&copies, GIB, full(11 * GIB - 1), at(2)), (vec!["a"], true));
        assert_eq!(gone(&copies, 4 * GIB, full(11 * GIB), at(2)), (vec![], false));
        assert_eq!(gone(&copies, 0, full(9 * GIB), at(2)), (vec!["a"], true));
        assert_eq!(gone(&copies, 0, full(0), at(2)), (vec!["a", "b"], false));
    }

    #[test]
    fn copies_that_nobody_asks_for_go_when_the_calendar_is_known() {
        let copies = [
            copy("unset", GIB, SystemTime::UNIX_EPOCH),
            copy("old", GIB, at(0)),
            copy("new", GIB, at(20)),
            copy("ahead", GIB, at(90)),
        ];
        assert_eq!(gone(&copies, 0, ROOM, at(31)).0, ["old"]);
        assert_eq!(gone(&copies, 0, ROOM, at(30)).0, [""; 0]);
        assert_eq!(gone(&copies, 0, ROOM, SystemTime::UNIX_EPOCH + DAY).0, [""; 0]);
    }

    proptest! {
        #[test]
        fn sec_e5_what_stays_fits_and_nothing_newer_goes_before_something_older(
            sizes in prop::collection::vec((0u64..5, 0u32..60), 0..8),
            need in 0u64..12, most in 0u64..12, free in 0u64..40, floor in 0u64..20,
        ) {
            let copies: Vec<_> = (0u8..).zip(&sizes)
                .map(|(n, (size, day))| copy(&n.to_string(), size * GIB, at(*day))).collect();
            let room = Room { most: most * GIB, free: free * GIB, floor: floor * GIB, ..ROOM };
            let (gone, fits) = evict(&copies, need * GIB, room, at(40));
            let size = |copies: &[&Copy]| copies.iter().map(|copy| copy.size).sum::<u64>();
            let stay: Vec<_> = copies.iter().filter(|copy| !gone.contains(copy)).collect();
            if fits {
                prop_assert!(size(&stay) + need * GIB <= room.most);
                prop_assert!(room.free + size(&gone) - need * GIB >= room.floor);
            }
            for (gone, stays) in gone.iter().flat_map(|gone| stay.iter().map(move |stays| (gone, stays))) {
                prop_assert!(gone.served <= stays.served);
            }
            let aged = |copy: &&Copy| copy.served < at(10);
            prop_assert!(!stay.iter().any(aged));
            if let Some(last) = gone.last().filter(|last| fits && !aged(last)) {
                let without = size(&stay) + last.size;
                let freed = room.free + size(&gone) - last.size;
                prop_assert!(without + need * GIB > room.most || freed < need * GIB + room.floor, "one too many");
            }
        }
    }

    #[test]
    fn a_copy_is_what_was_copied_also_where_the_file_system_does_not_help() {
        let dir = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..BUFFER * 2 + 77).map(|n| (n / 3) as u8).collect();
        fs::write(dir.path().join("from"), &content).unwrap();
        let from = File::open(dir.path().join("from")).unwrap();
        let end = content.len() as u64;
        for by_hand in [false, true] {
            let to = File::create(dir.path().join("to")).unwrap();
            match by_hand {
                true => copy_by_hand(&from, &to, 0, end).unwrap(),
                false => {
                    copy_range(&from, &to, 0, 1000).unwrap();
                    copy_range(&from, &to, 1000, end).unwrap();
                }
            }
            assert!(fs::read(dir.path().join("to")).unwrap() == content);
            assert!(
                copy_range(&from, &to, end - 1, end + 1).is_err(),
                "it ends before"
            );
        }
    }

    #[test]
    fn what_is_no_copy_of_ours_is_removed_and_what_is_being_made_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache"), |_| 0);
        assert_eq!(cache.copies(&|_| true, false), []);
        cache.make().unwrap();
        cache.make().unwrap();
        for name in ["known", "other", "making.new"] {
            fs::write(cache.path(name), name).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", cache.path("link")).unwrap();
        let known = |id: &str| id == "known" || id == "link";
        let ids = |making| {
            cache
                .copies(&known, making)
                .into_iter()
                .map(|copy| copy.id)
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(true), ["known"]);
        assert!(cache.path("making.new").exists() && !cache.path("other").exists());
        assert!(
            fs::symlink_metadata(cache.path("link")).is_err(),
            "a link is none of ours"
        );
        assert_eq!(ids(false), ["known"]);
        assert!(!cache.path("making.new").exists());
    }

    #[test]
    fn a_copy_that_is_to_stop_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache"), |_| 0);
        cache.make().unwrap();
        fs::write(dir.path().join("from"), b"content").unwrap();
        let from = File::open(dir.path().join("from")).unwrap();
        assert!(cache.copy(&from, "id", 7, &|| true).is_err());
        assert!(cache.copy(&from, "id", 8, &|| false).is_err(), "it is shorter");
        assert_eq!(fs::read_dir(dir.path().join("cache")).unwrap().count(), 0);
    }

    #[test]
    fn sec_b8_only_a_regular_file_by_its_own_name_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, b"x").unwrap();
        open_plain(&path).unwrap();
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        for other in ["link", "pipe", ".", "none"] {
            assert!(open_plain(&dir.path().join(other)).is_err(), "{other}");
        }
        assert!(open_plain(Path::new("/dev/null")).is_err());
    }
}
