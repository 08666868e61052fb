//! A lane over one of this device's own uplinks.
//!
//! No address filter here: the user of this device may reach whatever the device may. What a lender lets others reach is
//! the relay's business.

use std::io;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::errno::Errno;

use crate::lane::{DialError, Lane, LaneInfo, Target, Tunnel};
use crate::uplink;
use crate::uplink::Uplink;
use crate::uplink::dial;
use crate::uplink::limit::{Limited, Limiter};
use crate::uplink::resolve::Resolver;

/// Name, connection and all: a way out that needs longer is of no use to a transfer that has others.
const DIAL_LIMIT: Duration = Duration::from_secs(10);

/// One of this device's uplinks as a lane.
#[derive(Debug)]
pub struct OwnLane {
    info: LaneInfo,
    uplink: Uplink,
    resolver: Resolver,
    limiter: Limiter,
}

impl OwnLane {
    /// `uplink` as a lane; its tunnels share `limiter` with whoever else was given a clone of it.
    pub const fn new(info: LaneInfo, uplink: Uplink, resolver: Resolver, limiter: Limiter) -> Self {
        Self {
            info,
            uplink,
            resolver,
            limiter,
        }
    }

    async fn open(&self, target: &Target) -> Result<Tunnel, DialError> {
        let ips = match target.pin {
            Some(ip) => vec![ip],
            None => self
                .resolver
                .resolve(&target.host)
                .await
                .map_err(|source| DialError::Resolve {
                    host: target.host.clone(),
                    source,
                })?,
        };
        let addresses = dial::ways(&self.uplink, &ips, target.port);
        let connect = |to| uplink::connect(&self.uplink, to, DIAL_LIMIT, &self.limiter);
        let (address, stream) = dial::race(&addresses, connect).await.map_err(told)?;
        let stream = Limited::connection(stream, self.limiter.clone());
        Ok(Tunnel::counting(stream, address))
    }
}

impl Lane for OwnLane {
    fn info(&self) -> &LaneInfo {
        &self.info
    }

    fn dial<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Tunnel, DialError>> {
        let within = tokio::time::timeout(DIAL_LIMIT, self.open(target));
        within
            .map(|r| r.unwrap_or(Err(DialError::Timeout(DIAL_LIMIT))))
            .boxed()
    }
}

