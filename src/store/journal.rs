//! The resume journal: which bytes of the part are on the disk, and the hashes of its complete pieces.
//!
//! The file is a sequence of frames, each with a CRC32C. A *base* holds everything known when it was written; it starts
//! at a multiple of [`ALIGN`]. *Records* follow their base and add to it; each names the base by its random epoch and
//! has the next sequence number, so that left-over bytes never pass for a continuation. The newest valid base with the
//! records that follow it without a gap is the journal; anything else in the file is ignored.
//!
//! A new base (at opening, and when the records outgrow it) goes to the end first and only then to the front, with a
//! sync after each, and then the file is cut: at every moment one whole base is on the disk. So the file stays one
//! inode, which its lock and descriptors passed between processes need, and is bounded by [`COMPACT`] and by
//! twice its base. A temp file and a rename would lose the lock.
//!
//! Invariants: reading never panics and never yields a byte that no valid frame names; a failed write is followed by a
//! new base, never by a record behind a gap.

use std::collections::BTreeMap;
use std::io;

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::Claim;
use super::medium::Medium;
use crate::types::{ByteRange, PIECE, RangeSet};

/// A boot of this machine; another one, or an unknown one, means that the power may have failed in between.
pub(super) type Boot = Option<[u8; 16]>;
/// A piece's number with its BLAKE3 hash.
pub(super) type Leaf = (u64, [u8; 32]);

/// Bases start at multiples of a disk page, so that they can be found where the front is torn. Text from the origin
/// (the validator) lies wholly within a base's first page: it can never be taken for a base.
const ALIGN: usize = 4096;
/// Records may grow to this, or to the size of their base where that is more, before a new base replaces them: small
/// beside any file worth resuming, and weeks of records at one in three seconds are rewritten only some ten times a day.
const COMPACT: u64 = 1 << 20;
/// A longer journal is not read: that is several TiB of file, or damage.
pub(super) const MAX_LEN: u64 = 512 << 20;
/// The last byte is the version of the format.
const BASE: [u8; 4] = *b"TRB\x01";
const RECORD: [u8; 4] = *b"TRR\x01";
/// Magic, payload length, epoch, sequence number, CRC32C of all that and the payload.
const HEADER: usize = 4 + 4 + 8 + 8 + 4;

/// Why a journal is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    #[error("the journal is empty")]
    Empty,
    #[error("the journal was written by another version of tributary")]
    Version,
    #[error("the journal is damaged")]
    Torn,
}

/// What a journal says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) claim: Claim,
    /// The boot in which it was written.
    pub(super) boot: Boot,
    /// Bytes that were synced.
    pub(super) durable: RangeSet,
    /// Those of them that were synced before an unclean boot and not looked at since.
    pub(super) suspect: RangeSet,
    /// Hashes of complete pieces.
    pub(super) leaves: BTreeMap<u64, [u8; 32]>,
}

impl Contents {
    pub(super) fn new(claim: Claim, boot: Boot) -> Self {
        Self {
            claim,
            boot,
            durable: RangeSet::new(),
            suspect: RangeSet::new(),
            leaves: BTreeMap::new(),
        }
    }

    /// Takes a whole record, or nothing where any part of it is impossible.
    fn apply(&mut self, delta: &Delta) -> Option<()> {
        let total = self.claim.total()?;
        let spans = ranges(&delta.spans, total)?;
        let pieces = total.div_ceil(PIECE);
        if delta.leaves.iter().any(|(piece, _)| *piece >= pieces) {
            return None;
        }
        for span in spans {
            self.durable.insert(span);
            self.suspect.remove(span);
        }
        self.leaves.extend(delta.leaves.iter().copied());
        Some(())
    }
}

/// The bytes of a piece.
pub(super) fn piece_range(piece: u64, total: u64) -> ByteRange {
    let start = piece.saturating_mul(PIECE);
    ByteRange::new(start, start.saturating_add(PIECE).min(total))
}

/// (start, length) pairs, checked on reading.
type Spans = Vec<(u64, u64)>;

