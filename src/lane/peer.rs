//! A lane over one uplink that a peer lends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::lane::{DialError, Lane, LaneInfo, Target, Tunnel};
use crate::link::{Link, Open, Refusal, TunnelError};

/// What a link waits for the lender's answer, told to people; the lender itself gives up after 10 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(12);

/// A peer's uplink as a lane.
#[derive(Debug)]
pub struct PeerLane {
    info: LaneInfo,
    link: Arc<Link>,
    uplink: u32,
}

impl PeerLane {
    /// The uplink that the peer at the other end of `link` offers under the number `uplink`.
    pub const fn new(info: LaneInfo, link: Arc<Link>, uplink: u32) -> Self {
        Self { info, link, uplink }
    }

    async fn open(&self, target: &Target) -> Result<Tunnel, DialError> {
        let open = Open {
            host: target.host.clone(),
            port: target.port,
            uplink: self.uplink,
            pin: target.pin,
        };
        match self.link.open(&open).await {
            Ok((address, stream)) => Ok(match stream.sent() {
                Some(sent) => Tunnel {
                    stream: Box::new(stream),
                    address,
                    sent,
                },
                None => Tunnel::counting(stream, address),
            }),
            Err(_) if !self.link.is_up() => Err(DialError::LaneGone),
            Err(error) => Err(told(error, open.host)),
        }
    }
}

impl Lane for PeerLane {
    fn info(&self) -> &LaneInfo {
        &self.info
    }

    fn dial<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Tunnel, DialError>> {
        Box::pin(self.open(target))
    }
}

fn told(error: TunnelError, host: String) -> DialError {
    match error {
        TunnelError::Refused(reason) => match reason {
            Refusal::Busy => DialError::Busy,
            Refusal::Resolve => DialError::Resolve {
                host,
                source: io::Error::other(reason),
            },
            Refusal::Connect => DialError::Connect(io::Error::other(reason)),
            Refusal::Address | Refusal::Port | Refusal::Uplink | Refusal::Name => DialError::Refused(reason),
        },
        TunnelError::Link(_) => DialError::LaneGone,
        TunnelError::Wire(error) => DialError::Connect(io::Error::other(error)),
        TunnelError::Timeout => DialError::Timeout(ANSWER_LIMIT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lenders_refusals_are_told_apart_by_what_to_do_next() {
        let told = |reason: Refusal| told(reason.into(), "example.com".into());
        assert!(matches!(told(Refusal::Busy), DialError::Busy));
        assert!(matches!(told(Refusal::Resolve), DialError::Resolve { .. }));
        assert!(matches!(told(Refusal::Connect), DialError::Connect(_)));
        for never in [Refusal::Address, Refusal::Port, Refusal::Uplink, Refusal::Name] {
            assert!(matches!(told(never), DialError::Refused(reason) if reason == never));
        }
    }
}
