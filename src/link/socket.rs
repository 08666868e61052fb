//! The socket of the links: deaf to whoever is not on the LAN.
//!
//! QUIC answers much by itself, before anybody is asked: an unknown version with a list of ours, a packet of no connection
//! with a reset, a first packet's fragments with memory. So the network gate (G2) lies below it, where a packet is thrown
//! away as if nobody were here (SEC-F1).

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::Gate;

/// Who was let in is not asked about again for so long: the gate looks through all interfaces, which a gigabit's packets
/// need not wait for. It is also how long a network that was left is still heard.
const LET_IN: Duration = Duration::from_millis(250);
/// Sources remembered: the busy ones of a household.
const REMEMBERED: usize = 8;

/// A socket and its gate.
pub(super) struct Gated {
    socket: Arc<dyn AsyncUdpSocket>,
    gate: Gate,
    lately: Mutex<Vec<(SocketAddr, Instant)>>,
}

impl fmt::Debug for Gated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gated").field(&self.socket).finish()
    }
}

impl Gated {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>, gate: Gate) -> Self {
        Self {
            socket,
            gate,
            lately: Mutex::default(),
        }
    }

    fn lets_in(&self, from: SocketAddr, now: Instant) -> bool {
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        lately.retain(|(_, since)| now.saturating_duration_since(*since) < LET_IN);
        if lately.iter().any(|(known, _)| *known == from) {
            return true;
        }
        let let_in = (self.gate)(super::unmapped(from));
        if let_in && lately.len() < REMEMBERED {
            lately.push((from, now));
        }
        let_in
    }
}

impl AsyncUdpSocket for Gated {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        // In a flood of what is thrown away, the runtime's own budget gives others their turn.
        loop {
            let came = ready!(self.socket.poll_recv(cx, bufs, meta))?;
            let now = Instant::now();
            let mut kept = 0;
            for place in 0..came {
                if meta.get(place).is_some_and(|m| self.lets_in(m.addr, now)) {
                    meta.swap(kept, place);
                    bufs.swap(kept, place);
                    kept += 1;
                }
            }
            if kept > 0 {
                return Poll::Ready(Ok(kept));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A socket that brings one datagram from each of these ports, all at once, and then nothing any more.
    #[derive(Debug)]
    struct Brings(Mutex<Vec<u16>>);

    impl AsyncUdpSocket for Brings {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!("nothing is sent")
        }

        fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
            unreachable!("nothing is sent")
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            bufs: &mut [IoSliceMut<'_>],
            meta: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            let ports = std::mem::take(&mut *self.0.lock().unwrap());
            for ((port, buf), meta) in ports.iter().zip(bufs).zip(meta) {
                buf[..2].copy_from_slice(&port.to_be_bytes());
                meta.addr = (Ipv4Addr::LOCALHOST, *port).into();
                meta.len = 2;
            }
            match ports.len() {
                0 => Poll::Pending,
                came => Poll::Ready(Ok(came)),
            }
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok((Ipv4Addr::LOCALHOST, 1).into())
        }
    }

    #[test]
    fn sec_f1_quic_never_sees_a_packet_of_who_is_not_on_the_lan_and_the_others_come_whole() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let gate: Gate = Arc::new(move |from| {
            count.fetch_add(1, Ordering::Relaxed);
            from.port() % 2 == 0
        });
        let brings = Arc::new(Brings(Mutex::default()));
        let gated = Gated::new(Arc::clone(&brings) as Arc<dyn AsyncUdpSocket>, gate);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut heard = |ports: &[u16]| {
            brings.0.lock().unwrap().extend(ports);
            let mut buffers = [[0; 8]; 8];
            let mut bufs: Vec<_> = buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
            let mut meta = [RecvMeta::default(); 8];
            match gated.poll_recv(&mut cx, &mut bufs, &mut meta) {
                Poll::Ready(came) => {
                    let pairs = bufs.iter().zip(&meta).take(came.unwrap());
                    let port = |(buf, meta): (&IoSliceMut<'_>, &RecvMeta)| {
                        assert_eq!(buf[..2], meta.addr.port().to_be_bytes());
                        meta.addr.port()
                    };
                    pairs.map(port).collect()
                }
                Poll::Pending => vec![],
            }
        };
        assert_eq!(heard(&[1, 2, 3, 4, 6, 7]), [2, 4, 6]);
        assert_eq!(heard(&[1, 3]), [0; 0], "as if nobody were here");
        let before = asked.load(Ordering::Relaxed);
        assert_eq!(heard(&[2, 4, 6]), [2, 4, 6]);
        assert_eq!(asked.load(Ordering::Relaxed), before, "let in a moment ago");
    }
}
