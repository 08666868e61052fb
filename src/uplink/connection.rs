//! A connection to an origin that does not fill its uplink's queue: a ping over the same line stays short while it sends.
//!
//! Where the kernel has BBR, that decides how fast a connection sends that is alone on its uplink. Elsewhere, and where
//! several send for some time (two with BBR keep a round trip's worth in the queue, which neither knows of), `pace` does, by what the
//! kernel says of the connection each time something was written, and the kernel sends no faster (it paces a socket that
//! has a limit by itself, since Linux 4.13). Either way the socket takes little more than it sends, so what was written has nearly left. Invariant:
//! who only asks and reads costs nothing here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::setsockopt;
use socket2::{SockRef, Socket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::uplink::limit::Limiter;
use crate::uplink::pace::{LEAST, MOST, Pace, Sample};

/// Bytes that a socket may hold unsent. It asks for more when half of them are left: 1.3 ms of 100 Mbit/s, in which a Pi
/// gets to it. On 4 Mbit/s all of it is 66 ms, by which what counts as sent is wrong at most.
const UNSENT: u32 = 32 << 10;
/// Of less, nothing is to be learnt: requests.
const WORTH: u64 = 8 << 10;
/// Keeps queues short by itself.
const BBR: &[u8] = b"bbr";

/// See [`without_bbr`].
static PACED: AtomicBool = AtomicBool::new(false);

/// From now on, connections of this process are made as if the kernel had no BBR: for measurements of what happens then.
#[doc(hidden)]
pub fn without_bbr() {
    PACED.store(true, Ordering::Relaxed);
}

/// Prepares a socket before it connects.
pub(super) fn prepare(socket: &Socket) {
    // Each is an improvement where there is it.
    let _ = socket.set_tcp_notsent_lowat(UNSENT);
    if !PACED.load(Ordering::Relaxed) {
        let _ = socket.set_tcp_congestion(BBR);
    }
}

/// A connection to an origin.
#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    pacer: Option<Pacer>,
}

impl Connection {
    /// A connection made by [`super::connect()`], over the uplink with that limiter.
    pub(super) fn new(socket: TcpStream, limiter: Limiter) -> Self {
        let control = SockRef::from(&socket).tcp_congestion().unwrap_or_default();
        let pacer = match (socket.local_addr(), socket.peer_addr()) {
            (Ok(from), Ok(to)) => Some(Pacer {
                pace: Pace::default(),
                from,
                to: to.ip(),
                alone: control.starts_with(BBR),
                limiter,
                written: 0,
                rate: MOST,
            }),
            // It is gone already.
            _ => None,
        };
        Self { socket, pacer }
    }

