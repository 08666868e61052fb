//! A disk for tests: fails where told to, loses power at any step, and then keeps any subset of what was not synced.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;

use super::lock;
use super::medium::Medium;

/// What a power cut keeps or loses as one.
const SECTOR: usize = 512;

/// The machine: counts the steps of all its files, and stops at one of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine(Arc<Mutex<Faults>>);

#[derive(Debug, Default)]
struct Faults {
    step: u64,
    power_off_at: Option<u64>,
    /// The step that fails, and how.
    fail: Vec<(u64, Errno)>,
    /// The sync of a file of this name that fails next.
    fail_sync: Vec<(&'static str, Errno)>,
    free: Option<u64>,
    cannot_reserve: Option<Errno>,
    hold: Option<(Sender<()>, Receiver<()>)>,
}

/// One file on it.
#[derive(Clone, Debug)]
pub(super) struct SimulatedFile {
    name: &'static str,
    machine: Machine,
    bytes: Arc<Mutex<Bytes>>,
}

#[derive(Clone, Debug, Default)]
struct Bytes {
    /// What programs see.
    cached: Vec<u8>,
    /// What is on the platter for sure.
    durable: Vec<u8>,
    /// What may or may not be there, in order.
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

impl Machine {
    pub(super) fn file(&self, name: &'static str) -> SimulatedFile {
        SimulatedFile {
            name,
            machine: self.clone(),
            bytes: Arc::default(),
        }
    }

    /// Everything fails from this step on (the first is 1).
    pub(super) fn power_off_at(&self, step: u64) {
        lock(&self.0).power_off_at = Some(step);
    }

    pub(super) fn fail_sync(&self, file: &'static str, errno: Errno) {
        lock(&self.0).fail_sync.push((file, errno));
    }

    pub(super) fn fail_step(&self, step: u64, errno: Errno) {
        lock(&self.0).fail.push((step, errno));
    }

    /// The next write tells the first that its bytes are in the cache, and returns when the second says so.
    pub(super) fn hold_next_write(&self) -> (Receiver<()>, Sender<()>) {
        let (reached, wait) = channel();
        let (go, held) = channel();
        lock(&self.0).hold = Some((reached, held));
        (wait, go)
    }

    pub(super) fn set_free(&self, free: u64) {
        lock(&self.0).free = Some(free);
    }

    pub(super) fn cannot_reserve(&self, errno: Errno) {
        lock(&self.0).cannot_reserve = Some(errno);
    }

    pub(super) fn steps(&self) -> u64 {
        lock(&self.0).step
    }

    pub(super) fn is_off(&self) -> bool {
        let faults = lock(&self.0);
        faults.power_off_at.is_some_and(|at| faults.step >= at)
    }

    fn step(&self) -> io::Result<()> {
        let mut faults = lock(&self.0);
        faults.step += 1;
        let step = faults.step;
        if faults.power_off_at.is_some_and(|at| step >= at) {
            return Err(io::Error::other("the power is off"));
        }
        match faults.fail.iter().find(|(at, _)| *at == step) {
            Some(&(_, errno)) => Err(errno.into()),
            None => Ok(()),
        }
    }
}

impl SimulatedFile {
    /// The file on another machine (or after the next boot) after the power was cut: of each sector not synced, `keep`
    /// says whether it made it.
    pub(super) fn after_power_cut(&self, machine: &Machine, mut keep: impl FnMut() -> bool) -> Self {
        let bytes = lock(&self.bytes);
        let mut image = bytes.durable.clone();
        for change in &bytes.pending {
            match change {
                Change::Write(offset, data) => {
                    for (i, sector) in data.chunks(SECTOR).enumerate() {
                        if keep() {
                            put(&mut image, *offset as usize + i * SECTOR, sector);
                        }
                    }
                }
                Change::Length(len) => {
                    if keep() {
                        image.resize(*len as usize, 0);
                    }
                }
            }
        }
        self.with(machine, image)
    }

    /// The file after only the process died.
    pub(super) fn after_process_death(&self, machine: &Machine) -> Self {
        let bytes = lock(&self.bytes).clone();
        Self {
            name: self.name,
            machine: machine.clone(),
            bytes: Arc::new(Mutex::new(bytes)),
        }
    }

    /// A file of the same name with these bytes, all durable.
    pub(super) fn with(&self, machine: &Machine, image: Vec<u8>) -> Self {
        let bytes = Bytes {
            cached: image.clone(),
            durable: image,
            pending: Vec::new(),
        };
        Self {
            name: self.name,
            machine: machine.clone(),
            bytes: Arc::new(Mutex::new(bytes)),
        }
    }

    pub(super) fn cached(&self) -> Vec<u8> {
        lock(&self.bytes).cached.clone()
    }

    /// What a power cut at this moment keeps at least.
    pub(super) fn durable(&self) -> Vec<u8> {
        lock(&self.bytes).durable.clone()
    }
}

impl Medium for SimulatedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.bytes).cached.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = lock(&self.bytes);
        let start = offset as usize;
        let found = bytes.cached.get(start..start + buffer.len());
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let done = self.machine.step();
        // A write that fails may have written some of it.
        let data = if done.is_ok() {
            data
        } else {
            &data[..data.len() / 2]
        };
        let mut bytes = lock(&self.bytes);
        put(&mut bytes.cached, offset as usize, data);
        bytes.pending.push(Change::Write(offset, data.to_vec()));
        drop(bytes);
        let hold = lock(&self.machine.0).hold.take();
        if let Some((reached, held)) = hold {
            reached.send(()).map_err(io::Error::other)?;
            held.recv().map_err(io::Error::other)?;
        }
        done
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.machine.step()?;
        let mut bytes = lock(&self.bytes);
        bytes.cached.resize(len as usize, 0);
        bytes.pending.push(Change::Length(len));
        Ok(())
    }

    /// As Linux does it: a failed sync forgets what it could not write, and the next one succeeds without it.
    fn sync(&self) -> io::Result<()> {
        self.machine.step()?;
        let mut faults = lock(&self.machine.0);
        let mut bytes = lock(&self.bytes);
        let pending = std::mem::take(&mut bytes.pending);
        if let Some(at) = faults.fail_sync.iter().position(|(name, _)| *name == self.name) {
            return Err(faults.fail_sync.remove(at).1.into());
        }
        for change in pending {
            match change {
                Change::Write(offset, data) => put(&mut bytes.durable, offset as usize, &data),
                Change::Length(len) => bytes.durable.resize(len as usize, 0),
            }
        }
        Ok(())
    }

    fn reserve(&self, _: u64) -> io::Result<bool> {
        match lock(&self.machine.0).cannot_reserve {
            None => Ok(true),
            Some(Errno::EOPNOTSUPP) => Ok(false),
            Some(errno) => Err(errno.into()),
        }
    }

    fn free(&self) -> Option<u64> {
        lock(&self.machine.0).free
    }

    fn held(&self) -> io::Result<u64> {
        self.len()
    }

    fn duplicate(&self) -> Option<std::fs::File> {
        None
    }
}

fn put(image: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if image.len() < offset + data.len() {
        image.resize(offset + data.len(), 0);
    }
    image[offset..offset + data.len()].copy_from_slice(data);
}
