//! One connection out of several addresses, the way RFC 8305 ("happy eyeballs") says: families in turn, the next
//! address after a short head start or at once when one fails, the first that works wins.
//!
//! Invariant: only addresses that were given are tried, each at most once, and at most [`MAX_TRIES`] of them.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::uplink::Uplink;

/// The head start of one address over the next: RFC 8305's recommended delay.
pub const STAGGER: Duration = Duration::from_millis(250);
/// Enough for two dead addresses of each family; more would only delay the verdict.
pub const MAX_TRIES: usize = 6;

/// The addresses to try, in order: families alternate, the first answer's family first.
fn order(ips: &[IpAddr]) -> Vec<IpAddr> {
    let first_v6 = ips.first().is_some_and(IpAddr::is_ipv6);
    let mut first = ips.iter().filter(|ip| ip.is_ipv6() == first_v6);
    let mut second = ips.iter().filter(|ip| ip.is_ipv6() != first_v6);
    let mut ordered: Vec<IpAddr> = Vec::with_capacity(MAX_TRIES);
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] || ordered.len() >= MAX_TRIES {
            ordered.truncate(MAX_TRIES);
            return ordered;
        }
        for ip in pair.into_iter().flatten() {
            if !ordered.contains(ip) {
                ordered.push(*ip);
            }
        }
    }
}

/// Where to connect to by `uplink`, in order: `port` at those of `ips` whose family it has.
pub fn ways(uplink: &Uplink, ips: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    let usable = |ip: &&IpAddr| !uplink.bind || uplink.source(**ip).is_some();
    let usable: Vec<IpAddr> = ips.iter().filter(usable).copied().collect();
    let at = |ip| SocketAddr::new(ip, port);
    order(&usable).into_iter().map(at).collect()
}

/// Connects to the first of `addresses` that works. No deadline of its own: the caller drops it when it has waited enough.
///
/// # Errors
/// The last failure, once all have failed; `NotFound` if there was no address.
pub async fn race<T, F, Fut>(addresses: &[SocketAddr], connect: F) -> io::Result<(SocketAddr, T)>
where
    F: Fn(SocketAddr) -> Fut,
    Fut: Future<Output = io::Result<T>>,
{
    let attempt = |to: SocketAddr| {
        let connecting = connect(to);
        async move { (to, connecting.await) }
    };
    let mut waiting = addresses.iter().copied().take(MAX_TRIES);
    let mut running = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no address to connect to");
    loop {
        match waiting.next() {
            Some(next) => running.push(attempt(next)),
            None if running.is_empty() => return Err(last),
            None => {}
        }
        let more = waiting.len() > 0;
        tokio::select! {
            Some((to, result)) = running.next() => match result {
                Ok(connection) => return Ok((to, connection)),
                Err(error) => last = error,
            },
            () = tokio::time::sleep(STAGGER), if more => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::Instant;

    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    /// Connects after `ms` milliseconds if the port is even, else fails then; notes when it began.
    async fn scripted(to: SocketAddr, ms: u64) -> io::Result<u16> {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        if to.port().is_multiple_of(2) {
            Ok(to.port())
        } else {
            Err(io::Error::other("odd"))
        }
    }

    #[test]
    fn families_alternate_and_repeats_are_dropped() {
        let given = ips(&[
            "2001:db8::1",
            "2001:db8::2",
            "2001:db8::1",
            "192.0.2.1",
            "192.0.2.2",
        ]);
        assert_eq!(
            order(&given),
            ips(&["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2"])
        );
        let many: Vec<IpAddr> = (1..40).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        assert_eq!(order(&many), many[..MAX_TRIES]);
        assert!(order(&[]).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_costs_the_head_start_only() {
        let start = Instant::now();
        let connect = |to: SocketAddr| scripted(to, if to.port() == 2 { 60_000 } else { 10 });
        let won = race(&[at(2), at(4)], connect).await.unwrap();
        assert_eq!(won, (at(4), 4));
        assert_eq!(start.elapsed(), STAGGER + Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_address_costs_nothing_more() {
        let start = Instant::now();
        assert_eq!(
            race(&[at(1), at(3), at(4)], |to| scripted(to, 5))
                .await
                .unwrap()
                .1,
            4
        );
        assert_eq!(start.elapsed(), Duration::from_millis(15));
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_fail_the_last_failure_is_told_and_each_was_tried_once() {
        let tried = RefCell::new(Vec::new());
        let connect = |to: SocketAddr| {
            tried.borrow_mut().push(to.port());
            scripted(to, 300)
        };
        let error = race(&[at(1), at(3), at(5)], connect).await.unwrap_err();
        assert_eq!(error.to_string(), "odd");
        assert_eq!(*tried.borrow(), [1, 3, 5]);
        assert_eq!(
            race(&[], |to| scripted(to, 1)).await.unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
