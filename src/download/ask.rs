//! One question to the origin over one lane: a GET, its redirects, a stale connection replaced, up to an answer's head.

use std::time::Instant;

use headers::Authorization;
use headers::HeaderMapExt;
use headers::authorization::Basic;
use hyper::HeaderMap;
use hyper::Request;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, HOST, HeaderName, HeaderValue, RANGE, USER_AGENT};
use percent_encoding::percent_decode_str;
use tokio::time::timeout;
use url::{Position, Url};

use super::redirect;
use super::redirect::RedirectError;
use super::route::Route;
use crate::transfer::{Connection, Endpoint, HEAD_LIMIT, OpenError, Payload, nothing};
use crate::types::ByteRange;

/// What the program calls itself to origins, where the user says nothing else.
const AGENT: &str = concat!("tributary/", env!("CARGO_PKG_VERSION"));
/// Statuses that mean that a link from a redirect ran out, if it worked before (HTTP-12).
const EXPIRED: [u16; 4] = [401, 403, 404, 410];

/// What to ask for.
#[derive(Clone, Debug, Default)]
pub(super) struct Question {
    /// `None`: everything.
    pub(super) range: Option<ByteRange>,
    /// The If-Range header to send along.
    pub(super) condition: Option<(HeaderName, HeaderValue)>,
}

/// An answer's head, with the body still to come.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) head: HeaderMap,
    pub(super) body: Incoming,
    pub(super) connection: Connection,
    /// Where it came from, after redirects.
    pub(super) url: Url,
    pub(super) endpoint: Endpoint,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the connection broke before an answer came: {0}")]
    Http(#[source] hyper::Error),
    #[error("no answer within {HEAD_LIMIT:?}")]
    Silent,
    #[error(transparent)]
    Redirect(#[from] RedirectError),
    #[error("the URL cannot be asked for: {0}")]
    Request(String),
}

/// Asks, following redirects from the original URL or from where they ended last time.
pub(super) async fn ask(route: &Route, question: &Question) -> Result<Answer, AskError> {
    let (mut url, mut remembered) = route.start();
    let mut hops = 0;
    loop {
        let answer = once(route, &url, question).await?;
        let status = answer.status.as_u16();
        if matches!(status, 301 | 302 | 303 | 307 | 308) {
            url = redirect::next(&url, &answer.head, hops)?;
            hops += 1;
            continue;
        }
        if remembered && EXPIRED.contains(&status) && route.may_look_up_again(Instant::now()) {
            (url, remembered) = route.start();
            hops = 0;
            continue;
        }
        return Ok(answer);
    }
}

/// One request without following anything; asked again once where an idle connection turns out to be stale.
async fn once(route: &Route, url: &Url, question: &Question) -> Result<Answer, AskError> {
    let endpoint = Endpoint::of(url).ok_or_else(|| AskError::Request("it has no host".to_owned()))?;
    let mut connection = route.connection(&endpoint).await?;
    loop {
        let reused = connection.used;
        let request = request(route, url, question)?;
        let sent = timeout(HEAD_LIMIT, connection.send(request)).await;
        match sent.map_err(|_| AskError::Silent)? {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                return Ok(Answer {
                    status: parts.status,
                    head: parts.headers,
                    body,
                    connection,
                    url: url.clone(),
                    endpoint,
                });
            }
            // The origin closed it while it was idle: that says nothing about the lane.
            Err(error) if reused => {
                tracing::debug!(%error, "an idle connection was stale");
                connection = route.open(&endpoint).await?;
            }
            Err(error) => return Err(AskError::Http(error)),
        }
    }
}

fn request(route: &Route, url: &Url, question: &Question) -> Result<Request<Payload>, AskError> {
    let job = &route.shared.job;
    let invalid = |error: hyper::http::Error| AskError::Request(error.to_string());
    let mut request = Request::get(&url[Position::BeforePath..Position::AfterQuery])
        .header(HOST, &url[Position::BeforeHost..Position::AfterPort])
        .body(nothing())
        .map_err(invalid)?;
    let headers = request.headers_mut();
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if redirect::same_origin(&job.url, url)
        && let Some(password) = url_password(&job.url)
    {
        headers.typed_insert(password);
    }
    // The user's header replaces ours; one given twice is sent twice.
    let users: Vec<_> = redirect::allowed(&job.url, url, &job.headers).collect();
    for (name, _) in &users {
        headers.remove(name);
    }
    for (name, value) in users {
        headers.append(name, value.clone());
    }
    if let Some(range) = question.range {
        let last = range.end.saturating_sub(1);
        let text = format!("bytes={}-{last}", range.start);
        let value = HeaderValue::try_from(text).map_err(|e| AskError::Request(e.to_string()))?;
        headers.insert(RANGE, value);
        if let Some((name, value)) = &question.condition {
            headers.insert(name.clone(), value.clone());
        }
    }
    Ok(request)
}

/// The user name and password that the user wrote into the URL.
fn url_password(url: &Url) -> Option<Authorization<Basic>> {
    let decode = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let password = url.password().unwrap_or_default();
    let is_given = !url.username().is_empty() || !password.is_empty();
    is_given.then(|| Authorization::basic(&decode(url.username()), &decode(password)))
}