/// An interface or source address that is not there any more is the end of the lane; news of it come later.
fn told(error: io::Error) -> DialError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENODEV | Errno::EADDRNOTAVAIL) => DialError::LaneGone,
        _ => DialError::Connect(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::task::Tasks;
    use crate::types::{LaneId, Rate};
    use crate::uplink::limit::Cap;
    use crate::uplink::resolve::Names;

    fn lane(names: &[(&str, &[&str])], limiter: Limiter) -> OwnLane {
        let uplink = Uplink {
            v4: Some([127, 0, 0, 9].into()),
            bind: false,
            ..Uplink::fixture(1, "by hand")
        };
        let info = LaneInfo {
            id: LaneId(1),
            peer: None,
            tier: None,
            owner: "this device".into(),
            uplink: uplink.name.clone(),
            kind: uplink.kind,
            metered: false,
            line: uplink.line,
            hint: None,
        };
        let ips = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let names: Names = names
            .iter()
            .map(|(name, list)| ((*name).to_owned(), ips(list)))
            .collect();
        OwnLane::new(info, uplink, Resolver::new(names, &Tasks::new()), limiter)
    }

    fn target(host: &str, port: u16) -> Target {
        Target {
            host: host.into(),
            port,
            pin: None,
        }
    }

    #[tokio::test]
    async fn a_tunnel_leads_to_the_host_by_the_uplinks_address() {
        let origin = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let port = origin.local_addr().unwrap().port();
        let lane = lane(&[("origin.test", &["127.0.0.2"])], Limiter::default());
        let to = target("origin.test", port);
        let (tunnel, accepted) = tokio::join!(lane.dial(&to), origin.accept());
        let (mut tunnel, (mut far, from)) = (tunnel.unwrap(), accepted.unwrap());
        assert_eq!(tunnel.address, origin.local_addr().unwrap());
        assert_eq!(from.ip(), IpAddr::from([127, 0, 0, 9]));
        tunnel.stream.write_all(b"ping").await.unwrap();
        tunnel.stream.shutdown().await.unwrap();
        let mut got = String::new();
        far.read_to_string(&mut got).await.unwrap();
        far.write_all(b"pong").await.unwrap();
        drop(far);
        let mut back = String::new();
        tunnel.stream.read_to_string(&mut back).await.unwrap();
        assert_eq!((got.as_str(), back.as_str()), ("ping", "pong"));
        assert_eq!(tunnel.sent.bytes(), 4);
    }

    #[tokio::test]
    async fn a_pin_is_dialled_whatever_the_name_says() {
        let origin = TcpListener::bind("127.0.0.3:0").await.unwrap();
        let lane = lane(&[("origin.test", &["127.0.0.2"])], Limiter::default());
        let to = Target {
            pin: Some([127, 0, 0, 3].into()),
            ..target("origin.test", origin.local_addr().unwrap().port())
        };
        assert_eq!(
            lane.dial(&to).await.unwrap().address,
            origin.local_addr().unwrap()
        );
    }

    #[tokio::test]
    async fn addresses_that_refuse_are_passed_over() {
        let origin = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let lane = lane(
            &[("origin.test", &["127.0.0.4", "127.0.0.5", "127.0.0.2"])],
            Limiter::default(),
        );
        let to = target("origin.test", origin.local_addr().unwrap().port());
        assert_eq!(
            lane.dial(&to).await.unwrap().address,
            origin.local_addr().unwrap()
        );
    }

    #[tokio::test]
    async fn why_there_is_no_tunnel_is_told_apart() {
        let free = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut lane = lane(&[("origin.test", &["127.0.0.1"])], Limiter::default());
        let refused = lane.dial(&target("origin.test", free)).await.unwrap_err();
        assert!(matches!(&refused, DialError::Connect(e) if e.kind() == io::ErrorKind::ConnectionRefused));
        let unknown = lane.dial(&target("no-such-name.invalid", 80)).await.unwrap_err();
        assert!(matches!(unknown, DialError::Resolve { host, .. } if host == "no-such-name.invalid"));
        (lane.uplink.bind, lane.uplink.name) = (true, "gone0".into());
        let gone = lane.dial(&target("origin.test", free)).await.unwrap_err();
        assert!(matches!(gone, DialError::LaneGone), "{gone:?}");
        (lane.uplink.bind, lane.uplink.v4) = (false, Some([192, 0, 2, 77].into()));
        let moved = lane.dial(&target("origin.test", free)).await.unwrap_err();
        assert!(matches!(moved, DialError::LaneGone), "{moved:?}");
    }

    #[tokio::test]
    async fn tunnels_of_one_lane_share_its_limit_for_uploads_and_only_what_it_lets_through_counts_as_sent() {
        let cap = Cap {
            down: None,
            up: Some(Rate::bits(8)),
        };
        let origin = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let to = target("127.0.0.2", origin.local_addr().unwrap().port());
        let lane = lane(&[], Limiter::new(cap, Instant::now()));
        let (mut first, mut second) = (lane.dial(&to).await.unwrap(), lane.dial(&to).await.unwrap());
        // One byte a second: the first tunnel sends it, and the second has to wait.
        assert_eq!(first.stream.write(b"some bytes").await.unwrap(), 1);
        assert!(second.stream.write(b"some bytes").now_or_never().is_none());
        assert_eq!((first.sent.bytes(), second.sent.bytes()), (1, 0));
    }

    #[tokio::test]
    async fn tunnels_of_one_lane_share_its_limit() {
        let cap = Cap {
            down: Some(Rate::bits(8)),
            up: None,
        };
        let limiter = Limiter::new(cap, Instant::now());
        let origin = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let to = target("127.0.0.2", origin.local_addr().unwrap().port());
        let lane = lane(&[], limiter);
        let (mut first, mut second) = (lane.dial(&to).await.unwrap(), lane.dial(&to).await.unwrap());
        for _ in 0..2 {
            origin
                .accept()
                .await
                .unwrap()
                .0
                .write_all(b"some bytes")
                .await
                .unwrap();
        }
        // One byte a second: the first tunnel takes it, and the second has to wait.
        assert_eq!(first.stream.read(&mut [0; 100]).await.unwrap(), 1);
        let mut buffer = [0; 100];
        assert!(second.stream.read(&mut buffer).now_or_never().is_none());
    }
}
