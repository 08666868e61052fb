//! Names to addresses: a fixed table first, then the system's resolver. Answers are not judged here.
//!
//! Invariant: at most 16 threads wait for the system's resolver, however many callers gave up waiting.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use crate::task::Tasks;

/// What a caller waits: the C library's resolver asks a server again after 5 s, so one lost packet is survived.
pub const RESOLVE_LIMIT: Duration = Duration::from_secs(8);
/// Each holds a thread until the system's resolver gives up, which may be long after the caller did.
const MAX_LOOKUPS: usize = 16;
/// More are of no use to a dial and a burden to check.
pub const MAX_ANSWERS: usize = 64;

/// Names with addresses given by hand, for labs and demos that have no name server. Names in lower case.
pub type Names = BTreeMap<String, Vec<IpAddr>>;

type Lookup = dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync;

/// Turns names into addresses. Clones share the table and the bound on lookups.
#[derive(Clone)]
pub struct Resolver {
    names: Arc<Names>,
    lookup: Arc<Lookup>,
}

impl Resolver {
    /// `names`, then the system's resolver, whose threads are counted in `tasks`.
    pub fn new(names: Names, tasks: &Tasks) -> Self {
        // A scope of its own: no orderly end has to wait for a name server.
        let tasks = tasks.child();
        let places = Arc::new(Semaphore::new(MAX_LOOKUPS));
        Self::with_lookup(names, move |host| {
            Box::pin(system(host, tasks.clone(), places.clone()))
        })
    }

    /// `names`, then whatever `lookup` says: for tests and simulations.
    pub fn with_lookup<F>(names: Names, lookup: F) -> Self
    where
        F: Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync + 'static,
    {
        Self {
            names: Arc::new(names),
            lookup: Arc::new(lookup),
        }
    }

    /// The addresses of `host` as one answer, at least one and at most [`MAX_ANSWERS`]; an address stands for itself.
    ///
    /// # Errors
    /// What the resolver said, `NotFound` for an empty answer, `InvalidData` for too long a one, `TimedOut` after
    /// [`RESOLVE_LIMIT`].
    pub async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = bare.parse() {
            return Ok(vec![ip]);
        }
        if let Some(ips) = self
            .names
            .get(host.trim_end_matches('.').to_ascii_lowercase().as_str())
        {
            return Ok(ips.clone());
        }
        let answer = tokio::time::timeout(RESOLVE_LIMIT, (self.lookup)(host.to_owned()));
        let ips = answer
            .await
            .map_err(|_| timed_out("the name server did not answer"))??;
        match ips.len() {
            0 => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
            1..=MAX_ANSWERS => Ok(ips),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the name has too many addresses",
            )),
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

async fn system(host: String, tasks: Tasks, places: Arc<Semaphore>) -> io::Result<Vec<IpAddr>> {
    let place = places.acquire_owned().await.map_err(io::Error::other)?;
    let work = move || {
        // Held by the thread, not by the caller: see the invariant.
        let _place = place;
        let mut ips: Vec<IpAddr> = Vec::new();
        for address in (host.as_str(), 0).to_socket_addrs()? {
            if !ips.contains(&address.ip()) && ips.len() <= MAX_ANSWERS {
                ips.push(address.ip());
            }
        }
        Ok(ips)
    };
    tasks.blocking(work).await.map_err(io::Error::other)?
}

fn timed_out(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(names: &[(&str, &str)]) -> Names {
        names
            .iter()
            .map(|(name, ip)| ((*name).to_owned(), vec![ip.parse().unwrap()]))
            .collect()
    }

    #[tokio::test]
    async fn a_name_in_the_table_is_not_looked_up() {
        let resolver = Resolver::with_lookup(fixed(&[("origin.lab", "203.0.113.1")]), |_| {
            Box::pin(async { Err(io::Error::other("asked")) })
        });
        let expected: Vec<IpAddr> = vec!["203.0.113.1".parse().unwrap()];
        assert_eq!(resolver.resolve("origin.lab").await.unwrap(), expected);
        assert_eq!(resolver.resolve("Origin.LAB.").await.unwrap(), expected);
        assert!(resolver.resolve("other.lab").await.is_err());
    }

    #[tokio::test]
    async fn addresses_stand_for_themselves() {
        let resolver = Resolver::new(Names::new(), &Tasks::new());
        let one = |ip: &str| vec![ip.parse::<IpAddr>().unwrap()];
        assert_eq!(resolver.resolve("127.0.0.1").await.unwrap(), one("127.0.0.1"));
        assert_eq!(resolver.resolve("[::1]").await.unwrap(), one("::1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_never_answers_is_given_up() {
        let resolver = Resolver::with_lookup(Names::new(), |_| Box::pin(std::future::pending()));
        let error = resolver.resolve("example.com").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn empty_and_huge_answers_are_errors() {
        for (count, kind) in [(0, io::ErrorKind::NotFound), (65, io::ErrorKind::InvalidData)] {
            let resolver = Resolver::with_lookup(Names::new(), move |_| {
                Box::pin(async move { Ok(vec![IpAddr::from([192, 0, 2, 1]); count]) })
            });
            assert_eq!(resolver.resolve("example.com").await.unwrap_err().kind(), kind);
        }
    }
}
