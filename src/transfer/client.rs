//! One HTTP/1.1 connection to an origin: a lane's tunnel, TLS on it, hyper's client on that.
//!
//! Invariants: whoever holds a [`Connection`] drives it (nothing runs in the background), so dropping it frees the tunnel
//! at once; a body is read without a hop between tasks. Every wait has a deadline, every buffer a limit (SEC-C4).

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::CertificateError;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::BufReader;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::Url;

use crate::clock;
use crate::lane::DialError;
use crate::lane::Lane;
use crate::lane::Stream;
use crate::lane::Target;
use crate::uplink::sent::Sent;

/// A lane bounds its own dial; this one only guards against a lane that does not.
const DIAL_LIMIT: Duration = Duration::from_secs(20);
/// TLS takes two round trips; slower than this, the lane is of no use.
const TLS_LIMIT: Duration = Duration::from_secs(10);
/// From request to the complete answer's head, informational answers included.
pub(crate) const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Together with [`MAX_HEADERS`], what an answer's head may take.
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 100;
/// Encrypted bytes read ahead: rustls alone reads 4 KiB at a time, which costs four system calls a TLS record.
const READ_AHEAD: usize = 64 << 10;

/// Scheme, host and port: what a connection can be used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) tls: bool,
    /// Without the brackets of an IPv6 address.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Endpoint {
    /// Of an http or https URL; `None` where it has no host or port.
    pub(crate) fn of(url: &Url) -> Option<Self> {
        let host = match url.host()? {
            url::Host::Domain(name) => name.to_owned(),
            url::Host::Ipv4(ip) => ip.to_string(),
            url::Host::Ipv6(ip) => ip.to_string(),
        };
        Some(Self {
            tls: url.scheme() == "https",
            host,
            port: url.port_or_known_default()?,
        })
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the certificate of `{host}` is not valid: {detail}")]
    Certificate { host: String, detail: String },
    #[error("this device's clock says {date}, so the certificate of `{host}` cannot be checked")]
    ClockNotSet { host: String, date: String },
    #[error("the TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
    #[error("no answer to the TLS handshake within {TLS_LIMIT:?}")]
    TlsTimeout,
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

/// What a request carries.
pub(crate) type Payload = BoxBody<Bytes, io::Error>;

/// A request without a body.
pub(crate) fn nothing() -> Payload {
    Empty::new().map_err(|never| match never {}).boxed()
}

type Driver = Pin<Box<http1::Connection<TokioIo<Box<dyn Stream>>, Payload>>>;

/// One connection; requests go over it one after the other.
pub(crate) struct Connection {
    sender: http1::SendRequest<Payload>,
    /// `None`: it has ended.
    driver: Option<Driver>,
    /// The origin's address the lane dialled.
    pub(crate) address: SocketAddr,
    /// What has really gone on to the origin's socket, TLS and all.
    pub(crate) sent: Sent,
    /// Whether the lane was told to dial exactly this address.
    pub(crate) pinned: bool,
    /// Whether a request was answered on it: then it may be stale when it is used again.
    pub(crate) used: bool,
}

impl Connection {
    /// Dials, does TLS where the endpoint wants it, and prepares HTTP.
    pub(crate) async fn open(
        lane: &dyn Lane,
        endpoint: &Endpoint,
        pin: Option<IpAddr>,
        tls: &Arc<ClientConfig>,
    ) -> Result<Self, OpenError> {
        let target = Target {
            host: endpoint.host.clone(),
            port: endpoint.port,
            pin,
        };
        let dialled = timeout(DIAL_LIMIT, lane.dial(&target)).await;
        let tunnel = dialled.unwrap_or(Err(DialError::Timeout(DIAL_LIMIT)))?;
        let stream: Box<dyn Stream> = if endpoint.tls {
            Box::new(secure(tunnel.stream, endpoint, tls).await?)
        } else {
            tunnel.stream
        };
        let (sender, driver) = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEAD)
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await?;
        Ok(Self {
            sender,
            driver: Some(Box::pin(driver)),
            address: tunnel.address,
            sent: tunnel.sent,
            pinned: pin.is_some(),
            used: false,
        })
    }

    /// Sends the request and waits for the answer's head; the caller sets the deadline.
    pub(crate) async fn send(&mut self, request: Request<Payload>) -> hyper::Result<Response<Incoming>> {
        poll_fn(|cx| {
            let ended = self.drive(cx);
            match self.sender.poll_ready(cx) {
                // An ended connection is never ready; `poll_ready` says so once it has noticed.
                Poll::Pending if ended => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                other => other,
            }
        })
        .await?;
        self.used = true;
        let mut answer = pin!(self.sender.send_request(request));
        let driver = &mut self.driver;
        poll_fn(|cx| {
            poll_driver(driver, cx);
            answer.as_mut().poll(cx)
        })
        .await
    }

    /// The next bytes of `body`, which must be of this connection's last answer. `None`: the body's end.
    pub(crate) fn poll_data(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Bytes>>> {
        loop {
            let mut frame = Pin::new(&mut *body).poll_frame(cx);
            if frame.is_pending() {
                self.drive(cx);
                frame = Pin::new(&mut *body).poll_frame(cx);
            }
            match frame {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => return Poll::Ready(Some(Ok(data))),
                    Err(_trailers) => {}
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Whether the next request could go over it, as far as can be seen without waiting.
    pub(crate) fn is_reusable(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        !self.drive(&mut cx) && matches!(self.sender.poll_ready(&mut cx), Poll::Ready(Ok(())))
    }

    /// Lets the connection work; says whether it has ended.
    fn drive(&mut self, cx: &mut Context<'_>) -> bool {
        poll_driver(&mut self.driver, cx)
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

fn poll_driver(driver: &mut Option<Driver>, cx: &mut Context<'_>) -> bool {
    if let Some(running) = driver
        && let Poll::Ready(ended) = running.as_mut().poll(cx)
    {
        if let Err(error) = ended {
            tracing::trace!(%error, "connection ended");
        }
        *driver = None;
    }
    driver.is_none()
}

async fn secure(
    stream: Box<dyn Stream>,
    endpoint: &Endpoint,
    tls: &Arc<ClientConfig>,
) -> Result<impl Stream + use<>, OpenError> {
    let name = ServerName::try_from(endpoint.host.clone()).map_err(|e| OpenError::Certificate {
        host: endpoint.host.clone(),
        detail: e.to_string(),
    })?;
    let buffered = BufReader::with_capacity(READ_AHEAD, stream);
    match timeout(TLS_LIMIT, TlsConnector::from(tls.clone()).connect(name, buffered)).await {
        Err(_) => Err(OpenError::TlsTimeout),
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(match error.get_ref().and_then(|e| e.downcast_ref()) {
            Some(refused) => {
                distrust(refused, &endpoint.host, SystemTime::now()).unwrap_or(OpenError::Tls(error))
            }
            None => OpenError::Tls(error),
        }),
    }
}

/// What it means that TLS ended with this error; `None` where it is not about who the origin is.
fn distrust(error: &rustls::Error, host: &str, calendar: SystemTime) -> Option<OpenError> {
    let (host, date) = (host.to_owned(), clock::date(calendar));
    let detail = match error {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
            | CertificateError::Expired
            | CertificateError::ExpiredContext { .. },
        ) if !clock::is_set(calendar) => return Some(OpenError::ClockNotSet { host, date }),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => format!("it is not valid yet, as this device's clock says {date}"),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => {
            format!("it has expired, as this device's clock says {date}")
        }
        rustls::Error::InvalidCertificate(why) => why.to_string(),
        rustls::Error::NoCertificatesPresented => "it showed none".to_owned(),
        _ => return None,
    };
    Some(OpenError::Certificate { host, detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(why: CertificateError, days: u64) -> String {
        let calendar = SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400);
        let error = rustls::Error::InvalidCertificate(why);
        distrust(&error, "a.example", calendar).map_or_else(String::new, |e| e.to_string())
    }

    #[test]
    fn flt_17_a_certificate_of_the_wrong_time_under_a_clock_that_was_never_set_is_no_fault_of_the_origins() {
        let unset =
            "this device's clock says 1970-01-11, so the certificate of `a.example` cannot be checked";
        for why in [CertificateError::NotValidYet, CertificateError::Expired] {
            assert_eq!(told(why, 10), unset);
        }
        assert_eq!(
            told(CertificateError::UnknownIssuer, 10),
            "the certificate of `a.example` is not valid: UnknownIssuer",
            "what is wrong at any time"
        );
    }

    #[test]
    fn flt_17_a_certificate_of_the_wrong_time_under_a_clock_that_may_be_right_is_told_with_the_date() {
        assert_eq!(
            told(CertificateError::Expired, 25_000),
            "the certificate of `a.example` is not valid: it has expired, as this device's clock says 2038-06-13"
        );
        assert_eq!(
            told(CertificateError::NotValidYet, 25_000),
            "the certificate of `a.example` is not valid: it is not valid yet, as this device's clock says 2038-06-13"
        );
    }

    #[test]
    fn what_is_not_about_the_certificate_is_left_to_the_caller() {
        let calendar = SystemTime::UNIX_EPOCH;
        assert!(distrust(&rustls::Error::HandshakeNotComplete, "a.example", calendar).is_none());
    }
}
