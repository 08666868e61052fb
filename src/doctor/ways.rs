//! Tries the ways out: resolves one name, connects to it over each uplink, and asks one web server what time it is.
//!
//! What is sent: one name to the system's resolver, a TCP handshake to port 443 over each uplink, and one plain `HEAD`
//! request to port 80 over one uplink, because its answer carries the time and needs no certificate.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use headers::{Date, Header};
use hyper::header::HeaderValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::uplink::dial::{race, ways};
use crate::uplink::limit::Limiter;
use crate::uplink::resolve::Resolver;
use crate::uplink::{Uplink, connect};

use super::facts::{Clock, Probe, Resolved, Tried};
use super::system;

/// Longer is as bad as no answer, and the whole must not take 6 s.
const RESOLVE_WITHIN: Duration = Duration::from_millis(2_500);
/// An uplink that needs longer for a handshake helps no download.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// The time of day is a nicety; nobody waits for it longer than for the rest.
const TIME_WITHIN: Duration = Duration::from_secs(2);
/// The head of an answer; the date is near its top.
const MAX_HEAD: u64 = 4096;
const HTTPS: u16 = 443;
const HTTP: u16 = 80;

/// Tries `host` over each of `uplinks`.
pub(super) async fn probe(host: Option<&str>, uplinks: &[Uplink], resolver: &Resolver) -> (Probe, Clock) {
    let Some(host) = host else {
        return (Probe::default(), clock(None));
    };
    let resolved = resolve(host, resolver).await;
    let ips = resolved.answer.as_deref().unwrap_or_default();
    let tried = join_all(uplinks.iter().map(|u| try_one(u, ips)));
    let (tried, server) = tokio::join!(tried, time_of(host, uplinks, ips));
    let probe = Probe {
        host: Some(host.to_owned()),
        resolved: Some(resolved),
        uplinks: tried,
    };
    (probe, clock(server.map(|time| (time, host.to_owned()))))
}

fn clock(server: Option<(SystemTime, String)>) -> Clock {
    Clock {
        now: SystemTime::now(),
        installed: system::installed(),
        server,
    }
}

async fn resolve(host: &str, resolver: &Resolver) -> Resolved {
    let began = Instant::now();
    let answer = tokio::time::timeout(RESOLVE_WITHIN, resolver.resolve(host)).await;
    let answer = answer.unwrap_or_else(|_| {
        let what = format!("no answer within {} s", RESOLVE_WITHIN.as_secs_f32());
        Err(io::Error::new(io::ErrorKind::TimedOut, what))
    });
    Resolved {
        took: began.elapsed(),
        answer: answer.map_err(|e| e.to_string()),
    }
}

async fn try_one(uplink: &Uplink, ips: &[IpAddr]) -> Tried {
    let result = async {
        let began = Instant::now();
        dial(uplink, ips, HTTPS, CONNECT_WITHIN).await?;
        Ok(began.elapsed())
    };
    Tried {
        uplink: uplink.name.clone(),
        result: match ips {
            [] => None,
            _ => Some(result.await.map_err(|e: io::Error| why(&e))),
        },
    }
}

/// As a download's lane does it: the families that the uplink has, the first that answers.
async fn dial(
    uplink: &Uplink,
    ips: &[IpAddr],
    port: u16,
    limit: Duration,
) -> io::Result<tokio::net::TcpStream> {
    let addresses = ways(uplink, ips, port);
    if addresses.is_empty() {
        let what = "it has no address of a family that the host has";
        return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, what));
    }
    let unlimited = Limiter::default();
    let racing = race(&addresses, |to| connect(uplink, to, limit, &unlimited));
    let won = tokio::time::timeout(limit, racing).await;
    let (_, stream) = won.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(stream)
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut => format!("no answer in {} s", CONNECT_WITHIN.as_secs()),
        io::ErrorKind::ConnectionRefused => "the connection was refused".into(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            "a router says that there is no way".into()
        }
        _ => error.to_string(),
    }
}

/// What `host` says the time is, over the uplink that answers first. `None` where it has no plain HTTP.
async fn time_of(host: &str, uplinks: &[Uplink], ips: &[IpAddr]) -> Option<SystemTime> {
    let asked = async {
        for uplink in uplinks {
            let Ok(stream) = dial(uplink, ips, HTTP, TIME_WITHIN).await else {
                continue;
            };
            if let Some(time) = ask_time(stream, host).await {
                return Some(time);
            }
        }
        None
    };
    tokio::time::timeout(TIME_WITHIN, asked).await.ok().flatten()
}

async fn ask_time(mut stream: tokio::net::TcpStream, host: &str) -> Option<SystemTime> {
    let request = format!("HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut head = Vec::new();
    // A server that resets the connection has said enough before.
    let _ = stream.take(MAX_HEAD).read_to_end(&mut head).await;
    date_of(&head)
}

/// The `Date` of an HTTP answer.
fn date_of(head: &[u8]) -> Option<SystemTime> {
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    lines.next().filter(|first| first.starts_with("HTTP/1."))?;
    let date = lines.take_while(|l| !l.is_empty()).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("date").then(|| value.trim())
    })?;
    let value = HeaderValue::from_str(date).ok()?;
    Date::decode(&mut [&value].into_iter()).ok().map(SystemTime::from)
}

#[cfg(test)]
mod tests {
    use crate::task::Tasks;

    use super::*;

    #[test]
    fn the_date_of_an_answer_is_read_and_of_anything_else_not() {
        let head = b"HTTP/1.1 200 OK\r\nServer: x\r\nDATE: Thu, 01 Jan 1970 00:01:00 GMT\r\n\r\n";
        let minute = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
        assert_eq!(date_of(head), Some(minute));
        for other in [
            &b"SSH-2.0-x\r\nDate: Thu, 01 Jan 1970 00:01:00 GMT\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nDate: yesterday\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\nDate: Thu, 01 Jan 1970 00:01:00 GMT",
            b"",
        ] {
            assert_eq!(date_of(other), None, "{}", String::from_utf8_lossy(other));
        }
    }

    #[tokio::test]
    async fn without_a_host_nothing_is_tried() {
        let resolver = Resolver::with_lookup(Default::default(), |_| panic!("a name was looked up"));
        let (probe, clock) = probe(None, &[], &resolver).await;
        assert!(probe.host.is_none() && probe.resolved.is_none() && clock.server.is_none());
    }

    #[tokio::test]
    async fn an_uplink_without_an_address_of_the_hosts_family_says_so() {
        let uplink = Uplink {
            v4: Some([192, 0, 2, 1].into()),
            ..uplink()
        };
        let tried = try_one(&uplink, &["2001:db8::1".parse().unwrap()]).await;
        assert!(tried.result.unwrap().unwrap_err().contains("family"));
        assert!(try_one(&uplink, &[]).await.result.is_none());
    }

    #[tokio::test]
    async fn a_web_server_tells_the_time() {
        let tasks = Tasks::new();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        tasks.spawn("server", async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 64];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"HEAD / HTTP/1.1\r\nHost: here\r\n"));
            let answer = b"HTTP/1.1 301 Moved\r\nDate: Thu, 01 Jan 1970 00:01:00 GMT\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        });
        let stream = tokio::net::TcpStream::connect(to).await.unwrap();
        let minute = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
        assert_eq!(ask_time(stream, "here").await, Some(minute));
    }

    fn uplink() -> Uplink {
        Uplink::fixture(1, "wan0")
    }
}
