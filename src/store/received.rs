//! Descriptors that another process opened and passed here, to be written to or to be read (`SCM_RIGHTS`).
//!
//! They are taken only where writing to them is what writing to a file is: a sender must not be able to make this process
//! wait (a pipe, a terminal, a file system of its own), use up its memory (a file in memory counts as the writer's, not
//! the sender's), or speak to the kernel in its name (`/proc` and its kin). What a sender may not write it cannot have
//! opened for writing, so nothing here can be made to overwrite a stranger's file. For reading the same holds, but for
//! memory, which nobody uses up by reading; and what the sender itself could not open is not read for it either, however it
//! came by the descriptor.

use std::fs::{File, Metadata};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, FsType, TMPFS_MAGIC, fstatfs};
use nix::unistd::geteuid;

use super::{OpenedFiles, StoreError};

/// The journal of a file of some 200 GiB in its usual state, before it is written anew. A longer one would be read into
/// this process' memory, of which an appliance has little, by as many senders as there are.
const JOURNAL_MAX: u64 = 16 << 20;
/// `RAMFS_MAGIC`, which libc does not have.
const RAMFS_MAGIC: u64 = 0x8584_58f6;
/// Readable by the group or by everybody.
const READ_BY_OTHERS: u32 = 0o044;

/// The user a process belongs to that passes descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// As the kernel says (`SO_PEERCRED`).
    pub uid: u32,
}

impl OpenedFiles {
    /// Takes descriptors that `sender` opened: data, journal and lock, in this order. Whether `created` is true, only
    /// the sender knows; it has synced their directory itself. Blocks, as long as a file system takes to say what it is.
    ///
    /// # Errors
    /// [`StoreError::NotTaken`] where these are not three plain files on a disk, opened for reading and writing.
    pub fn received(
        descriptors: Vec<OwnedFd>,
        path: PathBuf,
        created: bool,
        sender: Sender,
    ) -> Result<Self, StoreError> {
        let not_taken = |why: String| StoreError::NotTaken { why };
        let count = descriptors.len();
        let three = <[OwnedFd; 3]>::try_from(descriptors);
        let three = three.map_err(|_| not_taken(format!("3 descriptors were expected, {count} came")))?;
        for (descriptor, what) in three.iter().zip(["data", "journal", "lock"]) {
            check(descriptor, sender).map_err(|why| not_taken(format!("the {what} {why}")))?;
        }
        let [data, journal, lock] = three.map(File::from);
        let len = journal.metadata().map(|m| m.len());
        let len = len.map_err(|e| not_taken(format!("the journal cannot be looked at: {e}")))?;
        if len > JOURNAL_MAX {
            return Err(not_taken(format!(
                "the journal has {len} bytes, {JOURNAL_MAX} at most are read"
            )));
        }
        Ok(Self {
            data,
            journal,
            lock,
            directory: None,
            path,
            created,
            journal_max: JOURNAL_MAX,
        })
    }
}

/// Takes the one descriptor of a file that `sender` opened for reading. Blocks, as long as a file system takes to say
/// what it is.
///
/// # Errors
/// [`StoreError::NotTaken`] where this is not one plain file on a disk, opened for reading only, that the sender may read.
pub fn received_for_reading(descriptors: Vec<OwnedFd>, sender: Sender) -> Result<File, StoreError> {
    let not_taken = |why: String| StoreError::NotTaken { why };
    let count = descriptors.len();
    let one = <[OwnedFd; 1]>::try_from(descriptors);
    let [one] = one.map_err(|_| not_taken(format!("1 descriptor was expected, {count} came")))?;
    readable(&one, sender).map_err(|why| not_taken(format!("the file {why}")))?;
    Ok(one.into())
}

/// What is wrong with it, in words that follow its name.
fn check(descriptor: &OwnedFd, sender: Sender) -> Result<(), String> {
    let (file, _) = plain_file(descriptor, OFlag::O_RDWR, "is not opened for reading and writing")?;
    let kind = on_a_disk(&file, sender)?;
    if is_memory(kind) && !is_own(sender) {
        return Err("is in memory (tmpfs), which would be counted as the daemon's".into());
    }
    Ok(())
}

