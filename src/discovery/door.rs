//! What `fuzzing` may call of discovery's own: the way from a resolved service to what is told of it.

use mdns_sd::ResolvedService;
use tokio::time::Instant;

use crate::uplink::Network;

use super::daemon::{candidate, instance_of};
use super::table::{MAX_CANDIDATES, MAX_UNTOLD, Table};
use super::{Candidate, Event};

/// Who was seen, and what is still to be told, with the most that either may be.
#[derive(Debug)]
pub struct Memory(Table);

impl Memory {
    /// Nobody yet.
    pub fn new(now: Instant) -> Self {
        Self(Table::new(now))
    }

    /// A service as the library resolved it: what can be dialled of it, and whether the table took it in.
    pub fn resolved(
        &mut self,
        service: &ResolvedService,
        network: &Network,
        now: Instant,
    ) -> Option<(Candidate, bool)> {
        self.take(candidate(service, network, None)?, now)
    }

    /// The same where only these interfaces count.
    pub fn resolved_on(
        &mut self,
        service: &ResolvedService,
        network: &Network,
        only: &[String],
        now: Instant,
    ) -> Option<(Candidate, bool)> {
        self.take(candidate(service, network, Some(only))?, now)
    }

    fn take(&mut self, found: Candidate, now: Instant) -> Option<(Candidate, bool)> {
        let taken = self.0.seen(found.clone(), now);
        Some((found, taken))
    }

    /// A service of this name said goodbye.
    pub fn removed(&mut self, fullname: &str) -> Option<String> {
        let instance = instance_of(fullname)?;
        self.0.lost(&instance);
        Some(instance)
    }

    /// What is told next.
    pub fn next_event(&mut self) -> Option<Event> {
        self.0.next_event()
    }

    /// Entries and untold names.
    pub fn sizes(&self) -> (usize, usize) {
        self.0.sizes()
    }

    /// The most that [`sizes`](Self::sizes) may say.
    pub const MOST: (usize, usize) = (MAX_CANDIDATES, MAX_UNTOLD + MAX_CANDIDATES);
}