#[derive(Serialize, Deserialize)]
struct Delta {
    spans: Spans,
    leaves: Vec<Leaf>,
}

#[derive(Serialize, Deserialize)]
struct Base {
    claim: Claim,
    boot: Boot,
    /// `spans` has the suspect ones too.
    known: Delta,
    suspect: Spans,
}

/// A journal open for appending.
#[derive(Debug)]
pub(super) struct Journal {
    file: Box<dyn Medium>,
    epoch: u64,
    /// Of the last frame written.
    seq: u64,
    /// Where the next record goes.
    end: u64,
    /// Length of the base that the records follow.
    base: u64,
    /// Length of the records since.
    records: u64,
    /// A write failed: what is behind the last good frame is unknown, so a new base must come first.
    broken: bool,
}

/// Reads what is there, unless it is longer than `max`.
pub(super) fn load(file: &dyn Medium, max: u64) -> io::Result<Result<Contents, Damage>> {
    Ok(read(file, max)?
        .and_then(|bytes| parse(&bytes))
        .map(|(contents, _)| contents))
}

impl Journal {
    /// Starts a journal that says `contents`, in place of whatever the file holds; that stays valid until this one is.
    pub(super) fn start(file: Box<dyn Medium>, max: u64, contents: &Contents) -> io::Result<Self> {
        let seq = match read(&*file, max)? {
            Ok(bytes) => parse(&bytes).map_or(0, |(_, seq)| seq),
            Err(_) => 0,
        };
        let mut journal = Self {
            file,
            epoch: 0,
            seq,
            end: 0,
            base: 0,
            records: 0,
            broken: true,
        };
        journal.rebase(contents)?;
        Ok(journal)
    }

    /// Whether the next [`append`](Self::append) should be a [`rebase`](Self::rebase).
    pub(super) fn wants_base(&self) -> bool {
        self.broken || self.records > COMPACT.max(self.base)
    }

    /// Adds a record and returns once it is on the disk.
    pub(super) fn append(&mut self, spans: &[ByteRange], leaves: &[Leaf]) -> io::Result<()> {
        let delta = Delta {
            spans: pairs(spans.iter().copied()),
            leaves: leaves.to_vec(),
        };
        self.seq += 1;
        let frame = frame(RECORD, self.epoch, self.seq, &encode(&delta)?)?;
        self.broken = true;
        self.file.write_at(&frame, self.end)?;
        self.file.sync()?;
        self.broken = false;
        self.end += frame.len() as u64;
        self.records += frame.len() as u64;
        Ok(())
    }

    /// Writes everything anew and drops what was there before.
    pub(super) fn rebase(&mut self, contents: &Contents) -> io::Result<()> {
        self.broken = true;
        let payload = encode(&Base {
            claim: contents.claim.clone(),
            boot: contents.boot,
            known: Delta {
                spans: pairs(contents.durable.iter()),
                leaves: contents
                    .leaves
                    .iter()
                    .map(|(&piece, &hash)| (piece, hash))
                    .collect(),
            },
            suspect: pairs(contents.suspect.iter()),
        })?;
        let behind = self.file.len()?.next_multiple_of(ALIGN as u64);
        let len = self.put_base(&payload, behind)?;
        if behind >= len && behind > 0 {
            self.put_base(&payload, 0)?;
            self.file.set_len(self.end)?;
        }
        self.base = len;
        self.records = 0;
        self.broken = false;
        Ok(())
    }

    fn put_base(&mut self, payload: &[u8], at: u64) -> io::Result<u64> {
        self.seq += 1;
        self.epoch = random()?;
        let frame = frame(BASE, self.epoch, self.seq, payload)?;
        self.file.write_at(&frame, at)?;
        self.file.sync()?;
        self.end = at + frame.len() as u64;
        Ok(frame.len() as u64)
    }
}

