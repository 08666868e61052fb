//! A part as the household sees it: single pieces that are hashed, read while the rest is fetched, compared, and taken
//! back where they were wrong.
//!
//! Invariant: what was taken back is in no claim of the journal, so that no crash brings it back.

use std::fs::File;
use std::io;

use super::{Part, digest, lock, piece_range};
use crate::store::StoreError;
use crate::store::digest::Prefix;
use crate::types::{ByteRange, RangeSet};

impl Part {
    /// The BLAKE3 hash of a piece; `None`: not all of it is written.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn leaf(&self, piece: u64) -> Result<Option<[u8; 32]>, StoreError> {
        let range = piece_range(piece, self.total.unwrap_or(0));
        let epoch = {
            let state = lock(&self.state);
            let sure =
                !range.is_empty() && state.written.contains(range) && state.suspect.overlap(range) == 0;
            if !sure {
                return Ok(None);
            }
            if let Some(known) = state.leaves.get(&piece).or_else(|| state.hashed.get(&piece)) {
                return Ok(Some(*known));
            }
            state.epoch
        };
        let hash = digest::leaf(&*self.data, range).map_err(|e| self.error("reading back", e))?;
        let mut state = lock(&self.state);
        if state.epoch != epoch {
            return Ok(None);
        }
        if !state.leaves.contains_key(&piece) {
            state.hashed.insert(piece, hash);
        }
        Ok(Some(hash))
    }

    /// Takes note that these bytes of a piece were found to be those of a piece that has this hash; says whether that is
    /// all of it. What somebody else wrote meanwhile nobody has looked at.
    pub fn is_known_to_be(&self, piece: u64, hash: [u8; 32], found: &RangeSet) -> bool {
        let range = piece_range(piece, self.total.unwrap_or(0));
        let mut state = lock(&self.state);
        let whole = state.written.contains(range) && found.contains(range);
        if whole && !state.leaves.contains_key(&piece) {
            state.hashed.insert(piece, hash);
        }
        whole
    }

    /// Whether all of a piece is written and was found to have this hash.
    pub fn is_known(&self, piece: u64, hash: [u8; 32]) -> bool {
        let state = lock(&self.state);
        let range = piece_range(piece, self.total.unwrap_or(0));
        let known = state.leaves.get(&piece).or_else(|| state.hashed.get(&piece));
        known == Some(&hash) && state.written.contains(range)
    }

    /// Fills `buffer` with what is written at `offset`.
    ///
    /// # Errors
    /// What the disk says; `UnexpectedEof` where not all of it is written.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        if !lock(&self.state).written.contains(ByteRange::new(offset, end)) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data.read_at(buffer, offset)
    }

    /// What is written of this place, where it is the same as `bytes`. `None`: it is not.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn agrees(&self, offset: u64, bytes: &[u8]) -> Result<Option<RangeSet>, StoreError> {
        let window = ByteRange::new(offset, offset.saturating_add(bytes.len() as u64));
        let written: Vec<ByteRange> = lock(&self.state).written.within(window).collect();
        let mut there = Vec::new();
        for range in &written {
            there.resize(range.len() as usize, 0);
            self.data
                .read_at(&mut there, range.start)
                .map_err(|e| self.error("reading back", e))?;
            let at = (range.start - offset) as usize;
            if bytes.get(at..at + there.len()) != Some(&there[..]) {
                return Ok(None);
            }
        }
        Ok(Some(written.into_iter().collect()))
    }

    /// Bytes that turned out to be wrong count as never written, also after a crash from now on.
    ///
    /// # Errors
    /// [`StoreError::Io`] where the journal cannot be told.
    pub fn take_back(&self, ranges: &[ByteRange]) -> Result<(), StoreError> {
        let mut syncing = lock(&self.syncing);
        lock(&self.state).take_back(ranges);
        *lock(&self.digest) = Prefix::new();
        let contents = self.contents(&syncing);
        let told = syncing.journal.rebase(&contents);
        told.map_err(|e| self.error("taking back", e))
    }

    /// The data's open file once more, for reading: it outlives the part and its lock. `None`: the system gives none.
    pub fn reader(&self) -> Option<File> {
        self.data.duplicate()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::store::{Claim, Generation, OpenOptions, Place, StoreError, Validator};
    use crate::types::PIECE;

    use super::*;

    const TOTAL: u64 = 2 * PIECE + 10;

    fn claim() -> Claim {
        let validator = Some(Validator::ETag("\"v1\"".into()));
        let total = TOTAL;
        Claim::new("u", Some(Generation { total, validator }), None)
    }

    fn open(folder: &std::path::Path) -> Part {
        let (_, files) = Place::open(&folder.join("x"), &claim(), OpenOptions::default()).unwrap();
        Part::resume_or_create(files, &claim()).unwrap().0
    }

    #[test]
    fn a_piece_has_a_hash_once_all_of_it_is_written_synced_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let part = open(folder.path());
        part.write_at(0, &vec![7; PIECE as usize - 1]).unwrap();
        assert_eq!(part.leaf(0).unwrap(), None);
        part.write_at(PIECE - 1, &[7]).unwrap();
        let expected = Some(*blake3::hash(&vec![7; PIECE as usize]).as_bytes());
        assert_eq!(part.leaf(0).unwrap(), expected);
        let _ = part.sync().unwrap();
        assert_eq!(part.leaf(0).unwrap(), expected);
        part.write_at(2 * PIECE, &[1; 10]).unwrap();
        assert_eq!(
            part.leaf(2).unwrap(),
            Some(*blake3::hash(&[1; 10]).as_bytes()),
            "the short last one"
        );
        assert_eq!((part.leaf(1).unwrap(), part.leaf(3).unwrap()), (None, None));
    }

    #[test]
    fn only_what_is_written_can_be_read_and_compared() {
        let folder = tempfile::tempdir().unwrap();
        let part = open(folder.path());
        part.write_at(10, b"abc").unwrap();
        let mut there = [0; 3];
        part.read_at(&mut there, 10).unwrap();
        assert_eq!(&there, b"abc");
        assert!(part.read_at(&mut there, 9).is_err());
        let written = part.written();
        assert_eq!(part.agrees(8, b"..abc..").unwrap(), Some(written));
        assert_eq!(part.agrees(8, b"..abd..").unwrap(), None);
        assert_eq!(
            part.agrees(20, b"nothing is there").unwrap(),
            Some(RangeSet::new())
        );
    }

    #[test]
    fn a_piece_into_which_somebody_else_wrote_meanwhile_is_not_known() {
        let folder = tempfile::tempdir().unwrap();
        let part = open(folder.path());
        let piece = vec![7; PIECE as usize];
        let hash = *blake3::hash(&piece).as_bytes();
        part.write_at(0, &[7; 10]).unwrap();
        let mut found = part.agrees(0, &piece).unwrap().unwrap();
        part.write_at(PIECE - 10, &[8; 10]).unwrap();
        part.write_at(0, &piece).unwrap();
        found.insert(ByteRange::new(0, PIECE - 10));
        assert!(!part.is_known_to_be(0, hash, &found) && !part.is_known(0, hash));
        assert_ne!(part.leaf(0).unwrap(), Some(hash));
        part.take_back(&[ByteRange::new(0, PIECE)]).unwrap();
        part.write_at(0, &piece).unwrap();
        found.insert(ByteRange::new(0, PIECE));
        assert!(part.is_known_to_be(0, hash, &found) && part.is_known(0, hash));
        part.take_back(&[ByteRange::new(0, PIECE)]).unwrap();
        assert!(!part.is_known(0, hash));
    }

    #[test]
    fn what_was_taken_back_is_not_there_after_a_crash_either_and_can_be_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let part = open(folder.path());
        part.write_at(0, &vec![7; TOTAL as usize]).unwrap();
        let _ = part.sync().unwrap();
        let bad = ByteRange::new(PIECE, 2 * PIECE);
        part.take_back(&[bad]).unwrap();
        assert_eq!(
            (part.written().len(), part.leaf(1).unwrap()),
            (TOTAL - PIECE, None)
        );
        assert!(matches!(
            part.seal(None),
            Err(StoreError::Incomplete { missing: PIECE })
        ));
        drop(part);
        let part = open(folder.path());
        assert_eq!(part.written().len(), TOTAL - PIECE);
        part.write_at(PIECE, &vec![8; PIECE as usize]).unwrap();
        let mut whole = vec![7; TOTAL as usize];
        whole[PIECE as usize..2 * PIECE as usize].fill(8);
        let digest: [u8; 32] = ring::digest::digest(&ring::digest::SHA256, &whole)
            .as_ref()
            .try_into()
            .unwrap();
        assert_eq!(part.seal(Some(digest)).unwrap(), TOTAL);
    }

    #[test]
    fn a_digest_that_had_taken_in_what_was_taken_back_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let part = open(folder.path());
        part.write_at(0, &vec![7; TOTAL as usize]).unwrap();
        let _ = part.sync().unwrap();
        let right: [u8; 32] = ring::digest::digest(&ring::digest::SHA256, &vec![8; TOTAL as usize])
            .as_ref()
            .try_into()
            .unwrap();
        assert!(matches!(part.seal(Some(right)), Err(StoreError::Checksum { .. })));
        part.take_back(&[ByteRange::new(0, TOTAL)]).unwrap();
        part.write_at(0, &vec![8; TOTAL as usize]).unwrap();
        assert_eq!(part.seal(Some(right)).unwrap(), TOTAL);
        let mut kept = part.reader().unwrap();
        drop(part);
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut kept, &mut bytes).unwrap();
        assert_eq!(bytes, vec![8; TOTAL as usize]);
        assert!(fs::read_dir(folder.path()).unwrap().count() > 0);
    }
}
