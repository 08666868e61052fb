//! Routers on the LAN: a peer whose kernel passes on what others send out by its uplink, so that several peers share one
//! line, as behind any home router.
//!
//! The lab's own uplinks are point-to-point and show no gateway; behind a router a peer's way out is its LAN interface, with
//! a gateway that has a MAC address. The internet routes the peers' LAN addresses back to the router's line: nothing is
//! translated, which no program here could tell.

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use nix::net::if_::if_nametoindex;
use rtnetlink::RouteMessageBuilder;

use super::plug::METRIC;
use super::{Lab, Peer, SWITCH, net};

/// Added to the last part of a peer's LAN address for that of its second cable.
const SECOND: u8 = 100;

impl Lab {
    /// Gives a peer, which needs no uplink of its own, the way out over another peer's `wan0`: its gateway on `lan0`.
    #[track_caller]
    pub fn behind(self, peer: &str, router: &str) -> Self {
        let lan = self.at(peer).lan_address();
        self.lead(peer, router, "lan0", lan, METRIC).unwrap();
        self
    }

    /// Plugs a peer in a second time, as `lan1`, with the same router as another way out.
    #[track_caller]
    pub fn behind_twice(self, peer: &str, router: &str) -> Self {
        let this = self.at(peer);
        let [a, b, c, last] = this.lan_address().octets();
        let address = Ipv4Addr::new(a, b, c, last + SECOND);
        let port = format!("{}b", this.port);
        self.switch
            .run(|| net::cable(&port, SWITCH, "lan1", &this.namespace))
            .unwrap();
        this.inside(|| {
            // Each interface answers for its own address only, as two network cards on one switch should.
            fs::write("/proc/sys/net/ipv4/conf/all/arp_ignore", "1")?;
            fs::write("/proc/sys/net/ipv4/conf/all/arp_announce", "2")?;
            net::add_address("lan1", address, 24)?;
            net::set_up("lan1", true)
        });
        self.lead(peer, router, "lan1", address, 2 * METRIC).unwrap();
        self
    }

    /// Lets `router` pass on what comes from `address`, the internet send it back there, and `peer` use that.
    fn lead(
        &self,
        peer: &str,
        router: &str,
        interface: &str,
        address: Ipv4Addr,
        metric: u32,
    ) -> io::Result<()> {
        let before = self.peers.iter().take_while(|p| p.name != router);
        let line = format!("line{}", before.map(Peer::uplinks).sum::<usize>());
        let router = self.at(router);
        router
            .namespace
            .run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?;
        self.internet.run(|| net::add_route(&line, address, 32, 0))?;
        let gateway = router.lan_address();
        self.at(peer)
            .namespace
            .run(|| default_route(interface, gateway, metric))
    }
}

impl Peer {
    /// The MAC addresses its kernel knows on that interface, by ARP: who is at which address.
    #[track_caller]
    pub fn knows(&self, interface: &str, address: Ipv4Addr) -> bool {
        let table = self.inside(|| fs::read_to_string("/proc/thread-self/net/arp"));
        let row = |line: &str| {
            let fields: Vec<_> = line.split_whitespace().collect();
            fields.first() == Some(&address.to_string().as_str())
                && fields.last() == Some(&interface)
                && fields.get(3) != Some(&"00:00:00:00:00:00")
        };
        table.lines().any(row)
    }
}

/// In the peer's namespace: the way out by that interface's gateway.
fn default_route(interface: &str, gateway: Ipv4Addr, metric: u32) -> io::Result<()> {
    let index = if_nametoindex(interface)?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
        .gateway(gateway)
        .output_interface(index)
        .priority(metric)
        .build();
    net::netlink(async |handle| handle.route().add(route).execute().await)
}