/// Whatever a crash left: the newest base and what follows it, with the last sequence number.
fn parse(bytes: &[u8]) -> Result<(Contents, u64), Damage> {
    let newest = (0..bytes.len())
        .step_by(ALIGN)
        .filter_map(|at| {
            let frame = Frame::read(&bytes[at..], BASE)?;
            Some((frame.seq, at, frame))
        })
        .max_by_key(|(seq, ..)| *seq);
    let Some((mut seq, at, base)) = newest else {
        return Err(match bytes {
            [] => Damage::Empty,
            [b'T', b'R', b'B', version, ..] if *version != BASE[3] => Damage::Version,
            _ => Damage::Torn,
        });
    };
    let mut contents = base.contents().ok_or(Damage::Torn)?;
    let mut at = at + HEADER + base.payload.len();
    while let Some(next) = bytes.get(at..).and_then(|rest| Frame::read(rest, RECORD)) {
        let follows = next.epoch == base.epoch && Some(next.seq) == seq.checked_add(1);
        let delta = postcard::from_bytes::<Delta>(next.payload)
            .ok()
            .filter(|_| follows);
        if delta.and_then(|delta| contents.apply(&delta)).is_none() {
            break;
        }
        seq = next.seq;
        at += HEADER + next.payload.len();
    }
    // A leaf speaks for a whole piece only.
    let Contents {
        leaves,
        durable,
        claim,
        ..
    } = &mut contents;
    let total = claim.total().unwrap_or(0);
    leaves.retain(|&piece, _| durable.contains(piece_range(piece, total)));
    Ok((contents, seq))
}

struct Frame<'a> {
    epoch: u64,
    seq: u64,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    fn read(bytes: &'a [u8], magic: [u8; 4]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
        if header[..4] != magic {
            return None;
        }
        let len = u32::from_le_bytes(header[4..8].try_into().ok()?);
        let payload = rest.get(..usize::try_from(len).ok()?)?;
        let crc = u32::from_le_bytes(header[24..].try_into().ok()?);
        if crc32c::crc32c_append(crc32c::crc32c(&header[..24]), payload) != crc {
            return None;
        }
        Some(Self {
            epoch: u64::from_le_bytes(header[8..16].try_into().ok()?),
            seq: u64::from_le_bytes(header[16..24].try_into().ok()?),
            payload,
        })
    }

    fn contents(&self) -> Option<Contents> {
        let base: Base = postcard::from_bytes(self.payload).ok()?;
        let mut contents = Contents::new(base.claim, base.boot);
        if !base.known.spans.is_empty() || !base.known.leaves.is_empty() {
            contents.apply(&base.known)?;
        }
        let total = contents.claim.total().unwrap_or(0);
        for range in ranges(&base.suspect, total)? {
            if !contents.durable.contains(range) {
                return None;
            }
            contents.suspect.insert(range);
        }
        Some(contents)
    }
}

fn frame(magic: [u8; 4], epoch: u64, seq: u64, payload: &[u8]) -> io::Result<Vec<u8>> {
    let len = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.extend(magic);
    frame.extend(len.to_le_bytes());
    frame.extend(epoch.to_le_bytes());
    frame.extend(seq.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&frame), payload);
    frame.extend(crc.to_le_bytes());
    frame.extend(payload);
    Ok(frame)
}

fn read(file: &dyn Medium, max: u64) -> io::Result<Result<Vec<u8>, Damage>> {
    let len = file.len()?;
    if len > max {
        return Ok(Err(Damage::Torn));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_at(&mut bytes, 0)?;
    Ok(Ok(bytes))
}

fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(io::Error::other)
}

fn pairs(ranges: impl Iterator<Item = ByteRange>) -> Spans {
    ranges.map(|r| (r.start, r.len())).collect()
}

