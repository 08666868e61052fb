//! The first bytes of a tunnel: on the web's two ports a borrower must speak the web, to the host it named (SEC-A8).
//!
//! On 443 that is a TLS ClientHello with this server name, on 80 an HTTP/1 request with this `Host`. Without this a
//! borrower could use the uplink as a pipe for anything that listens on these ports. Other ports are open only where
//! the owner has opened them, for whatever is spoken there. Invariant: nothing is passed on before it is judged, and
//! at most [`MAX_FIRST`] bytes are looked at.

use std::io;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};

/// A ClientHello with post-quantum keys has 2 KiB, a request's header as servers limit it 8 KiB.
const MAX_FIRST: usize = 16 << 10;
/// What is read at once: most first flights fit.
const STEP: usize = 2 << 10;

/// What must come first on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A ClientHello with the host's name.
    Tls,
    /// A request to the host.
    Http,
    /// Anything.
    Any,
}

/// What bytes say so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Right as far as it goes.
    More,
    /// The protocol, and the host.
    Right,
    /// Something else.
    Wrong,
}

impl Protocol {
    /// What is spoken on `port`.
    pub const fn on(port: u16) -> Self {
        match port {
            443 => Self::Tls,
            80 => Self::Http,
            _ => Self::Any,
        }
    }
}

/// What `bytes` say, all that came so far: `host` must be as [`check_name`](crate::relay::check_name) gives it.
pub fn judge(protocol: Protocol, bytes: &[u8], host: &str) -> Verdict {
    match protocol {
        Protocol::Tls => tls(&mut Acceptor::default(), bytes, host),
        Protocol::Http => http(bytes, host),
        Protocol::Any => Verdict::Right,
    }
}

/// Reads from a tunnel until its first bytes are known to be right; they are then to be passed on.
///
/// # Errors
/// `InvalidData` if they are something else, `UnexpectedEof` if they end too soon, what reading says.
pub(super) async fn read<T>(tunnel: &mut T, protocol: Protocol, host: &str) -> io::Result<Vec<u8>>
where
    T: AsyncRead + Unpin,
{
    let mut bytes = Vec::new();
    if protocol == Protocol::Any {
        return Ok(bytes);
    }
    // It keeps what it read: each byte is looked at once, in however small pieces they come.
    let mut acceptor = Acceptor::default();
    loop {
        let mut part = [0; STEP];
        let room = STEP.min(MAX_FIRST - bytes.len());
        let new = match tunnel.read(&mut part[..room]).await? {
            0 if room == 0 => return Err(foreign()),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => &part[..n],
        };
        bytes.extend_from_slice(new);
        let verdict = match protocol {
            Protocol::Tls => tls(&mut acceptor, new, host),
            other => judge(other, &bytes, host),
        };
        match verdict {
            Verdict::Right => return Ok(bytes),
            Verdict::More => {}
            Verdict::Wrong => return Err(foreign()),
        }
    }
}

fn foreign() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the borrower does not speak to the host it named",
    )
}

/// A ClientHello in as many TLS records as it likes, read by the TLS library as a server would.
fn tls(acceptor: &mut Acceptor, mut bytes: &[u8], host: &str) -> Verdict {
    while !bytes.is_empty() {
        // An error says that it holds more than any ClientHello has.
        if !matches!(acceptor.read_tls(&mut bytes), Ok(1..)) {
            return Verdict::Wrong;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(hello)) => {
                let name = hello.client_hello().server_name().map(str::to_owned);
                return match name {
                    Some(name) if same_host(name.as_bytes(), host) => Verdict::Right,
                    _ => Verdict::Wrong,
                };
            }
            Err(_) => return Verdict::Wrong,
        }
    }
    Verdict::More
}

/// An HTTP/1 request to the host, and to nobody else in any server's reading.
fn http(bytes: &[u8], host: &str) -> Verdict {
    const LONGEST_METHOD: usize = 16;
    let method = bytes.iter().take_while(|b| b.is_ascii_uppercase()).count();
    if method > LONGEST_METHOD || (method < bytes.len() && (method == 0 || bytes[method] != b' ')) {
        return Verdict::Wrong;
    }
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Verdict::More;
    };
    match requested_host(&bytes[..end]) {
        Some(named) if same_host(named.strip_suffix(b":80").unwrap_or(named), host) => Verdict::Right,
        _ => Verdict::Wrong,
    }
}

