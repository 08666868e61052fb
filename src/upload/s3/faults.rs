//! What a refusal means: for the user in words, for the scheduler whose fault it is.

use std::time::{Duration, SystemTime};

use hyper::StatusCode;

use super::answers::{self, Said, shown};
use crate::clock;
use crate::upload::UploadError;
use crate::upload::exchange::{Answer, Trouble};

/// An answer that is not what was hoped for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) status: StatusCode,
    pub(super) code: String,
    message: String,
    pub(super) region: Option<String>,
}

/// On whose behalf something was asked, for messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) host: &'a str,
    pub(super) bucket: &'a str,
    /// How far the service's clock is ahead of this device's.
    pub(super) ahead: i64,
    /// What for: `begin the upload`.
    pub(super) what: &'static str,
}

impl Fault {
    /// What the answer says. Answers to HEAD have no body; then the status must do.
    pub(super) fn of(answer: &Answer) -> Self {
        Self::said(answer.status, answers::error(&answer.body).unwrap_or_default())
    }

    /// With what a body said.
    pub(super) fn said(status: StatusCode, said: Said) -> Self {
        Self {
            status,
            code: said.code,
            message: said.message,
            region: said.region,
        }
    }

    /// Whether the service has no such upload: it was completed or removed.
    pub(super) fn is_no_upload(&self) -> bool {
        self.code == "NoSuchUpload"
    }

    /// Whether these credentials, or this service, do not do such a thing at all; one can do without.
    pub(super) fn is_not_for_us(&self) -> bool {
        let not_known = matches!(self.status.as_u16(), 405 | 501);
        not_known
            || self.status == StatusCode::FORBIDDEN
                && matches!(self.code.as_str(), "AccessDenied" | "" | "Forbidden")
    }

    /// Whether the same request may do later: some services say so with a good status.
    pub(super) fn passes(&self) -> bool {
        let busy = [
            "InternalError",
            "SlowDown",
            "ServiceUnavailable",
            "RequestTimeout",
            "OperationAborted",
        ];
        busy.contains(&self.code.as_str()) || self.status.is_server_error()
    }

    /// What to tell the user; it ends the upload.
    pub(super) fn error(&self, asked: Asked<'_>) -> UploadError {
        self.error_at(asked, SystemTime::now())
    }

    fn error_at(&self, asked: Asked<'_>, now: SystemTime) -> UploadError {
        let host = asked.host.to_owned();
        match self.advice(asked, now) {
            Some(advice) => UploadError::Refused {
                host,
                why: format!("{advice}{}", self.words()),
            },
            None => UploadError::Status {
                host,
                status: self.status,
                why: format!("it was asked to {}{}", asked.what, self.words()),
            },
        }
    }

    fn advice(&self, asked: Asked<'_>, now: SystemTime) -> Option<String> {
        let Asked { bucket, what, .. } = asked;
        Some(match self.code.as_str() {
            "InvalidAccessKeyId" => {
                "it does not know this access key; look at AWS_ACCESS_KEY_ID, the profile, and whether they are for this \
                 service"
                    .to_owned()
            }
            "SignatureDoesNotMatch" => {
                "the secret key does not belong to the access key, or the region is not the service's; look at \
                 AWS_SECRET_ACCESS_KEY and --region"
                    .to_owned()
            }
            "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
                "the session token is not valid any more; get new credentials and run the same command again: what was \
                 sent stays and is continued"
                    .to_owned()
            }
            "RequestTimeTooSkewed" | "RequestExpired" => clocks(asked, now),
            "NoSuchBucket" => format!("there is no bucket `{bucket}`; look at its name, or make it first"),
            "NoSuchUpload" => {
                "the upload is gone: somebody removed or completed it meanwhile; run the same command again to send \
                 anew"
                    .to_owned()
            }
            "EntityTooSmall" => "a part is shorter than it allows; try again with a larger --part-size".to_owned(),
            "InvalidPart" | "InvalidPartOrder" => {
                "it does not take the parts together; it may want equal ones: try again with --part-size 16MiB".to_owned()
            }
            "EntityTooLarge" => "the file, or a part of it, is longer than it allows".to_owned(),
            "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "UnauthorizedAccess" => {
                if asked.ahead.abs() > 60 {
                    format!("these credentials may not {what}, or {}", clocks(asked, now))
                } else {
                    format!("these credentials may not {what} in bucket `{bucket}`")
                }
            }
            "PermanentRedirect" | "AuthorizationHeaderMalformed" | "AuthorizationQueryParametersError" | "TemporaryRedirect" => {
                match &self.region {
                    Some(region) => format!("bucket `{bucket}` is in another region: try --region {region}"),
                    None => format!("bucket `{bucket}` is in another region, or somewhere else; look at --region and --endpoint"),
                }
            }
            _ if self.status == StatusCode::INSUFFICIENT_STORAGE => "it has no room left".to_owned(),
            _ => match self.status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => format!("these credentials may not {what} in bucket `{bucket}`"),
                _ => return None,
            },
        })
    }

    fn words(&self) -> String {
        match (self.code.as_str(), self.message.as_str()) {
            ("", "") => String::new(),
            (code, "") => format!(" ({code})"),
            ("", message) => format!(" ({message})"),
            (code, message) => format!(" ({code}: {message})"),
        }
    }

    /// What it means for a part that a lane was sending.
    pub(super) fn trouble(&self, retry_after: Option<Duration>, asked: Asked<'_>) -> Trouble {
        let why = || format!("{} answered {}{}", asked.host, self.status, self.words());
        match self.code.as_str() {
            "SlowDown" | "TooManyRequests" | "RequestLimitExceeded" => Trouble::Refused {
                retry_after,
                why: why(),
            },
            // It waited for the body in vain: the lane did not bring it. Or it was changed on the way.
            "RequestTimeout" | "IncompleteBody" | "BadDigest" => Trouble::Lane(why()),
            "InternalError" | "ServiceUnavailable" | "OperationAborted" => Trouble::Origin(why()),
            _ if self.status.is_server_error() && self.status != StatusCode::INSUFFICIENT_STORAGE => {
                Trouble::Origin(why())
            }
            _ if matches!(self.status.as_u16(), 408 | 425) => Trouble::Lane(why()),
            _ => Trouble::Fatal(self.error(asked)),
        }
    }
}