/// The same for what is only read.
fn readable(descriptor: &OwnedFd, sender: Sender) -> Result<(), String> {
    let (file, metadata) = plain_file(descriptor, OFlag::O_RDONLY, "is not opened for reading only")?;
    // With an access control list the group's bits are its mask: whoever it lets read, they show.
    let is_its = sender.uid == 0 || metadata.uid() == sender.uid || metadata.mode() & READ_BY_OTHERS != 0;
    if !is_its {
        return Err(format!(
            "belongs to user {}, and user {} may not read it",
            metadata.uid(),
            sender.uid
        ));
    }
    on_a_disk(&file, sender).map(drop)
}

fn plain_file(descriptor: &OwnedFd, mode: OFlag, otherwise: &str) -> Result<(File, Metadata), String> {
    let unknown = |e: nix::Error| format!("cannot be looked at: {e}");
    let flags = OFlag::from_bits_retain(fcntl(descriptor, FcntlArg::F_GETFL).map_err(unknown)?);
    // First, because every other question to an O_PATH descriptor fails or is about something else.
    if flags.contains(OFlag::O_PATH) || flags & OFlag::O_ACCMODE != mode {
        return Err(otherwise.into());
    }
    if flags.intersects(OFlag::O_APPEND | OFlag::O_DIRECT) {
        return Err("is opened with O_APPEND or O_DIRECT".into());
    }
    let unknown = |e: std::io::Error| format!("cannot be looked at: {e}");
    let file = File::from(descriptor.try_clone().map_err(unknown)?);
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok((file, metadata)),
        _ => Err("is not a plain file".into()),
    }
}

fn on_a_disk(file: impl AsFd, sender: Sender) -> Result<FsType, String> {
    let system = fstatfs(file).map_err(|e| format!("cannot be looked at: {e}"))?;
    let kind = system.filesystem_type();
    if kind == FUSE_SUPER_MAGIC && !is_own(sender) && sender.uid != 0 {
        return Err("is on a file system that a program of the user's answers for (FUSE)".into());
    }
    // What is no storage (/proc, /sys, control groups) has no blocks.
    if system.blocks() == 0 && !is_memory(kind) {
        return Err("is not on a disk".into());
    }
    Ok(kind)
}

fn is_own(sender: Sender) -> bool {
    sender.uid == geteuid().as_raw()
}

