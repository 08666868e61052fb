//! How much of what a borrower writes its lender has handed to the origin: the lender says it, in datagrams.
//!
//! Windows and buffers between the two hold more than a slow uplink carries in seconds, so the borrower counts what it is
//! told and not what it wrote, and stays at most [`AHEAD`] before it. A report is the whole sum so far: one that is lost
//! is made good by the next. Invariants: what is said of a tunnel that is not ours, or is no report, changes nothing; the
//! count never falls and never exceeds what was written, so a lender that lies only spoils its own lane; a lender that
//! reports nothing at all holds a writer up once, for [`SILENT`].

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::{Instant, Sleep};

use crate::uplink::sent::{Count, Sent};

use super::Link;
use super::wire::{self, Report};

/// Bytes that may be written before the lender has handed them on: what an uplink of 250 Mbit/s carries in 8 ms, a loaded
/// Wi-Fi's round trip, so that it never runs dry. At 4 Mbit/s it is half a second, without it were two and more.
const AHEAD: u64 = 256 << 10;
/// A report each time so much more was handed on: several before a borrower that is as far ahead as it may be is held up.
const STEP: u64 = AHEAD / 4;
/// And, of less, one in this time: what rates and bars are made of.
const EVERY: Duration = Duration::from_millis(25);
/// The last report before a pause is said again after these, should it have been lost.
const AGAIN: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];
/// A lender that has not reported anything for so long while a writer waits for it, never will.
const SILENT: Duration = Duration::from_secs(2);

/// A lender's voice about one tunnel.
#[derive(Debug)]
pub struct Reporter {
    connection: quinn::Connection,
    stream: u64,
}

impl Reporter {
    pub(super) const fn new(connection: quinn::Connection, stream: u64) -> Self {
        Self { connection, stream }
    }

    /// Tells the borrower of each progress of `sent`; never returns.
    pub async fn run(&self, mut sent: Sent) {
        let mut told = 0;
        loop {
            sent.reaches(told + 1).await;
            told = sent.bytes();
            if !self.say(told) {
                // An older borrower, or none any more.
                return std::future::pending().await;
            }
            let _ = tokio::time::timeout(EVERY, sent.reaches(told + STEP)).await;
            for pause in AGAIN {
                if tokio::time::timeout(pause, sent.reaches(told + 1)).await.is_ok() {
                    break;
                }
                self.say(told);
            }
        }
    }

    fn say(&self, sent: u64) -> bool {
        let stream = self.stream;
        let report = wire::encode_report(Report { stream, sent });
        report.is_ok_and(|bytes| self.connection.send_datagram(bytes.into()).is_ok())
    }
}

/// The tunnels that are borrowed over one link, by the numbers of their streams. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Reports(Arc<Mutex<BTreeMap<u64, Arc<Meter>>>>);

impl Reports {
    /// A meter for a tunnel in that stream. `reported`: the lender is of a version that reports.
    pub(super) fn meter(&self, stream: u64, reported: bool) -> Metered {
        let meter = Arc::new(Meter::new(reported));
        self.tunnels().insert(stream, Arc::clone(&meter));
        Metered {
            meter,
            patience: None,
            reports: self.clone(),
            stream,
        }
    }

    fn hear(&self, report: Report) {
        let meter = self.tunnels().get(&report.stream).cloned();
        if let Some(meter) = meter {
            meter.hear(report.sent);
        }
    }

