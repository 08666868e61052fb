//! The lanes there are: one for each own uplink and one for each uplink a peer lends.
//!
//! Invariant: a lane keeps its id for as long as it is the same way out, and no id is ever used for another one; so a
//! peer that left and came back has new lanes, and nothing that belonged to the old ones is mistaken for theirs. What
//! becomes known of a way meanwhile (its line, its rate) is told by another [`LaneInfo`] under the same id: transfers go on.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::lane::{Lane, LaneInfo, LaneSet, OwnLane, PeerLane};
use crate::link::{Link, Offer};
use crate::types::{LaneId, PeerId};
use crate::uplink::limit::Limiters;
use crate::uplink::resolve::Resolver;
use crate::uplink::{Network, Uplink};

use super::rates::{Rates, Way as Measured};

/// What own lanes are called.
pub(super) const THIS_DEVICE: &str = "this device";
/// Whose uplink, by its owner's number. `None`: this device's.
type Way = (Option<PeerId>, u32);
/// One lane, and what it was made from: another way out where that changes.
#[derive(Debug)]
struct Entry {
    lane: Arc<dyn Lane>,
    origin: Origin,
}

#[derive(Clone, Debug)]
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
    pub(super) fn new(resolver: Resolver, limiters: Limiters, rates: Rates) -> Self {
        let (set, _) = watch::channel(LaneSet::default());
        Self {
            entries: BTreeMap::new(),
            next: 0,
            resolver,
            limiters,
            rates,
            set,
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<LaneSet> {
        self.set.subscribe()
    }

    /// This device's uplinks are these now.
    pub(super) fn own(&mut self, network: &Network) {
        let uplinks: BTreeMap<u32, &Uplink> = network.uplinks.iter().map(|u| (u.index, u)).collect();
        self.entries.retain(|(peer, index), entry| match &entry.origin {
            Origin::Own(uplink) => {
                peer.is_some() || uplinks.get(index).is_some_and(|now| same_uplink(now, uplink))
            }
            Origin::Lent { .. } => true,
        });
        for (index, uplink) in uplinks {
            self.put((None, index), Origin::Own(uplink.clone()));
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
            let link = Arc::clone(link);
            self.put((Some(link.peer()), id), Origin::Lent { link, offer });
        }
        self.publish();
    }

    /// Rates were measured: lanes are made with them from now on, and those there are told.
    pub(super) fn measured(&mut self) {
        let entries = self.entries.iter().map(|(way, e)| (*way, e.origin.clone()));
        for (way, origin) in entries.collect::<Vec<_>>() {
            self.put(way, origin);
        }
        self.publish();
    }

    /// A lane for this way: a new one, or the one there is with what is known now.
    fn put(&mut self, way: Way, origin: Origin) {
        let known = self.entries.get(&way).map(|e| e.lane.info().clone());
        let id = known.as_ref().map(|info| info.id);
        let info = self.info(&origin, id.unwrap_or(LaneId(self.next)));
        if id.is_none() {
            self.next += 1;
        }
        if known.as_ref() == Some(&info) {
            if let Some(entry) = self.entries.get_mut(&way) {
                entry.origin = origin;
            }
            return;
        }
        let lane: Arc<dyn Lane> = match &origin {
            Origin::Own(uplink) => {
                let limiter = self.limiters.of(&uplink.name);
                Arc::new(OwnLane::new(info, uplink.clone(), self.resolver.clone(), limiter))
            }
            Origin::Lent { link, offer } => Arc::new(PeerLane::new(info, Arc::clone(link), offer.id)),
        };
        self.entries.insert(way, Entry { lane, origin });
    }

    fn info(&self, origin: &Origin, id: LaneId) -> LaneInfo {
        let measured = |peer, uplink: &str, line| {
            self.rates.of(&Measured {
                peer,
                uplink: uplink.into(),
                line,
            })
        };
        match origin {
            Origin::Own(uplink) => LaneInfo {
                id,
                peer: None,
                tier: None,
                owner: THIS_DEVICE.into(),
                uplink: uplink.name.clone(),
                kind: uplink.kind,
                metered: uplink.metered,
                line: uplink.line,
                hint: measured(None, &uplink.name, uplink.line),
            },
            Origin::Lent { link, offer } => LaneInfo {
                id,
                peer: Some(link.peer()),
                tier: Some(link.tier()),
                owner: link.name().into(),
                uplink: offer.name.clone(),
                kind: offer.kind,
                metered: offer.metered,
                line: offer.line,
                hint: measured(Some(link.peer()), &offer.name, offer.line).or(offer.down),
            },
        }
    }

    /// The link is gone, and its lanes with it. The peer may have another one already: news of a link's end and of the next
    /// one's beginning come from two tasks, in any order.
    pub(super) fn link_gone(&mut self, link: &Arc<Link>) {
        self.entries.retain(|_, entry| match &entry.origin {
            Origin::Own(_) => true,
            Origin::Lent { link: of, .. } => !Arc::ptr_eq(of, link),
        });
        self.publish();
    }

    /// Nothing of this peer is used any more.
    pub(super) fn peer_gone(&mut self, peer: PeerId) {
        self.entries.retain(|(of, _), _| *of != Some(peer));
        self.publish();
    }

    /// Own lanes first, in the order in which the kernel prefers them: the first one is home. Tells only what is new.
    fn publish(&self) {
        let mut entries: Vec<&Entry> = self.entries.values().collect();
        entries.sort_by_key(|e| match &e.origin {
            Origin::Own(uplink) => (0, uplink.metric),
            Origin::Lent { .. } => (1, 0),
        });
        let set: LaneSet = Arc::new(entries.into_iter().map(|e| Arc::clone(&e.lane)).collect());
        self.set.send_if_modified(|before| {
            let same =
                before.len() == set.len() && before.iter().zip(set.iter()).all(|(a, b)| Arc::ptr_eq(a, b));
            if !same {
                *before = set;
            }
            !same
        });
    }
}

/// Whether an uplink is the way out it was before: a line that becomes known, or another rank among the uplinks, does not
/// make it another one.
fn same_uplink(a: &Uplink, b: &Uplink) -> bool {
    let way = |u: &Uplink| (u.name.clone(), u.kind, u.metered, u.v4, u.v6, u.gateway, u.bind);
    way(a) == way(b)
}

/// Whether a new offer is the way out it was before; a newly measured rate, or a line that its owner got to know, does not
/// make it another one.
fn same_way(a: &Offer, b: &Offer) -> bool {
    (a.id, &a.name, a.kind, a.metered) == (b.id, &b.name, b.kind, b.metered)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Instant;

    use crate::task::Tasks;
    use crate::types::{LineId, Rate};

    use super::super::rates::Brought;
    use super::*;

    fn uplink(index: u32, last: u8) -> Uplink {
        Uplink {
            line: LineId([last; 8]),
            v4: Some(Ipv4Addr::new(192, 0, 2, last)),
            bind: false,
            ..Uplink::fixture(index, &format!("wan{index}"))
        }
    }

    fn lanes() -> Lanes {
        Lanes::new(
            Resolver::new(BTreeMap::new(), &Tasks::new()),
            Limiters::new([], Instant::now()),
            Rates::default(),
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
    fn a_line_that_becomes_known_keeps_the_lane_and_is_told() {
        let mut lanes = lanes();
        let network = |line, metric| Network {
            interfaces: vec![],
            uplinks: vec![Uplink {
                line: LineId([line; 8]),
                metric,
                ..uplink(1, 1)
            }],
        };
        lanes.own(&network(1, 5));
        let mut set = lanes.subscribe();
        set.borrow_and_update();
        lanes.own(&network(1, 7));
        assert!(
            !set.has_changed().unwrap(),
            "nothing that a transfer must hear of"
        );
        lanes.own(&network(2, 7));
        assert!(set.has_changed().unwrap());
        assert_eq!(ids(&lanes), [0]);
        assert_eq!(set.borrow()[0].info().line, LineId([2; 8]));
    }

    #[test]
    fn what_a_way_brought_is_a_hint_for_its_lane_and_the_next_ones() {
        let mut lanes = lanes();
        let now = Instant::now();
        let way = Measured {
            peer: None,
            uplink: "wan1".into(),
            line: LineId([1; 8]),
        };
        let network = Network {
            interfaces: vec![],
            uplinks: vec![uplink(1, 1)],
        };
        lanes.own(&network);
        let hint = |lanes: &Lanes| lanes.subscribe().borrow()[0].info().hint;
        assert_eq!(hint(&lanes), None);
        for tenth in 0..=40 {
            let brought = Brought {
                bytes: 100_000,
                wanted: true,
            };
            lanes
                .rates
                .brought(&way, brought, now + tenth * std::time::Duration::from_millis(100));
        }
        lanes.measured();
        assert_eq!(ids(&lanes), [0]);
        assert!(hint(&lanes).is_some_and(|r| (7_000_000..9_000_000).contains(&r.as_bits())));
        lanes.own(&Network::default());
        lanes.own(&network);
        assert_eq!(
            (ids(&lanes), hint(&lanes).map(Rate::as_bits) > Some(0)),
            (vec![1], true)
        );
    }
}
