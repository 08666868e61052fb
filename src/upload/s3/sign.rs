//! Requests, signed: what is asked of which object, as presigned URLs.
//!
//! The signature is in the URL, its time is the service's: where this device's clock is off, the service's `Date` says by how
//! much. Secrets are in here and nowhere else; nothing of them is ever shown.
//!
//! Invariant: a request is signed just before it is sent, for as long as S3 lets clocks differ anyway.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use headers::{Date, HeaderMapExt};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use jiff::{SignedDuration, Timestamp};
use rusty_s3::signing::sign;

use super::answers::is_region;
use super::faults::Fault;
use super::place::Place;
use crate::upload::exchange::{Answer, Ask, Content};
use crate::upload::{S3Options, UploadError};

/// For how long a signature holds. S3 refuses requests whose time is 15 minutes off; shorter than that it would make
/// devices fail whose clocks are a little off, longer it would let a URL live on that nobody needs any more. It is looked at
/// when a request arrives, not when its body has.
const LIFETIME: Duration = Duration::from_secs(15 * 60);
/// A difference of clocks that cannot be why a request was refused.
const CLOSE: i64 = 60;

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) method: Method,
    /// Of the object; else of its bucket.
    pub(super) object: bool,
    pub(super) query: Vec<(&'static str, String)>,
    /// Names in lower case.
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) content: Content,
}

impl Operation {
    /// Of the object, without anything.
    pub(super) const fn object(method: Method) -> Self {
        Self {
            method,
            object: true,
            query: Vec::new(),
            headers: Vec::new(),
            content: Content::Empty,
        }
    }

    pub(super) fn query(mut self, name: &'static str, value: impl ToString) -> Self {
        self.query.push((name, value.to_string()));
        self.query.sort_unstable();
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self.headers.sort_unstable();
        self
    }

    pub(super) fn content(mut self, content: Content) -> Self {
        self.content = content;
        self
    }
}

/// Signs requests for one place.
pub(super) struct Signer {
    pub(super) place: Place,
    options: S3Options,
    learned: Mutex<Learned>,
}

/// What the service told of itself.
#[derive(Clone, Debug)]
struct Learned {
    region: String,
    /// How far its clock is ahead of ours, in seconds.
    ahead: i64,
}

