//! What `status` says: who is there, which lanes a download would use and why not the others, what to expect of them.

use crate::api::{self, Lent, Progress, Savings, Status};
use crate::lane::LaneInfo;
use crate::link::Link;
use crate::share::Household;
use crate::transfer::{self, Planned};
use crate::types::{Rate, hex};

use super::Node;
use super::control::Running;
use super::forecast::{Forecast, Part, forecast};
use super::rates::Way;
use super::whereabouts;

/// Everything, as it is now.
pub(super) fn of(node: &Node) -> Status {
    let planned = transfer::plan(&node.lanes.borrow());
    let links = node.links.all();
    let transfers: Vec<Progress> = node.transfers().running.values().map(Running::progress).collect();
    let rate = |info: &LaneInfo| node.rates.of(&way(info)).or(info.hint);
    let parts: Vec<Part> = planned
        .iter()
        .map(|p| Part {
            line: p.info.line,
            lent: p.info.peer.is_some(),
            used: p.idle.is_none(),
            rate: rate(&p.info),
        })
        .collect();
    let lent = node.relay.lent();
    let mut warnings = node.links.warnings();
    warnings.extend(whereabouts::warning(&node.network.borrow()));
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        device: api::Device {
            id: node.id.to_string(),
            name: node.name.clone(),
            port: node.port,
        },
        lanes: planned
            .iter()
            .map(|p| lane(p, rate(&p.info), &transfers))
            .collect(),
        forecast: told(forecast(1 + links.len(), &parts)),
        peers: links.iter().map(|l| peer(l)).collect(),
        transfers,
        savings: node.household.as_ref().map(saved).unwrap_or_default(),
        lent: Lent {
            tunnels: lent.all.open,
            down: lent.all.down,
            up: lent.all.up,
        },
        warnings,
    }
}

/// What a lane's rate is remembered by.
pub(super) fn way(info: &LaneInfo) -> Way {
    Way {
        peer: info.peer,
        uplink: info.uplink.clone(),
        line: info.line,
    }
}

fn lane(planned: &Planned, rate: Option<Rate>, transfers: &[Progress]) -> api::Lane {
    let info = &planned.info;
    let lent = info.peer.is_some();
    let same = |l: &&api::LaneProgress| {
        !l.household && (&l.owner, &l.uplink, l.lent) == (&info.owner, &info.uplink, lent)
    };
    let in_transfers: Vec<_> = transfers
        .iter()
        .filter_map(|t| t.lanes.iter().find(same))
        .collect();
    // Where any download gets bytes over it, it serves.
    let serves = in_transfers.iter().any(|l| l.why.is_none());
    let trouble = in_transfers.first().filter(|_| !serves);
    let running = trouble
        .and_then(|l| l.why.clone())
        .filter(|_| planned.idle.is_none());
    api::Lane {
        owner: info.owner.clone(),
        uplink: info.uplink.clone(),
        lent,
        kind: info.kind,
        metered: info.metered,
        rate: rate.map(Rate::as_bits),
        line: hex(&info.line.0),
        used: planned.idle.is_none(),
        why: planned.idle.clone().filter(|_| !serves).or(running),
        parked_for: trouble.and_then(|l| l.parked_for),
        failures: trouble.and_then(|l| l.failures),
    }
}

fn told(forecast: Forecast) -> api::Forecast {
    api::Forecast {
        devices: forecast.devices,
        lines: forecast.lines,
        unmeasured: forecast.unmeasured,
        expected: forecast.expected.map(Rate::as_bits),
        alone: forecast.alone.map(Rate::as_bits),
        times: forecast.times,
        text: forecast.to_string(),
    }
}

fn saved(household: &Household) -> Savings {
    let totals = household.totals();
    Savings {
        from_members: totals.from_members,
        over_uplinks: totals.over_uplinks,
        served: totals.served,
    }
}

fn peer(link: &Link) -> api::Peer {
    api::Peer {
        id: link.peer().to_string(),
        name: link.name().into(),
        address: link.address().to_string(),
        tier: link.tier(),
        rtt_ms: link.rtt().as_secs_f64() * 1e3,
        uplinks: link.offers().into_iter().map(|o| o.name).collect(),
    }
}
