//! FUZ-5, FUZ-6: the first bytes of a tunnel. However they come in pieces they are judged the same, no more is read than
//! there may be, and what passes names exactly the host that was asked for, as the RFCs read it.

use std::io::ErrorKind;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tributary::fuzzing::first_bytes;

/// What all inputs are to be addressed to.
pub const HOST: &str = "origin.example";
/// The most that is looked at.
const MOST: usize = 16 << 10;

/// As a TLS client's.
pub fn check_tls(data: &[u8]) {
    judge(443, data, names_in_hello);
}

/// As an HTTP client's.
pub fn check_http(data: &[u8]) {
    judge(80, data, names_in_request);
}

/// The first byte says in which pieces the others come.
fn judge(port: u16, data: &[u8], names: fn(&[u8]) -> Option<Vec<String>>) {
    let Some((piece, bytes)) = data.split_first() else {
        return;
    };
    let verdict = verdict(port, bytes, usize::MAX);
    let pieces = match piece {
        0 => 1,
        n => usize::from(*n) * 7,
    };
    let in_pieces = self::verdict(port, bytes, pieces);
    assert_eq!(in_pieces.map(drop), verdict.map(drop), "in pieces of {pieces}");
    for read in [verdict, in_pieces].into_iter().flatten() {
        assert!(read <= bytes.len().min(MOST));
        assert_eq!(names(&bytes[..read]), Some(vec![HOST.to_owned()]), "passed on");
    }
}

fn verdict(port: u16, bytes: &[u8], piece: usize) -> Result<usize, ErrorKind> {
    let mut tunnel = Pieces { bytes, piece };
    match first_bytes(port, &mut tunnel, HOST) {
        Some(Ok(read)) => {
            assert!(bytes.starts_with(&read), "what is passed on is what came");
            Ok(read.len())
        }
        Some(Err(error)) => {
            let kind = error.kind();
            assert!(
                matches!(kind, ErrorKind::InvalidData | ErrorKind::UnexpectedEof),
                "{error}"
            );
            Err(kind)
        }
        None => panic!("waited for nothing"),
    }
}

/// Bytes that come a few at a time.
struct Pieces<'a> {
    bytes: &'a [u8],
    piece: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let n = self.piece.min(buf.remaining()).min(self.bytes.len());
        let (now, later) = self.bytes.split_at(n);
        buf.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}

/// All host names of the ClientHello that these records begin with (RFC 8446 4 and 5.1, RFC 6066 3), without a trailing
/// dot and in lower case. `None`: it is none, or not whole.
fn names_in_hello(mut records: &[u8]) -> Option<Vec<String>> {
    let mut handshake = Vec::new();
    while !records.is_empty() {
        let [22, 3, _, high, low, rest @ ..] = records else {
            break;
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (fragment, rest) = rest.split_at(length.min(rest.len()));
        handshake.extend_from_slice(fragment);
        records = rest;
    }
    let [1, a, b, c, hello @ ..] = &handshake[..] else {
        return None;
    };
    let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
    let hello = hello.get(..length)?;
    let rest = hello.get(34..)?;
    let (_session, rest) = vector(rest, 1)?;
    let (_ciphers, rest) = vector(rest, 2)?;
    let (_compressions, rest) = vector(rest, 1)?;
    let (mut extensions, _) = vector(rest, 2)?;
    let mut names = Vec::new();
    while let [a, b, rest @ ..] = extensions {
        let (body, rest) = vector(rest, 2)?;
        extensions = rest;
        if [*a, *b] != [0, 0] {
            continue;
        }
        let (mut list, _) = vector(body, 2)?;
        while let [kind, rest @ ..] = list {
            let (name, rest) = vector(rest, 2)?;
            list = rest;
            if *kind == 0 {
                names.push(host(name));
            }
        }
    }
    Some(names)
}

/// What follows a length of so many bytes, and the rest.
fn vector(bytes: &[u8], width: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(width)?;
    let length = length.iter().fold(0, |n, b| n << 8 | usize::from(*b));
    rest.split_at_checked(length)
}

/// All hosts that anybody could take a request to be for (RFC 9112 2.2, 3.2, 5): lines end where any reader ends them, a
/// space before the colon hides no field, and the target counts where it names a host.
fn names_in_request(bytes: &[u8]) -> Option<Vec<String>> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let mut lines = bytes[..end].split(|b| matches!(b, b'\r' | b'\n'));
    let mut words = lines.next()?.split(|b| *b == b' ');
    let (_method, target, version) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() || !matches!(version, b"HTTP/1.1" | b"HTTP/1.0") {
        return None;
    }
    let mut names = Vec::new();
    if !target.starts_with(b"/") && target != b"*" {
        names.push(format!("the target's: {}", String::from_utf8_lossy(target)));
    }
    for line in lines {
        let Some(colon) = line.iter().position(|b| *b == b':') else {
            continue;
        };
        if line[..colon].trim_ascii().eq_ignore_ascii_case(b"host") {
            let named = line[colon + 1..].trim_ascii();
            names.push(host(named.strip_suffix(b":80").unwrap_or(named)));
        }
    }
    Some(names)
}

fn host(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    name.strip_suffix('.').unwrap_or(&name).to_owned()
}