fn is_memory(kind: FsType) -> bool {
    // The type of the number differs between targets.
    #[allow(clippy::unnecessary_cast, reason = "32-bit targets have another type")]
    let number = kind.0 as u64;
    kind == TMPFS_MAGIC || number == RAMFS_MAGIC
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    use std::path::Path;

    use nix::unistd::pipe;

    use super::*;

    fn own() -> Sender {
        let uid = geteuid().as_raw();
        Sender { uid }
    }

    fn open(path: &Path, options: &mut OpenOptions) -> OwnedFd {
        options.open(path).unwrap().into()
    }

    fn plain(path: &Path) -> OwnedFd {
        open(
            path,
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false),
        )
    }

    fn why(descriptors: Vec<OwnedFd>) -> String {
        match OpenedFiles::received(descriptors, "x".into(), false, own()) {
            Ok(_) => "taken".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn only_three_plain_files_opened_for_reading_and_writing_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let good = || vec![plain(&at("data")), plain(&at("journal")), plain(&at("lock"))];
        assert_eq!(why(good()), "taken");
        assert!(why(Vec::new()).contains("3 descriptors were expected, 0 came"));
        assert!(why(good().into_iter().take(2).collect()).contains("2 came"));
        assert!(why(good().into_iter().chain(good()).collect()).contains("6 came"));
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let flags = |flags: OFlag| flags.bits();
        let strange = [
            (
                open(&at("data"), OpenOptions::new().read(true)),
                "reading and writing",
            ),
            (
                open(&at("data"), OpenOptions::new().write(true)),
                "reading and writing",
            ),
            (
                open(&at("data"), OpenOptions::new().read(true).append(true)),
                "O_APPEND",
            ),
            (
                open(
                    &at("data"),
                    OpenOptions::new().read(true).custom_flags(flags(OFlag::O_PATH)),
                ),
                "reading and writing",
            ),
            (plain(&at("fifo")), "not a plain file"),
            (plain(Path::new("/dev/null")), "not a plain file"),
            (plain(Path::new("/proc/self/oom_score_adj")), "not on a disk"),
            (pipe().unwrap().1, "reading and writing"),
            (
                std::os::unix::net::UnixStream::pair().unwrap().0.into(),
                "not a plain file",
            ),
        ];
        for (descriptor, expected) in strange {
            for place in 0..3 {
                let mut all = good();
                all[place] = descriptor.try_clone().unwrap();
                let said = why(all);
                assert!(said.contains(expected), "{said}, not: {expected}");
            }
        }
    }

    #[test]
    fn a_strangers_file_in_memory_is_not_taken() {
        let memory = || {
            let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
            nix::sys::memfd::memfd_create("x", flags).unwrap()
        };
        let stranger = Sender { uid: own().uid + 1 };
        let three = vec![memory(), memory(), memory()];
        let error = OpenedFiles::received(three, "x".into(), false, stranger).unwrap_err();
        assert!(error.to_string().contains("in memory"), "{error}");
    }

    #[test]
    fn a_journal_that_would_fill_the_memory_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let [data, journal, lock] = ["data", "journal", "lock"].map(|name| plain(&folder.path().join(name)));
        File::from(journal.try_clone().unwrap())
            .set_len(JOURNAL_MAX + 1)
            .unwrap();
        assert!(why(vec![data, journal, lock]).contains("journal has"));
    }

    fn why_not_read(descriptors: Vec<OwnedFd>, sender: Sender) -> String {
        match received_for_reading(descriptors, sender) {
            Ok(_) => "taken".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn only_one_plain_file_opened_for_reading_only_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        drop(plain(&at("data")));
        let reading = |path: &Path| open(path, OpenOptions::new().read(true));
        let special = |flag: OFlag| {
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(flag.bits());
            open(&at("data"), &mut options)
        };
        assert_eq!(why_not_read(vec![reading(&at("data"))], own()), "taken");
        assert!(why_not_read(Vec::new(), own()).contains("1 descriptor was expected, 0 came"));
        assert!(why_not_read(vec![reading(&at("data")), reading(&at("data"))], own()).contains("2 came"));
        for (descriptor, expected) in [
            (plain(&at("data")), "reading only"),
            (open(&at("data"), OpenOptions::new().write(true)), "reading only"),
            (special(OFlag::O_PATH), "reading only"),
            (special(OFlag::O_APPEND), "O_APPEND"),
            (reading(folder.path()), "not a plain file"),
            (reading(Path::new("/dev/null")), "not a plain file"),
            (reading(Path::new("/proc/self/status")), "not on a disk"),
            (pipe().unwrap().0, "not a plain file"),
        ] {
            let said = why_not_read(vec![descriptor], own());
            assert!(said.contains(expected), "{said}, not: {expected}");
        }
    }

    #[test]
    fn what_its_sender_could_not_open_is_not_read_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("private");
        drop(plain(&path));
        let set = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let reading = || vec![open(&path, OpenOptions::new().read(true))];
        let stranger = Sender { uid: own().uid + 1 };
        set(0o600);
        let said = why_not_read(reading(), stranger);
        assert!(said.contains("may not read it"), "{said}");
        assert_eq!(why_not_read(reading(), own()), "taken");
        assert_eq!(why_not_read(reading(), Sender { uid: 0 }), "taken");
        for mode in [0o604, 0o640] {
            set(mode);
            assert_eq!(why_not_read(reading(), stranger), "taken", "{mode:o}");
        }
    }
}
