//! What was lent to whom: counters that run while the bytes flow.
//!
//! Invariant: bounded. Peers beyond `MAX_PEERS` are counted together, so that sums stay right.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::types::PeerId;

/// Peers counted one by one: more than a household has, and few enough to keep for ever.
const MAX_PEERS: usize = 256;
/// As with peers; interfaces come and go with sticks and tunnels.
const MAX_UPLINKS: usize = 64;

/// What was lent since the start, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lent {
    /// By borrower.
    pub peers: BTreeMap<PeerId, Count>,
    /// By uplink's name.
    pub uplinks: BTreeMap<String, Count>,
    /// Everything, peers and uplinks no longer counted apart included.
    pub all: Count,
}

/// One row of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Bytes from origins.
    pub down: u64,
    /// Bytes to origins.
    pub up: u64,
    /// Tunnels open now.
    pub open: u64,
    /// Tunnels ever opened.
    pub tunnels: u64,
    /// Requests refused, or that led to no connection.
    pub refused: u64,
}

/// The running counters.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    rows: Mutex<Rows>,
    all: Arc<Counter>,
}

#[derive(Debug, Default)]
struct Rows {
    peers: BTreeMap<PeerId, Arc<Counter>>,
    uplinks: BTreeMap<String, Arc<Counter>>,
}

#[derive(Debug, Default)]
struct Counter {
    down: AtomicU64,
    up: AtomicU64,
    open: AtomicU64,
    tunnels: AtomicU64,
    refused: AtomicU64,
}

/// One open tunnel's place in the books; it counts as open until this is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    rows: Vec<Arc<Counter>>,
    /// Of this tunnel alone.
    own: Counter,
}

impl Ledger {
    /// A tunnel is open.
    pub(super) fn opened(&self, peer: PeerId, uplink: &str) -> Entry {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counters = vec![Arc::clone(&self.all)];
        counters.extend(row(&mut rows.peers, &peer, MAX_PEERS));
        counters.extend(row(&mut rows.uplinks, uplink, MAX_UPLINKS));
        for counter in &counters {
            counter.open.fetch_add(1, Ordering::Relaxed);
            counter.tunnels.fetch_add(1, Ordering::Relaxed);
        }
        Entry {
            rows: counters,
            own: Counter::default(),
        }
    }

    /// A request led to nothing.
    pub(super) fn refused(&self, peer: PeerId) {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = row(&mut rows.peers, &peer, MAX_PEERS);
        for counter in peer.iter().chain([&self.all]) {
            counter.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The books as they are now.
    pub(super) fn lent(&self) -> Lent {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        Lent {
            peers: rows
                .peers
                .iter()
                .map(|(id, counter)| (*id, counter.now()))
                .collect(),
            uplinks: rows
                .uplinks
                .iter()
                .map(|(name, counter)| (name.clone(), counter.now()))
                .collect(),
            all: self.all.now(),
        }
    }
}

impl Entry {
    /// Bytes came from the origin.
    pub(super) fn down(&self, bytes: u64) {
        for counter in self.counters() {
            counter.down.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Bytes went to the origin.
    pub(super) fn up(&self, bytes: u64) {
        for counter in self.counters() {
            counter.up.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// What this tunnel has moved so far.
    pub(super) fn count(&self) -> Count {
        self.own.now()
    }

    fn counters(&self) -> impl Iterator<Item = &Counter> {
        self.rows.iter().map(Arc::as_ref).chain([&self.own])
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        for counter in &self.rows {
            counter.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Counter {
    fn now(&self) -> Count {
        Count {
            down: self.down.load(Ordering::Relaxed),
            up: self.up.load(Ordering::Relaxed),
            open: self.open.load(Ordering::Relaxed),
            tunnels: self.tunnels.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

/// The counter of `key`, made if there is room for one more.
fn row<K, Q>(rows: &mut BTreeMap<K, Arc<Counter>>, key: &Q, most: usize) -> Option<Arc<Counter>>
where
    K: Ord + std::borrow::Borrow<Q>,
    Q: Ord + ToOwned<Owned = K> + ?Sized,
{
    if !rows.contains_key(key) {
        if rows.len() >= most {
            return None;
        }
        rows.insert(key.to_owned(), Arc::default());
    }
    rows.get(key).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_tunnels_are_counted_for_peer_uplink_and_all_while_they_flow() {
        let ledger = Ledger::default();
        let (one, two) = (PeerId([1; 32]), PeerId([2; 32]));
        let (first, second) = (ledger.opened(one, "wan0"), ledger.opened(two, "wan0"));
        first.down(100);
        second.down(10);
        second.up(5);
        assert_eq!((second.count().down, second.count().up), (10, 5));
        drop(second);
        ledger.refused(two);
        let lent = ledger.lent();
        assert_eq!(
            lent.peers[&one],
            Count {
                down: 100,
                open: 1,
                tunnels: 1,
                ..Count::default()
            }
        );
        assert_eq!(
            lent.peers[&two],
            Count {
                down: 10,
                up: 5,
                open: 0,
                tunnels: 1,
                refused: 1
            }
        );
        assert_eq!(
            lent.uplinks["wan0"],
            Count {
                down: 110,
                up: 5,
                open: 1,
                tunnels: 2,
                refused: 0
            }
        );
        assert_eq!(
            lent.all,
            Count {
                down: 110,
                up: 5,
                open: 1,
                tunnels: 2,
                refused: 1
            }
        );
    }

    #[test]
    fn too_many_peers_are_counted_together() {
        let ledger = Ledger::default();
        for n in 0..1000u16 {
            let mut id = [0; 32];
            id[..2].copy_from_slice(&n.to_be_bytes());
            ledger.opened(PeerId(id), &format!("wan{n}")).down(1);
        }
        let lent = ledger.lent();
        assert_eq!(
            (lent.peers.len(), lent.uplinks.len(), lent.all.down),
            (MAX_PEERS, MAX_UPLINKS, 1000)
        );
    }
}
