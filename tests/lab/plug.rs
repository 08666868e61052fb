//! What may happen to a running device's interfaces: addresses that change, cables, sticks that are pulled, put in again
//! and named anew.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use super::net;
use super::ns::Namespace;
use super::peer::Peer;
use super::wire::{Families, Family, Forwarder, Uplink, Wire};

/// The metric of `wan0`'s default route; each further uplink's is 100 higher.
pub(super) const METRIC: u32 = 100;

/// One uplink of a peer: the wire, and the peer's interface at its end.
#[derive(Debug)]
pub struct Plug {
    pub(super) wire: Wire,
    place: usize,
    /// The internet's interface at the other end.
    far: String,
    near: Mutex<Near>,
}

/// The peer's end, as it is now.
#[derive(Clone, Debug)]
struct Near {
    name: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Plug {
    /// Uplink `place` of a peer over wire `number` of the lab.
    pub(super) fn new(
        peer: &Namespace,
        internet: &Namespace,
        forwarder: &Forwarder,
        (number, place): (usize, usize),
        uplink: Uplink,
    ) -> io::Result<Self> {
        let host = u8::try_from(10 + number).map_err(io::Error::other)?;
        let far = format!("line{number}");
        let near = Near {
            name: format!("wan{place}"),
            v4: Ipv4Addr::new(198, 51, 100, host),
            v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, host.into()),
        };
        let peer_end = peer.run(|| {
            let device = net::tun(&near.name)?;
            near.start(place, uplink.versions())?;
            Ok(device)
        })?;
        let internet_end = internet.run(|| {
            let device = net::tun(&far)?;
            net::start_tun(&far, uplink.versions().has(Family::V6))?;
            net::check_sources(&far)?;
            for (address, prefix) in near.addresses(uplink.versions()) {
                net::add_route(&far, address, prefix, 0)?;
            }
            Ok(device)
        })?;
        Ok(Self {
            wire: forwarder.add(number, internet_end, peer_end, uplink),
            place,
            far,
            near: Mutex::new(near),
        })
    }

    pub(super) fn v4(&self) -> Ipv4Addr {
        self.near().v4
    }

    fn near(&self) -> Near {
        self.near.lock().unwrap().clone()
    }

    /// The addresses that the peer's end has now.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let near = self.near();
        near.addresses(self.wire.versions())
            .map(|(address, _)| address)
            .collect()
    }
}

impl Near {
    fn addresses(&self, families: Families) -> impl Iterator<Item = (IpAddr, u8)> + use<> {
        let v4 = families.has(Family::V4).then_some((IpAddr::V4(self.v4), 32));
        let v6 = families.has(Family::V6).then_some((IpAddr::V6(self.v6), 128));
        v4.into_iter().chain(v6)
    }

    /// In the peer's namespace: sets a new device up.
    fn start(&self, place: usize, families: Families) -> io::Result<()> {
        net::start_tun(&self.name, families.has(Family::V6))?;
        for (address, prefix) in self.addresses(families) {
            net::add_address(&self.name, address, prefix)?;
        }
        self.route(place, families)
    }

    /// In the peer's namespace: the ways out.
    fn route(&self, place: usize, families: Families) -> io::Result<()> {
        let metric = METRIC * (u32::try_from(place).map_err(io::Error::other)? + 1);
        if families.has(Family::V4) {
            net::add_route(&self.name, Ipv4Addr::UNSPECIFIED, 0, metric)?;
        }
        if families.has(Family::V6) {
            net::add_route(&self.name, Ipv6Addr::UNSPECIFIED, 0, metric)?;
        }
        Ok(())
    }
}

impl Peer {
    /// Plugs its LAN cable in or out: the interface loses its carrier.
    #[track_caller]
    pub fn lan_cable(&self, plugged: bool) {
        self.switch.run(|| net::set_up(&self.port, plugged)).unwrap();
    }