    fn tunnels(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Meter>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears what the lender says for as long as the link stands.
pub(super) async fn hear(link: &Link) {
    while let Ok(datagram) = link.connection.read_datagram().await {
        if let Some(report) = wire::decode_report(&datagram) {
            link.reports.hear(report);
        }
    }
}

/// One tunnel's count.
#[derive(Debug)]
struct Meter {
    sent: Count,
    written: AtomicU64,
    /// Whether the lender has ever reported.
    heard: AtomicBool,
    /// It does not: what is written counts as sent.
    silent: AtomicBool,
    writer: AtomicWaker,
}

impl Meter {
    fn new(reported: bool) -> Self {
        Self {
            sent: Count::default(),
            written: AtomicU64::new(0),
            heard: AtomicBool::new(false),
            silent: AtomicBool::new(!reported),
            writer: AtomicWaker::new(),
        }
    }

    fn hear(&self, sent: u64) {
        self.heard.store(true, Ordering::Relaxed);
        if self.sent.raise(sent.min(self.written.load(Ordering::Relaxed))) {
            self.writer.wake();
        }
    }

    fn wrote(&self, bytes: usize) {
        let written = self.written.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        if self.silent.load(Ordering::Relaxed) {
            self.sent.raise(written);
        }
    }

    /// How much more may be written now.
    fn room(&self) -> u64 {
        if self.silent.load(Ordering::Relaxed) {
            return u64::MAX;
        }
        let ahead = self.written.load(Ordering::Relaxed) - self.sent.bytes();
        AHEAD.saturating_sub(ahead)
    }

    /// The lender does not report: from now on it is believed to hand on at once what it is given.
    fn give_up(&self) {
        self.silent.store(true, Ordering::Relaxed);
        self.sent.raise(self.written.load(Ordering::Relaxed));
    }
}

/// A borrowed tunnel's meter, as its stream has it.
#[derive(Debug)]
pub(super) struct Metered {
    meter: Arc<Meter>,
    patience: Option<Pin<Box<Sleep>>>,
    reports: Reports,
    stream: u64,
}

impl Metered {
    pub(super) fn sent(&self) -> Sent {
        self.meter.sent.sent()
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.meter.wrote(bytes);
    }

    /// Waits until something may be written; says how much.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        loop {
            if self.meter.room() == 0 {
                self.meter.writer.register(cx.waker());
            }
            // Again: a report that came before the waker was there woke nobody.
            let room = self.meter.room();
            if room > 0 {
                self.patience = None;
                return Poll::Ready(usize::try_from(room).unwrap_or(usize::MAX));
            }
            if self.meter.heard.load(Ordering::Relaxed) {
                // Its uplink carries nothing: whoever uploads notices that, and has other lanes.
                return Poll::Pending;
            }
            let patience = self
                .patience
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + SILENT)));
            ready!(patience.as_mut().poll(cx));
            if !self.meter.heard.load(Ordering::Relaxed) {
                self.meter.give_up();
            }
        }
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.reports.tunnels().remove(&self.stream);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn report(stream: u64, sent: u64) -> Report {
        Report { stream, sent }
    }

    fn room(metered: &mut Metered) -> Option<usize> {
        poll_fn(|cx| metered.poll_room(cx)).now_or_never()
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_waits_for_the_lender_when_it_is_far_ahead_and_goes_on_with_its_report() {
        let reports = Reports::default();
        let mut tunnel = reports.meter(4, true);
        reports.hear(report(4, 0));
        tunnel.wrote(AHEAD as usize);
        let waits = poll_fn(|cx| tunnel.poll_room(cx));
        let lender = async {
            tokio::time::sleep(10 * SILENT).await;
            reports.hear(report(4, 1000));
        };
        let before = Instant::now();
        let (room, ()) = tokio::join!(waits, lender);
        assert_eq!((room, before.elapsed()), (1000, 10 * SILENT));
        assert_eq!(tunnel.sent().bytes(), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lender_that_never_reports_holds_a_writer_up_once() {
        let reports = Reports::default();
        let mut tunnel = reports.meter(4, true);
        // Requests are small, and never wait.
        tunnel.wrote(AHEAD as usize - 1);
        assert_eq!(room(&mut tunnel), Some(1));
        tunnel.wrote(1);
        let before = Instant::now();
        poll_fn(|cx| tunnel.poll_room(cx)).await;
        assert_eq!(before.elapsed(), SILENT);
        assert_eq!(tunnel.sent().bytes(), AHEAD);
        tunnel.wrote(10 * AHEAD as usize);
        assert_eq!(room(&mut tunnel), Some(usize::MAX));
        assert_eq!(tunnel.sent().bytes(), 11 * AHEAD);
    }

    #[tokio::test]
    async fn a_lender_of_an_older_version_is_not_waited_for() {
        let mut tunnel = Reports::default().meter(4, false);
        tunnel.wrote(10 * AHEAD as usize);
        assert_eq!(room(&mut tunnel), Some(usize::MAX));
        assert_eq!(tunnel.sent().bytes(), 10 * AHEAD);
    }

    #[tokio::test]
    async fn sec_b11_a_report_of_a_tunnel_that_is_not_there_any_more_changes_nothing() {
        let reports = Reports::default();
        let (first, second) = (reports.meter(0, true), reports.meter(4, true));
        first.wrote(10);
        second.wrote(10);
        let sent = second.sent();
        drop(second);
        reports.hear(report(4, 10));
        reports.hear(report(8, 10));
        assert_eq!((first.sent().bytes(), sent.bytes()), (0, 0));
        assert_eq!(reports.tunnels().len(), 1);
    }

    proptest! {
        #[test]
        fn sec_b11_whatever_a_lender_claims_no_more_counts_as_sent_than_was_written(
            steps in prop::collection::vec((any::<bool>(), prop_oneof![0..1_000_000_u64, any::<u64>()]), 0..40)
        ) {
            let reports = Reports::default();
            let tunnel = reports.meter(4, true);
            let (mut written, mut before) = (0, 0);
            for (writes, value) in steps {
                if writes {
                    let part = value.min(tunnel.meter.room());
                    tunnel.wrote(part as usize);
                    written += part;
                } else {
                    reports.hear(report(4, value));
                }
                let sent = tunnel.sent().bytes();
                prop_assert!(before <= sent && sent <= written && written - sent <= AHEAD);
                before = sent;
            }
        }
    }
}
