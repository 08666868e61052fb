//! What the origin serves: bytes computed from their offset, as fast as memory, so that files need no disk.
//!
//! Invariants: the same version and offset always give the same bytes; no two pieces are equal, and a piece written at
//! a wrong offset is seen, because the block repeats at a prime length and each repetition is masked anew.

use std::sync::Arc;

use ring::digest;

use crate::types::PIECE;

/// The smallest prime above a piece: pieces then start at ever different places of the block.
const BLOCK: usize = PIECE as usize + 7;

/// Content of one version. Clones share the block.
#[derive(Clone, Debug)]
pub(super) struct Content {
    block: Arc<[u8]>,
    version: u64,
}

impl Content {
    pub(super) fn new(version: u64) -> Self {
        let words = (0..BLOCK.div_ceil(8) as u64).flat_map(|word| mix(word ^ mix(version)).to_le_bytes());
        Self {
            block: words.take(BLOCK).collect(),
            version,
        }
    }

    /// Writes the bytes at `offset` and after it.
    pub(super) fn fill(&self, offset: u64, out: &mut [u8]) {
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let place = (at % BLOCK as u64) as usize;
            let length = rest.len().min(BLOCK - place);
            let (now, later) = rest.split_at_mut(length);
            let mask = mix(self.version ^ mix(at / BLOCK as u64)).rotate_right(8 * (place % 8) as u32);
            masked_copy(&self.block[place..place + length], mask, now);
            at += length as u64;
            rest = later;
        }
    }

    /// The SHA-256 of the first `size` bytes. Blocking: about a second for each GiB.
    pub(super) fn sha256(&self, size: u64) -> [u8; 32] {
        let mut context = digest::Context::new(&digest::SHA256);
        let mut buffer = vec![0; 256 * 1024];
        let mut at = 0;
        while at < size {
            let length = (size - at).min(buffer.len() as u64) as usize;
            self.fill(at, &mut buffer[..length]);
            context.update(&buffer[..length]);
            at += length as u64;
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        hash
    }
}

/// Copies with `mask` laid over; its first byte belongs to the first byte of `from`.
fn masked_copy(from: &[u8], mask: u64, to: &mut [u8]) {
    let mut sources = from.chunks_exact(8);
    let mut targets = to.chunks_exact_mut(8);
    for (to, from) in targets.by_ref().zip(sources.by_ref()) {
        let mut word = [0; 8];
        word.copy_from_slice(from);
        to.copy_from_slice(&(u64::from_le_bytes(word) ^ mask).to_le_bytes());
    }
    let rest = targets.into_remainder().iter_mut().zip(sources.remainder());
    for ((to, from), mask) in rest.zip(mask.to_le_bytes()) {
        *to = from ^ mask;
    }
}

/// SplitMix64's finaliser: neighbouring numbers give unrelated ones.
fn mix(number: u64) -> u64 {
    let mut n = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn at(content: &Content, offset: u64, length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        content.fill(offset, &mut out);
        out
    }

    #[test]
    fn the_same_offset_gives_the_same_bytes_however_it_is_cut() {
        let content = Content::new(1);
        let whole = at(&content, 0, 3 * BLOCK);
        for (offset, length) in [
            (0, 1),
            (7, 13),
            (BLOCK - 3, 11),
            (BLOCK, 64),
            (2 * BLOCK - 1, 2),
            (1_048_576, BLOCK),
        ] {
            assert_eq!(
                at(&content, offset as u64, length),
                whole[offset..offset + length],
                "{length} at {offset}"
            );
        }
    }

    #[test]
    fn no_two_pieces_are_equal() {
        let content = Content::new(1);
        let starts: HashSet<Vec<u8>> = (0..4096).map(|piece| at(&content, piece * PIECE, 16)).collect();
        assert_eq!(starts.len(), 4096);
    }

    #[test]
    fn bytes_one_block_away_differ() {
        let content = Content::new(1);
        assert_ne!(at(&content, 5, 100), at(&content, 5 + BLOCK as u64, 100));
    }

    #[test]
    fn another_version_is_other_content_with_another_hash() {
        let (one, two) = (Content::new(1), Content::new(2));
        assert_ne!(at(&one, 0, 100), at(&two, 0, 100));
        assert_ne!(one.sha256(1000), two.sha256(1000));
        assert_eq!(one.sha256(1000), Content::new(1).sha256(1000));
    }

    #[test]
    fn the_hash_is_that_of_the_bytes() {
        let content = Content::new(9);
        let bytes = at(&content, 0, 300_000);
        assert_eq!(
            content.sha256(300_000),
            digest::digest(&digest::SHA256, &bytes).as_ref()
        );
    }
}