    /// Gives it another address on the LAN, 100 higher, as a DHCP server that has forgotten it does.
    #[track_caller]
    pub fn renumber_lan(&self) {
        let mut lan = self.lan.lock().unwrap();
        let [a, b, c, d] = lan.octets();
        let new = Ipv4Addr::new(a, b, c, d + 100);
        let change = || {
            net::remove_address("lan0", *lan, 24)?;
            net::add_address("lan0", new, 24)
        };
        self.namespace.run(change).unwrap();
        *lan = new;
    }

    /// The interface of uplink `number`.
    #[track_caller]
    pub fn wan_name(&self, number: usize) -> String {
        self.plugs[number].near().name
    }

    /// All addresses of uplink `number`.
    #[track_caller]
    pub fn wan_addresses(&self, number: usize) -> Vec<IpAddr> {
        self.plugs[number].addresses()
    }

    /// Sets the interface of uplink `number` up or down, its default route with it: a stick pulled out.
    #[track_caller]
    pub fn wan_cable(&self, number: usize, plugged: bool) {
        let plug = &self.plugs[number];
        let (near, families) = (plug.near(), plug.wire.versions());
        let set = || {
            net::set_up(&near.name, plugged)?;
            if plugged {
                // IPv6 addresses do not outlive an interface that is down.
                if families.has(Family::V6) {
                    net::add_address(&near.name, near.v6, 128)?;
                }
                near.route(plug.place, families)?;
            }
            Ok(())
        };
        self.namespace.run(set).unwrap();
    }

    /// Gives uplink `number` other addresses, 100 higher; the internet knows the old ones no more.
    #[track_caller]
    pub fn renumber_wan(&self, number: usize) {
        let plug = &self.plugs[number];
        let (old, families) = (plug.near(), plug.wire.versions());
        let [a, b, c, d] = old.v4.octets();
        let new = Near {
            v4: Ipv4Addr::new(a, b, c, d + 100),
            v6: Ipv6Addr::from_bits(old.v6.to_bits() + 100),
            ..old.clone()
        };
        let there = || {
            // A route goes with its interface.
            net::set_up(&plug.far, false)?;
            net::set_up(&plug.far, true)?;
            for (address, prefix) in new.addresses(families) {
                net::add_route(&plug.far, address, prefix, 0)?;
            }
            Ok(())
        };
        self.internet.run(there).unwrap();
        let here = || {
            for (address, prefix) in old.addresses(families) {
                net::remove_address(&old.name, address, prefix)?;
            }
            for (address, prefix) in new.addresses(families) {
                net::add_address(&new.name, address, prefix)?;
            }
            // They went with the last address. One that is down gets them when it comes up.
            let _ = new.route(plug.place, families);
            Ok(())
        };
        self.namespace.run(here).unwrap();
        *plug.near.lock().unwrap() = new;
    }

    /// Names the interface of uplink `number` anew, as udev does: it is down for a moment, and has no routes then.
    #[track_caller]
    pub fn rename_wan(&self, number: usize, name: &str) {
        let plug = &self.plugs[number];
        let old = self.wan_name(number);
        let new = Near {
            name: name.to_owned(),
            ..plug.near()
        };
        let families = plug.wire.versions();
        let change = || {
            net::set_up(&old, false)?;
            net::rename(&old, &new.name)?;
            net::set_up(&new.name, true)?;
            if families.has(Family::V6) {
                net::add_address(&new.name, new.v6, 128)?;
            }
            new.route(plug.place, families)
        };
        self.namespace.run(change).unwrap();
        *plug.near.lock().unwrap() = new;
    }

    /// Pulls the stick of uplink `number` out: its interface is gone.
    #[track_caller]
    pub fn pull_wan(&self, number: usize) {
        self.plugs[number].wire.unplug();
    }

    /// Puts the stick of uplink `number` in again: a new interface, with the same addresses, under this name.
    #[track_caller]
    pub fn put_wan(&self, number: usize, name: &str) {
        let plug = &self.plugs[number];
        let new = Near {
            name: name.to_owned(),
            ..plug.near()
        };
        let make = || {
            let device = net::tun(name)?;
            new.start(plug.place, plug.wire.versions())?;
            Ok(device)
        };
        let device = self.namespace.run(make).unwrap();
        plug.wire.plug(device);
        *plug.near.lock().unwrap() = new;
    }
}