/// The ranges, unless one is empty or ends after `total`.
fn ranges(spans: &Spans, total: u64) -> Option<Vec<ByteRange>> {
    let range = |&(start, len): &(u64, u64)| {
        let end = start.checked_add(len)?;
        (len > 0 && end <= total).then_some(ByteRange::new(start, end))
    };
    spans.iter().map(range).collect()
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the system gives no random numbers"))?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::simulated::{Machine, SimulatedFile};
    use crate::store::{Generation, Validator};

    const TOTAL: u64 = 100 * PIECE + 5;

    fn claim() -> Claim {
        let validator = Some(Validator::ETag("\"v1\"".to_owned()));
        Claim::new(
            "https://origin.example/a",
            Some(Generation {
                total: TOTAL,
                validator,
            }),
            None,
        )
    }

    fn empty() -> Contents {
        Contents::new(claim(), Some([7; 16]))
    }

    fn start(file: &SimulatedFile) -> Journal {
        Journal::start(Box::new(file.clone()), MAX_LEN, &empty()).unwrap()
    }

    fn contents(file: &SimulatedFile) -> Result<Contents, Damage> {
        load(file, MAX_LEN).unwrap()
    }

    /// A journal with these spans, one record each, and everything that it says.
    fn written(spans: &[(u64, u64)]) -> (Vec<u8>, Contents) {
        let file = Machine::default().file("journal");
        let mut journal = start(&file);
        let mut all = empty();
        for &(start, len) in spans {
            let span = ByteRange::new(start, start + len);
            let leaf = (start / PIECE, [start as u8; 32]);
            let whole = span.contains(piece_range(leaf.0, TOTAL));
            let leaves = if whole { vec![leaf] } else { Vec::new() };
            journal.append(&[span], &leaves).unwrap();
            all.durable.insert(span);
            if whole {
                all.leaves.insert(leaf.0, leaf.1);
            }
        }
        (file.cached(), all)
    }

    fn spans() -> impl Strategy<Value = Vec<(u64, u64)>> {
        let span = prop_oneof![
            (0..TOTAL - 1000, 1u64..1000),
            (0u64..100).prop_map(|piece| (piece * PIECE, PIECE)),
        ];
        prop::collection::vec(span, 0..40)
    }

    /// Whether `found` claims nothing that was not synced.
    fn is_part_of(found: &Contents, all: &Contents) -> bool {
        found.claim == all.claim
            && found.durable.iter().all(|r| all.durable.contains(r))
            && found
                .leaves
                .iter()
                .all(|(piece, hash)| all.leaves.get(piece) == Some(hash))
    }

    proptest! {
        #[test]
        fn a_journal_says_what_was_recorded(spans in spans()) {
            let (bytes, all) = written(&spans);
            prop_assert_eq!(parse(&bytes).map(|(found, _)| found), Ok(all));
        }

        #[test]
        fn a_cut_journal_says_a_part_of_what_was_synced(spans in spans(), cut in 0.0..1.0f64) {
            let (bytes, all) = written(&spans);
            let cut = (bytes.len() as f64 * cut) as usize;
            if let Ok((found, _)) = parse(&bytes[..cut]) {
                prop_assert!(is_part_of(&found, &all));
            }
        }

        #[test]
        fn a_journal_with_flipped_bytes_says_nothing_that_was_not_synced(
            spans in spans(),
            flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..8),
        ) {
            let (mut bytes, all) = written(&spans);
            for (at, flip) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
            }
            if let Ok((found, _)) = parse(&bytes) {
                prop_assert!(is_part_of(&found, &all));
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..6000), base in any::<bool>()) {
            let _ = parse(&bytes);
            if let Ok(framed) = frame(if base { BASE } else { RECORD }, 1, 1, &bytes) {
                let _ = parse(&framed);
                bytes.splice(0..0, framed);
                let _ = parse(&bytes);
            }
        }

        /// Frames whose checksum is right and whose content is impossible.
        #[test]
        fn impossible_records_end_the_journal(start in any::<u64>(), len in any::<u64>(), piece in 101u64..) {
            let (bytes, all) = written(&[(0, 10)]);
            let head = Frame::read(&bytes, BASE).map(|f| f.epoch).unwrap();
            let impossible = start.checked_add(len).is_none_or(|end| end > TOTAL) || len == 0;
            for delta in [
                Delta { spans: vec![(20, 10), (start, len)], leaves: vec![] },
                Delta { spans: vec![(20, 10)], leaves: vec![(piece, [0; 32])] },
            ] {
                let record = frame(RECORD, head, 3, &encode(&delta).unwrap()).unwrap();
                let bytes = [bytes.clone(), record].concat();
                let (found, _) = parse(&bytes).unwrap();
                if impossible || !delta.leaves.is_empty() {
                    prop_assert_eq!(found, all.clone());
                }
            }
        }

        /// Whatever the power cut leaves of a journal while it is written anew, the old or the new one is whole.
        #[test]
        fn a_power_cut_while_writing_a_new_base_loses_nothing(
            spans in spans(),
            steps in 1u64..8,
            seed in any::<u64>(),
        ) {
            let (bytes, mut all) = written(&spans);
            let machine = Machine::default();
            let file = machine.file("journal").with(&machine, bytes);
            machine.power_off_at(steps);
            all.boot = Some([9; 16]);
            let _ = Journal::start(Box::new(file.clone()), MAX_LEN, &all);
            let mut random = seed;
            let after = file.after_power_cut(&Machine::default(), || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                random >> 63 == 0
            });
            let found = contents(&after).unwrap();
            prop_assert_eq!(&found.durable, &all.durable);
            prop_assert_eq!(&found.leaves, &all.leaves);
        }
    }

    #[test]
    fn records_of_an_older_journal_are_never_read_behind_a_new_base() {
        let (old, _) = written(&[(0, 10), (20, 10), (40, 10)]);
        let (new, all) = written(&[]);
        let mut bytes = old;
        bytes[..new.len()].copy_from_slice(&new);
        assert_eq!(parse(&bytes).map(|(c, _)| c), Ok(all));
    }

    #[test]
    fn a_journal_with_a_record_missing_ends_before_the_gap() {
        let (mut bytes, _) = written(&[(0, 10), (20, 10), (40, 10)]);
        let (short, all) = written(&[(0, 10)]);
        let record = (bytes.len() - written(&[]).0.len()) / 3;
        bytes.drain(short.len()..short.len() + record);
        assert_eq!(parse(&bytes).map(|(c, _)| c), Ok(all));
    }

    #[test]
    fn a_long_journal_is_written_anew_and_stays_small() {
        let file = Machine::default().file("journal");
        let mut journal = start(&file);
        let mut all = empty();
        let mut longest = 0;
        for i in 0..60_000 {
            let span = ByteRange::new(i * 100, i * 100 + 100);
            all.durable.insert(span);
            if journal.wants_base() {
                journal.rebase(&all).unwrap();
            } else {
                journal.append(&[span], &[]).unwrap();
            }
            longest = longest.max(file.len().unwrap());
        }
        assert_eq!(contents(&file).unwrap().durable, all.durable);
        assert!(longest < 2 * COMPACT, "grew to {longest}");
        assert!(file.len().unwrap() < COMPACT);
    }

    #[test]
    fn after_a_failed_record_the_next_one_is_not_lost_behind_it() {
        let machine = Machine::default();
        let file = machine.file("journal");
        let mut journal = start(&file);
        machine.fail_step(machine.steps() + 1, nix::errno::Errno::EIO);
        assert!(journal.append(&[ByteRange::new(0, 5)], &[]).is_err());
        assert!(journal.wants_base());
        let mut all = empty();
        all.durable.insert(ByteRange::new(0, 9));
        journal.rebase(&all).unwrap();
        journal.append(&[ByteRange::new(20, 30)], &[]).unwrap();
        assert_eq!(contents(&file).unwrap().durable.len(), 19);
    }

    #[test]
    fn a_journal_of_another_version_is_told_from_a_damaged_one() {
        let (mut bytes, _) = written(&[]);
        bytes[3] = 2;
        assert_eq!(parse(&bytes), Err(Damage::Version));
        bytes[0] = 0;
        assert_eq!(parse(&bytes), Err(Damage::Torn));
        assert_eq!(parse(&[]), Err(Damage::Empty));
    }

    #[test]
    fn the_longest_claim_lies_within_the_first_page() {
        let validator = Some(Validator::ETag("x".repeat(1024)));
        let claim = Claim::new(
            "u",
            Some(Generation {
                total: u64::MAX,
                validator,
            }),
            Some([1; 32]),
        );
        assert!(HEADER + encode(&claim).unwrap().len() < ALIGN);
    }
}
