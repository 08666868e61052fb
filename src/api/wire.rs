//! Lines of JSON over a Unix socket, with descriptors beside them (`SCM_RIGHTS`).
//!
//! Descriptors come with bytes, so nothing may read ahead past the one that reads them: all reading is done here.
//! Invariants: a line is bounded, descriptors that come are closed on exec and on every error, more than a line may
//! carry end the connection, and no write waits for long.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// No line is longer; headers are most of it.
const MAX_LINE: usize = 256 * 1024;
/// How much is read at once: most lines.
const CHUNK: usize = 4096;
/// A file is passed as its data, its journal and its lock.
const MAX_DESCRIPTORS: usize = 3;
/// What Linux lets one message carry (`SCM_MAX_FD`): all of them are received, so that those that are too many can be
/// closed instead of staying open unknown.
const KERNEL_MAX: usize = 253;
/// Whoever does not read is not waited for.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// Length (a word), level and type.
const HEADER: usize = size_of::<usize>() + 2 * size_of::<libc::c_int>();

/// A connection, of which one side may also send descriptors.
#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
    /// What was read and is not yet a line that was taken.
    buffer: Vec<u8>,
    /// So much of it has no end of a line.
    scanned: usize,
    /// Descriptors that came, and how much of the buffer was there then: they belong to the line of its last byte.
    descriptors: VecDeque<(usize, OwnedFd)>,
    control: Vec<u8>,
}

