//! Hashes over what is in a part: BLAKE3 of single pieces, SHA-256 of the whole file.

use std::io;

use ring::digest::{Context, SHA256};

use super::medium::Medium;
use crate::types::{ByteRange, PIECE};

/// Read in one go: large enough that the system call costs nothing, small enough for a device with little memory.
const BLOCK: u64 = PIECE / 4;

/// The BLAKE3 hash of the range as it is in the file (mostly from the page cache).
pub(super) fn leaf(data: &dyn Medium, range: ByteRange) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    blocks(data, range, |block| {
        hasher.update(block);
    })?;
    Ok(*hasher.finalize().as_bytes())
}

/// SHA-256 of a file's beginning, as far as it has come.
#[derive(Clone)]
pub(super) struct Prefix {
    context: Context,
    at: u64,
}

impl Prefix {
    pub(super) fn new() -> Self {
        Self {
            context: Context::new(&SHA256),
            at: 0,
        }
    }

    /// How many bytes it covers.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Takes in the bytes up to `end`. After an error it covers what it did before, and perhaps some more.
    pub(super) fn advance(&mut self, data: &dyn Medium, end: u64) -> io::Result<()> {
        let Self { context, at } = self;
        blocks(data, ByteRange::new(*at, end), |block| {
            context.update(block);
            *at += block.len() as u64;
        })
    }

    /// The digest of the bytes so far.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut digest = [0; 32];
        digest.copy_from_slice(self.context.clone().finish().as_ref());
        digest
    }
}

fn blocks(data: &dyn Medium, range: ByteRange, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; range.len().min(BLOCK) as usize];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(BLOCK);
        let block = &mut buffer[..len as usize];
        data.read_at(block, at)?;
        each(block);
        at += len;
    }
    Ok(())
}
