//! The lanes there are: one for each own uplink and one for each uplink a peer lends.
//!
//! Invariant: a lane keeps its id for as long as it is the same way out, and no id is ever used for another one; so a
//! peer that left and came back has new lanes, and nothing that belonged to the old ones is mistaken for theirs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::lane::{Lane, LaneInfo, LaneSet, OwnLane, PeerLane};
use crate::link::{Link, Offer};
use crate::types::{LaneId, PeerId, Rate};
use crate::uplink::limit::Limiters;
use crate::uplink::resolve::Resolver;
use crate::uplink::{Network, Uplink};

/// What own lanes are called.
pub(super) const THIS_DEVICE: &str = "this device";
/// Rates remembered of ways that may be gone; a household has fewer.
const MAX_RATES: usize = 256;

/// Whose uplink, by its owner's number. `None`: this device's.
type Way = (Option<PeerId>, u32);
/// The same by name: what a rate is remembered for.
type Name = (Option<PeerId>, String);

/// What each way brought when it was last used. Shared with the transfers that measure it.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates(Arc<Mutex<BTreeMap<Name, Rate>>>);

impl Rates {
    pub(super) fn of(&self, peer: Option<PeerId>, uplink: &str) -> Option<Rate> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&(peer, uplink.into()))
            .copied()
    }

    pub(super) fn measured(&self, peer: Option<PeerId>, uplink: &str, rate: Rate) {
        let mut rates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (peer, uplink.into());
        if rates.len() < MAX_RATES || rates.contains_key(&name) {
            rates.insert(name, rate);
        }
    }
}

/// One lane, and what it was made from: made anew only where that changes.
#[derive(Debug)]
struct Entry {
    lane: Arc<dyn Lane>,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    Own(Uplink),
    Lent { link: Arc<Link>, offer: Offer },
}

/// Composes the set of lanes from the network's and the peers' news.
#[derive(Debug)]
pub(super) struct Lanes {
    entries: BTreeMap<Way, Entry>,
    next: u64,
    resolver: Resolver,
    limiters: Limiters,
    rates: Rates,
    set: watch::Sender<LaneSet>,
}

