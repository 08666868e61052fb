//! What a part needs of a file, as a trait: so that tests can make any step fail, and crash at any point.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc::off_t;
use nix::sys::statvfs::fstatvfs;

/// A file with positioned I/O.
pub(super) trait Medium: fmt::Debug + Send + Sync {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buffer` from `offset` on, or fails (`UnexpectedEof` where the file ends before).
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts or extends the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Returns once what was written and the length are on the disk.
    fn sync(&self) -> io::Result<()>;
    /// Reserves disk blocks for `total` bytes and leaves the length alone. False: this file system cannot.
    fn reserve(&self, total: u64) -> io::Result<bool>;
    /// Bytes the disk has free for us, without those this file holds already; `None`: it does not say.
    fn free(&self) -> Option<u64>;
    /// Bytes of disk blocks that the file holds.
    fn held(&self) -> io::Result<u64>;
    /// The open file once more. `None`: there is none.
    fn duplicate(&self) -> Option<File>;
}

impl Medium for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    /// Never `posix_fallocate`: where the file system cannot reserve, that writes zeros, to an SD card in the worst case.
    fn reserve(&self, total: u64) -> io::Result<bool> {
        let Ok(total) = off_t::try_from(total) else {
            return Ok(false);
        };
        if total == 0 {
            return Ok(true);
        }
        loop {
            match fallocate(self, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, total) {
                Ok(()) => return Ok(true),
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn free(&self) -> Option<u64> {
        let stat = fstatvfs(self).ok().filter(|s| s.blocks() > 0)?;
        u64::try_from(u128::from(stat.blocks_available()) * u128::from(stat.fragment_size())).ok()
    }

    fn held(&self) -> io::Result<u64> {
        // st_blocks counts 512-byte units whatever the file system's own block is.
        Ok(self.metadata()?.blocks().saturating_mul(512))
    }

    fn duplicate(&self) -> Option<File> {
        self.try_clone().ok()
    }
}