/// A request, and what it was signed with.
#[derive(Debug)]
pub(super) struct Signed {
    pub(super) ask: Ask,
    region: String,
    /// In seconds since 1970, by the service's clock as far as it was known.
    at: i64,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Signer {
    pub(super) fn new(place: Place, options: S3Options) -> Self {
        let learned = Mutex::new(Learned {
            region: options.region.clone(),
            ahead: 0,
        });
        Self {
            place,
            options,
            learned,
        }
    }

    /// The service's host, for messages.
    pub(super) fn host(&self) -> String {
        let learned = self.learned();
        let bucket = self.place.bucket(&learned.region).ok();
        bucket
            .and_then(|b| b.base_url().host_str().map(ToOwned::to_owned))
            .unwrap_or_default()
    }

    /// The request, signed now.
    pub(super) fn sign(&self, operation: &Operation) -> Result<Signed, UploadError> {
        self.sign_at(operation, SystemTime::now())
    }

    fn sign_at(&self, operation: &Operation, now: SystemTime) -> Result<Signed, UploadError> {
        let learned = self.learned();
        let bucket = self.place.bucket(&learned.region)?;
        let url = if operation.object {
            bucket.object_url(&self.place.key)
        } else {
            bucket.base_url().clone()
        };
        let impossible = || UploadError::Answer {
            host: self.host(),
            why: "its clock, or this device's, says a time that no signature can have".to_owned(),
        };
        let time = Timestamp::try_from(now).ok();
        let time = time.and_then(|t| t.checked_add(SignedDuration::from_secs(learned.ahead)).ok());
        let time = time.ok_or_else(impossible)?;
        let url = sign(
            &time,
            method(&operation.method),
            url,
            &self.options.access_key,
            &self.options.secret_key,
            self.options.session_token.as_deref(),
            &learned.region,
            LIFETIME.as_secs(),
            operation
                .query
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
            operation
                .headers
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
        );
        let mut ask = Ask::new(operation.method.clone(), url);
        ask.headers = headers_of(&operation.headers);
        ask.content = operation.content.clone();
        Ok(Signed {
            ask,
            region: learned.region,
            at: time.as_second(),
        })
    }

    /// Whether a refusal says something that makes the same request worth signing again: the service's time, or where the
    /// bucket is.
    pub(super) fn learn(&self, signed: &Signed, answer: &Answer, fault: &Fault) -> bool {
        self.learn_at(signed, answer, fault, SystemTime::now())
    }

    fn learn_at(&self, signed: &Signed, answer: &Answer, fault: &Fault, now: SystemTime) -> bool {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(region) = elsewhere(answer, fault)
            && region != signed.region
        {
            learned.region = region;
            return true;
        }
        if !matches!(answer.status, StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN) {
            return false;
        }
        let (Some(theirs), Some(ours)) = (date(answer), seconds(now)) else {
            return false;
        };
        if (theirs - signed.at).abs() <= CLOSE {
            return false;
        }
        let ahead = theirs - ours;
        let new = (ahead - learned.ahead).abs() > CLOSE;
        // Another request may have learned it while this one was under way.
        let old = (ours + learned.ahead - signed.at).abs() > CLOSE;
        learned.ahead = ahead;
        new || old
    }

    /// How far the service's clock is ahead of this device's.
    pub(super) fn ahead(&self) -> i64 {
        self.learned().ahead
    }

    fn learned(&self) -> Learned {
        self.learned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Where the service says that the bucket is.
fn elsewhere(answer: &Answer, fault: &Fault) -> Option<String> {
    let status = answer.status.as_u16();
    if !matches!(status, 301 | 307 | 400 | 403) {
        return None;
    }
    let header = answer
        .headers
        .get("x-amz-bucket-region")
        .and_then(|value| value.to_str().ok());
    header
        .map(ToOwned::to_owned)
        .or_else(|| fault.region.clone())
        .filter(|region| is_region(region))
}

fn headers_of(pairs: &[(&'static str, String)]) -> HeaderMap {
    let pairs = pairs.iter().filter_map(|(name, value)| {
        Some((HeaderName::from_static(name), HeaderValue::from_str(value).ok()?))
    });
    pairs.collect()
}

const fn method(method: &Method) -> rusty_s3::Method {
    match *method {
        Method::HEAD => rusty_s3::Method::Head,
        Method::POST => rusty_s3::Method::Post,
        Method::PUT => rusty_s3::Method::Put,
        Method::DELETE => rusty_s3::Method::Delete,
        _ => rusty_s3::Method::Get,
    }
}

/// When the service answered, by its own clock.
fn date(answer: &Answer) -> Option<i64> {
    seconds(SystemTime::from(answer.headers.typed_get::<Date>()?))
}

fn seconds(time: SystemTime) -> Option<i64> {
    Timestamp::try_from(time).ok().map(Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use url::Url;

    fn signer(endpoint: Option<&str>, token: Option<&str>) -> Signer {
        let options = S3Options {
            endpoint: endpoint.map(|e| Url::parse(e).unwrap()),
            region: "us-east-1".into(),
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            session_token: token.map(Into::into),
        };
        let target = Url::parse("s3://examplebucket/test.txt").unwrap();
        Signer::new(Place::new(&target, "n", &options).unwrap(), options)
    }

    /// Fri, 24 May 2013 00:00:00 GMT, of the example in S3's documentation.
    fn example() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_369_353_600)
    }

    fn answer(status: u16, headers: &[(&'static str, &str)]) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers_of(
                &headers
                    .iter()
                    .map(|(n, v)| (*n, (*v).to_owned()))
                    .collect::<Vec<_>>(),
            ),
            body: Bytes::new(),
        }
    }

    fn learns(signer: &Signer, signed: &Signed, answer: &Answer, now: SystemTime) -> bool {
        signer.learn_at(signed, answer, &Fault::of(answer), now)
    }

    /// Computed by an independent implementation of Signature Version 4 from the same example.
    #[test]
    fn a_part_is_signed_with_its_checksum_as_s3s_documentation_says() {
        let operation = Operation::object(Method::PUT)
            .query("uploadId", "VXBsb2FkIElE")
            .query("partNumber", 81)
            .header("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==".to_owned());
        let signed = signer(None, None).sign_at(&operation, example()).unwrap();
        assert_eq!(
            signed.ask.url.as_str(),
            "https://examplebucket.s3.us-east-1.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256\
             &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z\
             &X-Amz-Expires=900&X-Amz-SignedHeaders=content-md5%3Bhost&partNumber=81&uploadId=VXBsb2FkIElE\
             &X-Amz-Signature=37d033684d6b160beb5790aa9ffdec31e83906dbb13cefd4e8b3f9cbe8983f57"
        );
        assert_eq!(signed.ask.headers["content-md5"], "1B2M2Y8AsgTpgAmY7PhCfg==");
    }

    #[test]
    fn no_secret_is_shown() {
        let signer = signer(None, Some("TOKEN"));
        let shown = format!("{signer:?}");
        assert!(!shown.contains("wJalr") && !shown.contains("TOKEN"), "{shown}");
        let url = signer.sign(&Operation::object(Method::HEAD)).unwrap().ask.url;
        assert!(url.as_str().contains("X-Amz-Security-Token=TOKEN") && !url.as_str().contains("wJalr"));
    }

    #[test]
    fn a_service_with_another_time_is_signed_for_by_its_own_clock_once() {
        let signer = signer(Some("https://nas.example"), None);
        let operation = Operation::object(Method::HEAD);
        let signed = signer.sign_at(&operation, example()).unwrap();
        let refusal = answer(403, &[("date", "Fri, 24 May 2013 02:00:00 GMT")]);
        assert!(learns(&signer, &signed, &refusal, example()));
        assert_eq!(signer.ahead(), 7_200);
        let again = signer.sign_at(&operation, example()).unwrap();
        assert!(again.ask.url.as_str().contains("X-Amz-Date=20130524T020000Z"));
        assert!(
            !learns(&signer, &again, &refusal, example()),
            "the second time it has another reason"
        );
        assert!(
            learns(&signer, &signed, &refusal, example()),
            "one that was signed before is worth it again"
        );
    }

    #[test]
    fn clocks_that_agree_are_not_why_it_was_refused() {
        let signer = signer(None, None);
        let signed = signer
            .sign_at(&Operation::object(Method::HEAD), example())
            .unwrap();
        for refusal in [
            answer(403, &[("date", "Fri, 24 May 2013 00:00:59 GMT")]),
            answer(403, &[("date", "yesterday")]),
            answer(403, &[]),
            answer(404, &[("date", "Fri, 24 May 2013 02:00:00 GMT")]),
        ] {
            assert!(!learns(&signer, &signed, &refusal, example()));
        }
    }

    #[test]
    fn where_the_bucket_is_is_followed_once() {
        let signer = signer(None, None);
        let operation = Operation::object(Method::HEAD);
        let signed = signer.sign_at(&operation, example()).unwrap();
        let moved = answer(301, &[("x-amz-bucket-region", "eu-central-1")]);
        assert!(learns(&signer, &signed, &moved, example()));
        let again = signer.sign_at(&operation, example()).unwrap();
        assert_eq!(
            again.ask.url.host_str(),
            Some("examplebucket.s3.eu-central-1.amazonaws.com")
        );
        assert!(again.ask.url.as_str().contains("%2Feu-central-1%2Fs3"));
        assert!(!learns(&signer, &again, &moved, example()));
        let evil = answer(301, &[("x-amz-bucket-region", "evil.example/")]);
        assert!(!learns(&signer, &again, &evil, example()));
    }
}