impl Lanes {
    pub(super) fn new(resolver: Resolver, limiters: Limiters) -> Self {
        let (set, _) = watch::channel(LaneSet::default());
        Self {
            entries: BTreeMap::new(),
            next: 0,
            resolver,
            limiters,
            rates: Rates::default(),
            set,
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<LaneSet> {
        self.set.subscribe()
    }

    pub(super) fn rates(&self) -> Rates {
        self.rates.clone()
    }

    /// This device's uplinks are these now.
    pub(super) fn own(&mut self, network: &Network) {
        let uplinks: BTreeMap<u32, &Uplink> = network.uplinks.iter().map(|u| (u.index, u)).collect();
        self.entries.retain(|(peer, index), entry| match &entry.origin {
            Origin::Own(uplink) => peer.is_some() || uplinks.get(index) == Some(&uplink),
            Origin::Lent { .. } => true,
        });
        for (index, uplink) in uplinks {
            let way = (None, index);
            if self.entries.contains_key(&way) {
                continue;
            }
            let info = LaneInfo {
                id: self.fresh_id(),
                peer: None,
                owner: THIS_DEVICE.into(),
                uplink: uplink.name.clone(),
                kind: uplink.kind,
                metered: uplink.metered,
                line: uplink.line,
                hint: self.rates.of(None, &uplink.name),
            };
            let limiter = self.limiters.of(&uplink.name);
            let lane = Arc::new(OwnLane::new(info, uplink.clone(), self.resolver.clone(), limiter));
            self.entries.insert(
                way,
                Entry {
                    lane,
                    origin: Origin::Own(uplink.clone()),
                },
            );
        }
        self.publish();
    }

    /// Every own uplink becomes another lane: what was open over the old ones is taken to be dead.
    pub(super) fn renew(&mut self) {
        let own = |(peer, _): &Way| peer.is_none();
        let uplinks = self.entries.extract_if(.., |way, _| own(way));
        let uplinks = uplinks.filter_map(|(_, entry)| match entry.origin {
            Origin::Own(uplink) => Some(uplink),
            Origin::Lent { .. } => None,
        });
        let network = Network {
            interfaces: Vec::new(),
            uplinks: uplinks.collect(),
        };
        self.own(&network);
    }

    /// This peer lends what its link says now.
    pub(super) fn peer(&mut self, link: &Arc<Link>) {
        let offers: BTreeMap<u32, Offer> = link.offers().into_iter().map(|o| (o.id, o)).collect();
        self.entries.retain(|(peer, id), entry| match &entry.origin {
            Origin::Lent { link: of, offer } if *peer == Some(link.peer()) => {
                Arc::ptr_eq(of, link) && offers.get(id).is_some_and(|now| same_way(now, offer))
            }
            _ => true,
        });
        for (id, offer) in offers {
            let way = (Some(link.peer()), id);
            if self.entries.contains_key(&way) {
                continue;
            }
            let info = LaneInfo {
                id: self.fresh_id(),
                peer: Some(link.peer()),
                owner: link.name().into(),
                uplink: offer.name.clone(),
                kind: offer.kind,
                metered: offer.metered,
                line: offer.line,
                hint: self.rates.of(Some(link.peer()), &offer.name).or(offer.down),
            };
            let lane = Arc::new(PeerLane::new(info, Arc::clone(link), id));
            self.entries.insert(
                way,
                Entry {
                    lane,
                    origin: Origin::Lent {
                        link: Arc::clone(link),
                        offer,
                    },
                },
            );
        }
        self.publish();
    }

    /// The peer is gone, and its lanes with it.
    pub(super) fn peer_gone(&mut self, peer: PeerId) {
        self.entries.retain(|(of, _), _| *of != Some(peer));
        self.publish();
    }

    const fn fresh_id(&mut self) -> LaneId {
        let id = LaneId(self.next);
        self.next += 1;
        id
    }

    /// Own lanes first, in the order in which the kernel prefers them: the first one is home.
    fn publish(&self) {
        let mut entries: Vec<&Entry> = self.entries.values().collect();
        entries.sort_by_key(|e| match &e.origin {
            Origin::Own(uplink) => (0, uplink.metric),
            Origin::Lent { .. } => (1, 0),
        });
        let set: LaneSet = Arc::new(entries.into_iter().map(|e| Arc::clone(&e.lane)).collect());
        self.set.send_replace(set);
    }
}

/// Whether a new offer is the way out it was before; a newly measured rate does not make it another one.
fn same_way(a: &Offer, b: &Offer) -> bool {
    (a.id, &a.name, a.line, a.kind, a.metered) == (b.id, &b.name, b.line, b.kind, b.metered)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Instant;

    use crate::task::Tasks;
    use crate::types::{LineId, UplinkKind};

    use super::*;

    fn uplink(index: u32, last: u8) -> Uplink {
        Uplink {
            index,
            name: format!("wan{index}"),
            kind: UplinkKind::Wired,
            metered: false,
            line: LineId([last; 8]),
            v4: Some(Ipv4Addr::new(192, 0, 2, last)),
            v6: None,
            gateway: None,
            metric: 0,
            bind: false,
        }
    }

    fn lanes() -> Lanes {
        Lanes::new(
            Resolver::new(BTreeMap::new(), &Tasks::new()),
            Limiters::new([], Instant::now()),
        )
    }

    fn ids(lanes: &Lanes) -> Vec<u64> {
        lanes.subscribe().borrow().iter().map(|l| l.info().id.0).collect()
    }

    #[test]
    fn a_device_with_two_uplinks_offers_two_lanes() {
        let mut lanes = lanes();
        lanes.own(&Network {
            interfaces: vec![],
            uplinks: vec![uplink(1, 1), uplink(2, 2)],
        });
        let set = lanes.subscribe().borrow().clone();
        let names: Vec<_> = set.iter().map(|l| l.info().uplink.as_str()).collect();
        assert_eq!(names, ["wan1", "wan2"]);
        assert!(
            set.iter()
                .all(|l| l.info().peer.is_none() && l.info().owner == THIS_DEVICE)
        );
    }

    #[test]
    fn an_uplink_that_stays_keeps_its_lane_and_one_that_changes_gets_a_new_one() {
        let mut lanes = lanes();
        let both = |last| Network {
            interfaces: vec![],
            uplinks: vec![uplink(1, 1), uplink(2, last)],
        };
        lanes.own(&both(2));
        assert_eq!(ids(&lanes), [0, 1]);
        lanes.own(&both(2));
        assert_eq!(ids(&lanes), [0, 1]);
        lanes.own(&both(3));
        assert_eq!(ids(&lanes), [0, 2]);
        lanes.own(&Network::default());
        lanes.own(&both(3));
        assert_eq!(ids(&lanes), [3, 4], "ids are never used again");
    }

    #[test]
    fn renewed_lanes_are_the_same_ways_under_new_ids() {
        let mut lanes = lanes();
        lanes.own(&Network {
            interfaces: vec![],
            uplinks: vec![uplink(1, 1), uplink(2, 2)],
        });
        lanes.renew();
        assert_eq!(ids(&lanes), [2, 3]);
        let set = lanes.subscribe().borrow().clone();
        assert_eq!(
            set.iter().map(|l| l.info().uplink.as_str()).collect::<Vec<_>>(),
            ["wan1", "wan2"]
        );
    }

    #[test]
    fn what_a_way_brought_before_is_a_hint_for_its_next_lane() {
        let mut lanes = lanes();
        lanes.rates().measured(None, "wan1", Rate::bits(5));
        lanes.own(&Network {
            interfaces: vec![],
            uplinks: vec![uplink(1, 1)],
        });
        assert_eq!(lanes.subscribe().borrow()[0].info().hint, Some(Rate::bits(5)));
    }
}
