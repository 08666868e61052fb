//! Where peers were last met, so that they find each other again on a LAN without multicast, and after a restart
//! before mDNS has said a word.
//!
//! Invariants: bounded; an address here is a hint to dial, never an identity; the file is written seldom, because it
//! may lie on an SD card.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::identity::StateDir;
use crate::types::PeerId;

const FILE: &str = "peers.json";
/// As many as there can be links; the one met longest ago makes room.
const MAX_ENTRIES: usize = 64;
/// Some 150 bytes an entry; what is larger is not ours.
const MAX_FILE: u64 = 64 * 1024;

/// One peer and where it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    peer: PeerId,
    address: SocketAddr,
}

/// The last-known addresses, the latest met last.
#[derive(Debug, Default)]
pub(super) struct Book {
    entries: VecDeque<Entry>,
    changed: bool,
}

/// Where peers were last met, read from a state directory without opening it: nothing is made, locked or reported.
pub fn met_before(directory: &Path) -> Vec<SocketAddr> {
    let read = || {
        let mut bytes = Vec::new();
        let file = File::open(directory.join(FILE)).ok()?;
        file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice::<Vec<Entry>>(&bytes).ok()
    };
    let entries = read().unwrap_or_default().into_iter();
    entries.map(|e| e.address).take(MAX_ENTRIES).collect()
}

impl Book {
    /// Reads the book; a missing or unreadable one is empty, because it only ever holds hints.
    pub(super) fn load(state: &StateDir) -> Self {
        let bytes = state.read(FILE).unwrap_or_else(|error| {
            tracing::warn!(%error, "the addresses of known peers cannot be read");
            None
        });
        let entries = bytes
            .and_then(|b| serde_json::from_slice::<VecDeque<Entry>>(&b).ok())
            .unwrap_or_default();
        let skip = entries.len().saturating_sub(MAX_ENTRIES);
        Self {
            entries: entries.into_iter().skip(skip).collect(),
            changed: false,
        }
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.entries.iter().map(|e| e.address)
    }

    /// Notes where a peer was met. `keeps` says who has a place for sure: others make room, for it and for each other.
    pub(super) fn met(&mut self, peer: PeerId, address: SocketAddr, keeps: impl Fn(PeerId) -> bool) {
        let entry = Entry { peer, address };
        if self.entries.contains(&entry) {
            return;
        }
        // Another peer at the same address took its place there: a guest's passing identity must not push a device out.
        self.entries.retain(|e| e.peer != peer && e.address != address);
        if self.entries.len() >= MAX_ENTRIES {
            let other = self.entries.iter().position(|e| !keeps(e.peer));
            match other {
                Some(place) => self.entries.remove(place),
                None if keeps(peer) => self.entries.pop_front(),
                None => return,
            };
        }
        self.entries.push_back(entry);
        self.changed = true;
    }

    /// Writes the book if it says something new.
    pub(super) fn save(&mut self, state: &StateDir) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let written = serde_json::to_vec(&self.entries).map_err(|e| e.to_string());
        let written = written.and_then(|bytes| state.write(FILE, &bytes).map_err(|e| e.to_string()));
        if let Err(error) = written {
            tracing::warn!(%error, "the addresses of known peers cannot be kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> (PeerId, SocketAddr) {
        (PeerId([n; 32]), SocketAddr::from(([10, 0, 0, n], 7436)))
    }

    #[test]
    fn peers_met_are_known_after_a_restart_at_their_latest_address() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let mut book = Book::load(&state);
        book.met(peer(1).0, peer(9).1, |_| false);
        book.met(peer(2).0, peer(2).1, |_| false);
        book.met(peer(1).0, peer(1).1, |_| false);
        book.save(&state);
        let again: Vec<_> = Book::load(&state).addresses().collect();
        assert_eq!(again, [peer(2).1, peer(1).1]);
        assert_eq!(met_before(dir.path()), again);
        assert!(met_before(&dir.path().join("none")).is_empty());
    }

    #[test]
    fn the_book_is_bounded_and_a_damaged_one_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let mut book = Book::default();
        for n in 0..=200 {
            book.met(peer(n).0, peer(n).1, |_| false);
        }
        assert_eq!(book.addresses().count(), MAX_ENTRIES);
        assert_eq!(book.addresses().last(), Some(peer(200).1));
        // Members are the first ones here: nobody else takes a line of theirs.
        let member = |peer: PeerId| peer.0[0] < 100;
        let mut book = Book::default();
        for n in 0..=200 {
            book.met(peer(n).0, peer(n).1, member);
        }
        assert_eq!(book.addresses().last(), Some(peer(99).1));
        state.write(FILE, b"{").unwrap();
        assert_eq!(Book::load(&state).addresses().count(), 0);
    }
}