/// The one `Host` of a request's head (RFC 9112, 3.2). `None` where servers could differ on who is meant: where the target
/// names a host of its own, which counts before `Host` (3.2.2), and where a line is malformed so that some would read
/// another field in it.
fn requested_host(head: &[u8]) -> Option<&[u8]> {
    let lone = |w: &[u8]| (w[0] == b'\r') != (w[1] == b'\n');
    if head.ends_with(b"\r") || head.windows(2).any(lone) {
        return None;
    }
    let mut lines = head
        .split(|b| *b == b'\n')
        .map(|l| l.strip_suffix(b"\r").unwrap_or(l));
    let mut words = lines.next()?.split(|b| *b == b' ');
    let (Some(_method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return None;
    };
    let of_this_host = target.starts_with(b"/") || target == b"*";
    let visible = target.iter().all(|b| *b > b' ' && *b != 0x7f);
    if !of_this_host || !visible || !matches!(version, b"HTTP/1.1" | b"HTTP/1.0") {
        return None;
    }
    let mut host = None;
    for line in lines {
        let colon = line.iter().position(|b| *b == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
        if name.is_empty() || !name.iter().all(token) {
            return None;
        }
        if name.eq_ignore_ascii_case(b"host") && host.replace(value.trim_ascii()).is_some() {
            return None;
        }
    }
    host
}

/// `host` is as `check_name` gives it: lower case, no trailing dot.
fn same_host(named: &[u8], host: &str) -> bool {
    named
        .strip_suffix(b".")
        .unwrap_or(named)
        .eq_ignore_ascii_case(host.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    const HOST: &str = "origin.example";

    fn tls(bytes: &[u8]) -> Verdict {
        judge(Protocol::Tls, bytes, HOST)
    }

    /// What a real TLS client sends first.
    fn client_hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same ClientHello in records of `size` bytes.
    fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
        let record = |part: &[u8]| [&[22, 3, 1, (part.len() >> 8) as u8, part.len() as u8], part].concat();
        hello[5..].chunks(size).flat_map(record).collect()
    }

    #[test]
    fn a_client_hello_to_the_host_is_right_from_its_last_byte_on() {
        let hello = client_hello(HOST);
        for whole in [hello.clone(), in_records(&hello, 1), in_records(&hello, 100)] {
            for len in 0..whole.len() {
                assert_eq!(tls(&whole[..len]), Verdict::More, "{len} of {}", whole.len());
            }
            assert_eq!(tls(&whole), Verdict::Right);
            assert_eq!(tls(&[&whole[..], b"early"].concat()), Verdict::Right);
        }
        assert_eq!(tls(&client_hello("ORIGIN.example")), Verdict::Right);
    }

    #[test]
    fn sec_a8_another_name_no_name_or_no_tls_is_wrong() {
        assert_eq!(tls(&client_hello("other.example")), Verdict::Wrong);
        assert_eq!(tls(&client_hello("sub.origin.example")), Verdict::Wrong);
        assert_eq!(tls(&client_hello("192.0.2.1")), Verdict::Wrong);
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"SSH-2.0-x\r\n",
            &[22, 2, 0, 0, 1, 1],
            &[22, 3, 1, 0, 0],
            &[22, 3, 1, 0xff, 0xff],
            &[22, 3, 1, 0, 4, 2, 0, 0, 0],
            &[23, 3, 3, 0, 1, 0],
            &[21, 3, 3, 0, 2, 1, 0],
        ] {
            assert_eq!(tls(bytes), Verdict::Wrong, "{bytes:?}");
        }
    }

    #[test]
    fn a_request_to_the_host_is_right_from_the_end_of_its_header_on() {
        let request =
            b"GET /a?b HTTP/1.1\r\nAccept: */*\r\nhost:  Origin.Example:80 \r\nRange: bytes=0-\r\n\r\n";
        for len in 0..request.len() {
            assert_eq!(http(&request[..len], HOST), Verdict::More, "{len}");
        }
        assert_eq!(http(request, HOST), Verdict::Right);
        assert_eq!(
            http(b"POST / HTTP/1.0\r\nHost: origin.example\r\n\r\nbody", HOST),
            Verdict::Right
        );
    }

    #[test]
    fn sec_a8_another_host_two_hosts_or_no_request_is_wrong() {
        for bytes in [
            &b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n"[..],
            b"GET / HTTP/1.1\r\nHost: origin.example.evil.example\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: origin.example\r\nHost: other.example\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: origin.example:8080\r\n\r\n",
            b"GET /\r\nHost: origin.example\r\n\r\n",
            b"GET http://other.example/ HTTP/1.1\r\nHost: origin.example\r\n\r\n",
            b"CONNECT other.example:443 HTTP/1.1\r\nHost: origin.example\r\n\r\n",
            b"GET //\tHTTP/1.1\r\n HTTP/1.1\r\nHost: origin.example\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: origin.example\r\nHost : other.example\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: origin.example\r\n other.example\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: y\rHost: other.example\r\nHost: origin.example\r\n\r\n",
            b"GET / HTTP/1.1\nHost: origin.example\n\nSSH-2.0-x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: origin.example\r\r\n\r\n",
            b"SSH-2.0-x\r\n",
            b"\x16\x03\x01",
            b" GET",
            b"AAAAAAAAAAAAAAAAAAAA",
            b"get / HTTP/1.1",
        ] {
            assert_eq!(
                http(bytes, HOST),
                Verdict::Wrong,
                "{:?}",
                String::from_utf8_lossy(bytes)
            );
        }
    }

    #[tokio::test]
    async fn first_bytes_are_read_in_whatever_pieces_they_come_and_no_further_than_need_be() {
        let hello = client_hello(HOST);
        let (mut borrower, mut tunnel) = tokio::io::duplex(7);
        let (read, ()) = tokio::join!(read(&mut tunnel, Protocol::Tls, HOST), async {
            borrower.write_all(&hello).await.unwrap();
        });
        assert_eq!(read.unwrap(), hello);
        assert!(
            super::read(&mut tunnel, Protocol::Any, HOST)
                .await
                .unwrap()
                .is_empty()
        );
    }

    #[tokio::test]
    async fn endless_and_cut_off_beginnings_are_errors() {
        let endless = [&b"GET / HTTP/1.1\r\n"[..], &[b'x'; MAX_FIRST]].concat();
        let error = read(&mut &endless[..], Protocol::Http, HOST).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let cut = read(&mut &b"GET / HT"[..], Protocol::Http, HOST)
            .await
            .unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fall_over(bytes in prop::collection::vec(any::<u8>(), 0..300), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let _ = tls(&bytes);
            let _ = http(&bytes, HOST);
            let mut hello = client_hello(HOST);
            for (at, value) in flips {
                let at = at.index(hello.len());
                hello[at] = value;
            }
            let _ = tls(&hello);
        }
    }
}