/// A line and the descriptors that came with it.
#[derive(Debug)]
pub(super) struct Line {
    text: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Line {
    /// What it says.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.text)
    }
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            scanned: 0,
            descriptors: VecDeque::new(),
            // Whole words, as the kernel fills it.
            control: vec![0; (HEADER + KERNEL_MAX * size_of::<RawFd>()).next_multiple_of(HEADER)],
        }
    }

    /// The next line; `None` when the other side has hung up. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// Where the connection breaks, or the other side sends too much.
    pub(super) async fn line(&mut self) -> io::Result<Option<Line>> {
        loop {
            let fresh = self.buffer[self.scanned..].iter().position(|&b| b == b'\n');
            if let Some(at) = fresh {
                return Ok(Some(self.take(self.scanned + at + 1)));
            }
            self.scanned = self.buffer.len();
            if self.scanned >= MAX_LINE {
                return Err(too_much("a line is too long: 256 KiB are allowed"));
            }
            if self.receive().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Says something.
    ///
    /// # Errors
    /// Where the connection breaks, or the other side does not read.
    pub(super) async fn say(&self, what: &impl Serialize) -> io::Result<()> {
        self.pass(what, &[]).await
    }

    /// Says something and passes descriptors with it; both sides then have the same open files.
    ///
    /// # Errors
    /// As [`say`](Self::say).
    pub(super) async fn pass(&self, what: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        within(WRITE_WITHIN, self.send(&line, descriptors)).await
    }

    fn take(&mut self, len: usize) -> Line {
        let rest = self.buffer.split_off(len);
        let text = std::mem::replace(&mut self.buffer, rest);
        self.scanned = 0;
        let mut descriptors = Vec::new();
        while let Some((_, descriptor)) = self.descriptors.pop_front_if(|(at, _)| *at <= len) {
            descriptors.push(descriptor);
        }
        for (at, _) in &mut self.descriptors {
            *at -= len;
        }
        Line { text, descriptors }
    }

    async fn receive(&mut self) -> io::Result<usize> {
        let mut chunk = [0; CHUNK];
        let (stream, control) = (&self.stream, &mut self.control);
        let receive = || {
            control.fill(0);
            let mut slices = [IoSliceMut::new(&mut chunk)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
            let got = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut slices, Some(&mut control[..]), flags)?;
            Ok(got.bytes)
        };
        let len = stream.async_io(Interest::READABLE, receive).await?;
        let came = adopt(&self.control);
        self.buffer.extend_from_slice(&chunk[..len]);
        let at = self.buffer.len();
        self.descriptors.extend(came.into_iter().map(|d| (at, d)));
        if self.descriptors.len() > MAX_DESCRIPTORS {
            self.descriptors.clear();
            return Err(too_much("too many descriptors: a line carries 3 at most"));
        }
        Ok(len)
    }

    async fn send(&self, mut line: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let mut rights = (!raw.is_empty()).then_some(ControlMessage::ScmRights(&raw));
        while !line.is_empty() {
            let send = || {
                let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
                let slices = [IoSlice::new(line)];
                let sent = sendmsg::<()>(self.stream.as_raw_fd(), &slices, rights.as_slice(), flags, None)?;
                Ok(sent)
            };
            let sent = self.stream.async_io(Interest::WRITABLE, send).await?;
            // They went with the first byte.
            rights = None;
            line = line.get(sent..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Makes the descriptors in a message's control data ours. Read here and not by `nix`, which gives none where the kernel
/// had to leave some out (`MSG_CTRUNC`): those that came would stay open for ever.
fn adopt(mut control: &[u8]) -> Vec<OwnedFd> {
    let mut adopted = Vec::new();
    while let Some((header, _)) = control.split_at_checked(HEADER) {
        let (len, kind) = header.split_at(size_of::<usize>());
        let len = len.try_into().map_or(0, usize::from_ne_bytes);
        let Some(data) = control.get(HEADER..len) else {
            break;
        };
        if kind == [libc::SOL_SOCKET.to_ne_bytes(), libc::SCM_RIGHTS.to_ne_bytes()].concat() {
            for number in data.as_chunks().0 {
                let number = RawFd::from_ne_bytes(*number);
                #[expect(unsafe_code, reason = "the kernel passes descriptors as numbers")]
                // SAFETY: the kernel has just installed it for this process in answer to `recvmsg`; the control data was
                // zeroed before and is read once, so nobody else has it.
                adopted.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
        let next = len.next_multiple_of(size_of::<usize>());
        control = control.get(next..).unwrap_or_default();
    }
    adopted
}

fn too_much(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Does `work`, or fails where it takes longer.
pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn pair() -> (Wire, Wire) {
        let (a, b) = UnixStream::pair().unwrap();
        (Wire::new(a), Wire::new(b))
    }

    fn open_descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[tokio::test]
    async fn a_descriptor_comes_with_its_line_and_not_with_the_one_before() {
        let (near, mut far) = pair();
        let file = tempfile::tempfile().unwrap();
        near.say(&"plain").await.unwrap();
        near.pass(&"carrying", &[file.as_fd()]).await.unwrap();
        near.say(&"after").await.unwrap();
        for (text, count) in [("plain", 0), ("carrying", 1), ("after", 0)] {
            let line = far.line().await.unwrap().unwrap();
            assert_eq!(line.parse::<String>().unwrap(), text);
            assert_eq!(line.descriptors.len(), count, "{text}");
            for descriptor in line.descriptors {
                File::from(descriptor).write_at(b"through", 0).unwrap();
            }
        }
        let mut found = [0; 7];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(&found, b"through", "it is the same file");
        drop(near);
        assert!(far.line().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_long_line_arrives_whole_with_its_descriptors_and_a_longer_one_does_not() {
        let (near, mut far) = pair();
        let file = tempfile::tempfile().unwrap();
        let long = "x".repeat(MAX_LINE - 10);
        let descriptors = [file.as_fd(), file.as_fd(), file.as_fd()];
        let (sent, line) = tokio::join!(near.pass(&long, &descriptors), far.line());
        sent.unwrap();
        let line = line.unwrap().unwrap();
        assert_eq!(line.descriptors.len(), 3);
        assert_eq!(line.parse::<String>().unwrap(), long);
        let longer = "x".repeat(MAX_LINE + CHUNK);
        let (_, line) = tokio::join!(near.say(&longer), async {
            let line = far.line().await;
            drop(far);
            line
        });
        assert!(line.unwrap_err().to_string().contains("too long"));
    }

    #[tokio::test]
    async fn too_many_descriptors_end_the_connection_and_none_stays_open() {
        let file = tempfile::tempfile().unwrap();
        let before = open_descriptors();
        for count in [MAX_DESCRIPTORS + 1, MAX_DESCRIPTORS + 2, KERNEL_MAX] {
            let (near, mut far) = pair();
            near.pass(&"x", &vec![file.as_fd(); count]).await.unwrap();
            let error = far.line().await.unwrap_err();
            assert!(error.to_string().contains("too many descriptors"), "{error}");
        }
        // Without a line's end, a few at a time: they must not add up.
        let (near, mut far) = pair();
        for _ in 0..2 {
            near.send(b"x", &[file.as_fd(), file.as_fd()]).await.unwrap();
        }
        assert!(far.line().await.is_err());
        drop((near, far));
        // Other tests of this process open and close files too: what is left over is what counts.
        let limit = std::time::Instant::now() + Duration::from_secs(10);
        while open_descriptors() > before + 20 {
            assert!(std::time::Instant::now() < limit, "descriptors stay open");
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn control_data_that_makes_no_sense_yields_nothing() {
        for control in [&[][..], &[0; HEADER], &[0xff; 64], &[1; HEADER + 3]] {
            assert!(adopt(control).is_empty());
        }
    }
}
