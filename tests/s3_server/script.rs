//! What stands before the service: sees each request, and does to it what the script says.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Body as _, Incoming};
use hyper::header::{DATE, ETAG, HeaderValue, RETRY_AFTER};
use hyper::service::{Service, service_fn};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::Shared;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Create,
    Part(u32),
    Complete,
    Abort,
    ListParts,
    ListUploads,
    Head,
    Put,
    Other,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Call {
    pub kind: Kind,
    /// Where it came from: on loopback this tells the lane.
    pub from: IpAddr,
    /// Requests of the same sort (parts are one sort) before this one.
    pub nth: usize,
    /// Of its body.
    pub length: u64,
    /// Its URL's query.
    pub query: String,
    /// What it was answered with; 0: not at all.
    pub status: u16,
}

/// What is done to a request.
#[derive(Clone, Debug)]
pub enum Deed {
    /// It is served.
    Serve,
    /// It is refused with that status, code and seconds of `Retry-After`.
    Refuse(u16, &'static str, Option<u64>),
    /// It is refused with that status and code as soon as the service has so many parts.
    RefuseWith(usize, u16, &'static str),
    /// It is refused, and the answer's `Date` is so many seconds from now.
    RefuseAt(u16, &'static str, i64),
    /// It is answered with this.
    Say(u16, String),
    /// It is served where its time is right by a clock that is so many seconds ahead (within 15 minutes of the real one, which
    /// the service behind has); else refused as skewed.
    Skewed(i64),
    /// A part of its body is read, and the connection dropped.
    Drop,
    /// It is served, and the connection dropped in place of an answer.
    ServeAndDrop,
    /// It is served, and the ETag in the answer is this.
    Etag(String),
    /// It is served, with this header in the answer.
    Header(&'static str, String),
    /// It is served, after that time.
    Later(Duration),
}

pub type Script = dyn Fn(&Call) -> Deed + Send + Sync;

type Body = BoxBody<Bytes, io::Error>;

pub async fn serve(
    listener: std::net::TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, from) = tokio::select! {
            _ = stopped.changed() => return,
            accepted = listener.accept() => accepted.unwrap(),
        };
        let _ = stream.set_nodelay(true);
        connections.spawn(connection(stream, tls.clone(), from.ip(), shared.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, from: IpAddr, shared: Arc<Shared>) {
    match tls {
        None => speak(stream, from, shared).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                speak(stream, from, shared).await;
            }
        }
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin, from: IpAddr, shared: Arc<Shared>) {
    let service = service_fn(move |request| answer(request, from, shared.clone()));
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let _ = connection.await;
}

/// An error drops the connection.
async fn answer(request: Request<Incoming>, from: IpAddr, shared: Arc<Shared>) -> io::Result<Response<Body>> {
    let mut call = describe(&request, from, &shared);
    let deed = (shared.script)(&call);
    let at = {
        let mut calls = shared.calls.lock().unwrap();
        calls.push(call.clone());
        calls.len() - 1
    };
    let answered = act(deed, request, &shared).await;
    call.status = answered.as_ref().map_or(0, |response| response.status().as_u16());
    if let Some(known) = shared.calls.lock().unwrap().get_mut(at) {
        known.status = call.status;
    }
    answered
}

async fn act(deed: Deed, request: Request<Incoming>, shared: &Shared) -> io::Result<Response<Body>> {
    match deed {
        Deed::Serve => served(request, shared).await,
        Deed::Refuse(status, code, after) => {
            drain(request).await;
            let mut response = error(status, code);
            if let Some(after) = after {
                response
                    .headers_mut()
                    .insert(RETRY_AFTER, HeaderValue::from(after));
            }
            Ok(response)
        }
        Deed::RefuseWith(parts, status, code) => {
            while shared.store.parts().len() < parts {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            drain(request).await;
            Ok(error(status, code))
        }
        Deed::RefuseAt(status, code, ahead) => {
            drain(request).await;
            let mut response = error(status, code);
            response.headers_mut().insert(DATE, date(ahead));
            Ok(response)
        }
        Deed::Say(status, body) => {
            drain(request).await;
            Ok(said(status, body))
        }
        Deed::Skewed(ahead) => {
            if is_signed_for(request.uri().query().unwrap_or_default(), ahead) {
                // The service behind has the right time, so its signature is not looked at here.
                let served = served(request, shared).await;
                return served.map(|mut response| {
                    response.headers_mut().insert(DATE, date(ahead));
                    response
                });
            }
            drain(request).await;
            let mut response = error(403, "RequestTimeTooSkewed");
            response.headers_mut().insert(DATE, date(ahead));
            Ok(response)
        }
        Deed::Drop => {
            let mut body = request.into_body();
            let _some = body.frame().await;
            Err(io::Error::other("dropped"))
        }
        Deed::ServeAndDrop => {
            served(request, shared).await?.into_body().collect().await?;
            Err(io::Error::other("dropped after it was served"))
        }
        Deed::Etag(etag) => with_header(served(request, shared).await?, ETAG.as_str(), &etag),
        Deed::Header(name, value) => with_header(served(request, shared).await?, name, &value),
        Deed::Later(time) => {
            tokio::time::sleep(time).await;
            served(request, shared).await
        }
    }
}

fn served(request: Request<Incoming>, shared: &Shared) -> BoxFuture<'static, io::Result<Response<Body>>> {
    let response = Service::call(&shared.service, request);
    async move {
        let response = response
            .await
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(response.map(|body| body.map_err(|error| io::Error::other(error.to_string())).boxed()))
    }
    .boxed()
}

/// So that the client hears the answer, and not that its body was not wanted.
async fn drain(request: Request<Incoming>) {
    let mut body = request.into_body();
    while body.frame().await.is_some() {}
}

fn with_header(mut response: Response<Body>, name: &str, value: &str) -> io::Result<Response<Body>> {
    let name = hyper::header::HeaderName::try_from(name).map_err(io::Error::other)?;
    response
        .headers_mut()
        .insert(name, HeaderValue::from_str(value).map_err(io::Error::other)?);
    Ok(response)
}

fn error(status: u16, code: &str) -> Response<Body> {
    said(
        status,
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>As scripted.</Message></Error>"),
    )
}

fn said(status: u16, body: String) -> Response<Body> {
    let body = Full::new(Bytes::from(body))
        .map_err(|never: Infallible| match never {})
        .boxed();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn date(ahead: i64) -> HeaderValue {
    let now = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(ahead);
    HeaderValue::from_str(&now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()).unwrap()
}

/// Whether the signature's time is within 5 minutes of a clock that is so many seconds ahead.
fn is_signed_for(query: &str, ahead: i64) -> bool {
    let time = query.split('&').find_map(|pair| pair.strip_prefix("X-Amz-Date="));
    let time = time.and_then(|text| jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok());
    let time = time.and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC).ok());
    let now = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(ahead);
    time.is_some_and(|time| (time.timestamp().as_second() - now.as_second()).abs() < 300)
}

fn describe(request: &Request<Incoming>, from: IpAddr, shared: &Shared) -> Call {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    let number = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("partNumber=")?.parse().ok());
    let of_upload = has("uploadId");
    let kind = match *request.method() {
        Method::POST if has("uploads") => Kind::Create,
        Method::POST if of_upload => Kind::Complete,
        Method::PUT if of_upload => Kind::Part(number.unwrap_or_default()),
        Method::PUT => Kind::Put,
        Method::DELETE if of_upload => Kind::Abort,
        Method::GET if of_upload => Kind::ListParts,
        Method::GET if has("uploads") => Kind::ListUploads,
        Method::HEAD => Kind::Head,
        _ => Kind::Other,
    };
    let same = |other: &Kind| *other == kind || matches!((other, kind), (Kind::Part(_), Kind::Part(_)));
    let nth = shared
        .calls
        .lock()
        .unwrap()
        .iter()
        .filter(|call| same(&call.kind))
        .count();
    Call {
        kind,
        from,
        nth,
        length: request.body().size_hint().exact().unwrap_or_default(),
        query,
        status: 0,
    }
}