    /// The socket.
    pub const fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.socket).poll_write(cx, data))?;
        if let Some(pacer) = &mut this.pacer {
            pacer.wrote(&this.socket, written as u64);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// Sets the rate of a connection that sends.
#[derive(Debug)]
struct Pacer {
    pace: Pace,
    from: SocketAddr,
    to: IpAddr,
    /// Whether it needs no rate while it sends alone.
    alone: bool,
    limiter: Limiter,
    /// Since the last look.
    written: u64,
    /// In force.
    rate: u64,
}

impl Pacer {
    fn wrote(&mut self, socket: &TcpStream, bytes: u64) {
        self.written += bytes;
        if self.written < WORTH {
            return;
        }
        let now = tokio::time::Instant::now().into_std();
        if !self.pace.is_due(now) {
            return;
        }
        self.written = 0;
        // Without figures (Linux before 4.6) there is nothing to go by, and the kernel would not pace either.
        let Ok(mut sample) = sample(socket) else { return };
        sample.min_rtt = self.limiter.round_trip_to(self.to, sample.min_rtt, now);
        let alone = self.limiter.sends_alone(self.from, now);
        let was_unlimited = self.rate == MOST;
        self.pace
            .cannot_tell(was_unlimited || self.limiter.senders_gather(now));
        let rate = self.pace.sample(sample, now).clamp(LEAST, MOST);
        let rate = if alone && self.alone { MOST } else { rate };
        if rate != self.rate && set_rate(socket, rate).is_ok() {
            self.rate = rate;
        }
    }
}

mod options {
    //! `SO_MAX_PACING_RATE`, which neither nix nor socket2 has.
    use nix::{libc, setsockopt_impl, sockopt_impl};

    sockopt_impl!(
        MaxPacingRate,
        SetOnly,
        libc::SOL_SOCKET,
        libc::SO_MAX_PACING_RATE,
        u32
    );
}

fn set_rate(socket: &TcpStream, rate: u64) -> nix::Result<()> {
    setsockopt(
        socket,
        options::MaxPacingRate,
        &u32::try_from(rate).unwrap_or(u32::MAX),
    )
}

/// The beginning of the kernel's `struct tcp_info` that ends with `tcpi_min_rtt`; newer kernels only append to it.
const INFO: usize = 152;
/// Where in it are `tcpi_rtt` and `tcpi_min_rtt`, both in microseconds, and `tcpi_bytes_acked`.
const RTT: usize = 68;
const MIN_RTT: usize = 148;
const ACKED: usize = 120;

/// What the kernel says of a connection.
fn sample(socket: &TcpStream) -> io::Result<Sample> {
    let mut info = [0_u8; INFO];
    let mut length = INFO as libc::socklen_t;
    #[expect(
        unsafe_code,
        reason = "nobody wraps TCP_INFO, whose length depends on the kernel"
    )]
    // SAFETY: the descriptor is open for as long as `socket` is borrowed; the kernel writes `length` bytes at most, which
    // all of `info` is, and `length` itself.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    if (length as usize) < INFO {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let micros = |at| Duration::from_micros(u32::from_ne_bytes(field(&info, at)).into());
    Ok(Sample {
        acked: u64::from_ne_bytes(field(&info, ACKED)),
        rtt: micros(RTT),
        min_rtt: micros(MIN_RTT),
    })
}

fn field<const N: usize>(info: &[u8; INFO], at: usize) -> [u8; N] {
    let mut field = [0; N];
    if let Some(bytes) = info.get(at..at + N) {
        field.copy_from_slice(bytes);
    }
    field
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(to), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn the_kernel_tells_what_was_acknowledged_and_how_long_that_took() {
        let (mut near, mut far) = pair().await;
        let before = sample(&near).unwrap().acked;
        near.write_all(&[1; 5000]).await.unwrap();
        far.read_exact(&mut [0; 5000]).await.unwrap();
        far.write_all(&[1]).await.unwrap();
        near.read_exact(&mut [0]).await.unwrap();
        let after = sample(&near).unwrap();
        assert_eq!(after.acked - before, 5000);
        assert!(
            after.min_rtt <= after.rtt && after.min_rtt < Duration::from_secs(1),
            "{after:?}"
        );
    }

    // Its time stands still: both send at once, however busy the machine is.
    #[tokio::test(start_paused = true)]
    async fn who_sends_is_paced_but_for_one_with_bbr_that_no_other_sends_beside() {
        let rate = |connection: &Connection| connection.pacer.as_ref().map(|pacer| pacer.rate);
        let some = &vec![1; WORTH as usize];
        let limiter = Limiter::default();
        let (near, _far) = pair().await;
        SockRef::from(&near).set_tcp_congestion(b"reno").unwrap();
        let mut paced = Connection::new(near, limiter.clone());
        paced.write_all(&[1; 500]).await.unwrap();
        assert_eq!(rate(&paced), Some(MOST), "a request");
        paced.write_all(some).await.unwrap();
        assert!(rate(&paced).unwrap() < MOST);
        for (beside, limiter) in [(true, limiter), (false, Limiter::default())] {
            let (near, _far) = pair().await;
            if SockRef::from(&near).set_tcp_congestion(BBR).is_err() {
                return;
            }
            let mut other = Connection::new(near, limiter);
            for _ in 0..4 {
                paced.write_all(some).await.unwrap();
                other.write_all(some).await.unwrap();
                tokio::time::advance(Duration::from_millis(600)).await;
            }
            assert_eq!(rate(&other).unwrap() < MOST, beside);
        }
    }
}