fn clocks(asked: Asked<'_>, now: SystemTime) -> String {
    let date = clock::date(now);
    let apart = Duration::from_secs(asked.ahead.unsigned_abs());
    let way = if asked.ahead < 0 { "behind" } else { "ahead of" };
    if asked.ahead.abs() > 60 {
        format!(
            "the clocks differ: this device's says {date}, and its own is {} {way} that; set this device's",
            spoken(apart)
        )
    } else {
        format!(
            "it finds the request's time wrong: this device's clock says {date}; set it, or look at the service's"
        )
    }
}

fn spoken(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..7_200 => format!("{} min", seconds / 60),
        seconds @ ..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// What cannot be used of a service's answer.
pub(super) fn useless(host: &str, what: &str) -> UploadError {
    UploadError::Answer {
        host: host.to_owned(),
        why: shown(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use hyper::HeaderMap;

    const ASKED: Asked<'static> = Asked {
        host: "nas",
        bucket: "box",
        ahead: 0,
        what: "begin an upload",
    };

    fn fault(status: u16, code: &str) -> Fault {
        let body = format!("<Error><Code>{code}</Code><Message>Words.</Message></Error>");
        Fault::of(&Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::from(body),
        })
    }

    fn told(fault: &Fault, ahead: i64) -> String {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400);
        fault.error_at(Asked { ahead, ..ASKED }, now).to_string()
    }

    #[test]
    fn every_refusal_of_the_issue_is_told_with_what_to_do() {
        for (status, code, words) in [
            (
                403,
                "AccessDenied",
                "nas refuses: these credentials may not begin an upload in bucket `box` (AccessDenied: Words.)",
            ),
            (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
            (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
            (404, "NoSuchBucket", "there is no bucket `box`"),
            (
                400,
                "ExpiredToken",
                "get new credentials and run the same command again",
            ),
            (404, "NoSuchUpload", "somebody removed or completed it"),
            (400, "EntityTooSmall", "--part-size"),
            (400, "InvalidPart", "--part-size"),
            (400, "InvalidPartOrder", "--part-size"),
            (301, "PermanentRedirect", "--region"),
            (
                400,
                "Whatever",
                "nas answered 400 Bad Request: it was asked to begin an upload (Whatever: Words.)",
            ),
            (507, "XMinioStorageFull", "no room"),
        ] {
            let told = told(&fault(status, code), 0);
            assert!(told.contains(words), "{code}: {told}");
        }
    }

    #[test]
    fn clocks_that_differ_are_told_with_both_times() {
        let skewed = fault(403, "RequestTimeTooSkewed");
        assert_eq!(
            told(&skewed, 7_300),
            "nas refuses: the clocks differ: this device's says 2024-10-04, and its own is 2 h ahead of that; set this device's \
             (RequestTimeTooSkewed: Words.)"
        );
        assert!(told(&skewed, -86_400 * 3).contains("3 days behind"));
        assert!(told(&skewed, 0).contains("this device's clock says 2024-10-04"));
        assert!(told(&fault(403, "AccessDenied"), 600).contains("10 min ahead of"));
    }

    #[test]
    fn a_refusal_without_words_is_judged_by_its_status() {
        let bare = |status: u16| Fault::said(StatusCode::from_u16(status).unwrap(), Said::default());
        assert_eq!(
            told(&bare(403), 0),
            "nas refuses: these credentials may not begin an upload in bucket `box`"
        );
        assert_eq!(
            told(&bare(418), 0),
            "nas answered 418 I'm a teapot: it was asked to begin an upload"
        );
        assert!(bare(403).is_not_for_us() && bare(501).is_not_for_us() && !bare(404).is_not_for_us());
    }

    #[test]
    fn whose_fault_it_is_that_a_part_did_not_get_there() {
        let trouble = |status, code| fault(status, code).trouble(None, ASKED);
        assert!(matches!(trouble(503, "SlowDown"), Trouble::Refused { .. }));
        assert!(matches!(trouble(500, "InternalError"), Trouble::Origin(_)));
        assert!(matches!(trouble(502, ""), Trouble::Origin(_)));
        assert!(matches!(trouble(400, "RequestTimeout"), Trouble::Lane(_)));
        assert!(matches!(trouble(400, "BadDigest"), Trouble::Lane(_)));
        for (status, code) in [
            (403, "AccessDenied"),
            (404, "NoSuchUpload"),
            (400, "ExpiredToken"),
            (507, ""),
        ] {
            assert!(matches!(trouble(status, code), Trouble::Fatal(_)), "{code}");
        }
    }
}
