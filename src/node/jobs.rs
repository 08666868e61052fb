//! What a client asks for, as a job that can be done, or what is wrong with it in words.

use std::path::PathBuf;
use std::str::FromStr;

use hyper::header::{HeaderName, HeaderValue};
use url::Url;

use crate::api::convert::{CHECKSUM, USAGE};
use crate::api::{Failed, GetRequest, PutRequest, S3Access, SCHEME};
use crate::download;
use crate::types::{hex, sha256_from_hex};
use crate::upload;
use crate::upload::S3Options;

/// # Errors
/// Where the URL, a header, or the checksum is not one.
pub(super) fn download(request: &GetRequest) -> Result<download::Job, Failed> {
    let wrong_digest = || wrong("a SHA-256 is 64 hexadecimal digits".into());
    let sha256 = request
        .sha256
        .as_deref()
        .map(|hex| sha256_from_hex(hex).ok_or_else(wrong_digest))
        .transpose()?;
    Ok(download::Job {
        url: url(&request.url, "https://example.org/file")?,
        headers: headers(&request.headers)?,
        sha256,
        pool: request.pool,
        shared: None,
    })
}

/// What the household offers by hand: there is no origin that anything could be sent to.
///
/// # Errors
/// Where the request asks for what only an origin has, or for something else than what is offered.
pub(super) fn shared(request: &GetRequest, shared: download::Shared) -> Result<download::Job, Failed> {
    if !request.headers.is_empty() {
        return Err(wrong(format!(
            "-H is not for {SCHEME}: it comes from members' disks"
        )));
    }
    if !request.pool {
        return Err(wrong(format!(
            "--no-pool is not for {SCHEME}: only members have it"
        )));
    }
    let digest = hex(&shared.sha256);
    if let Some(other) = request
        .sha256
        .as_ref()
        .filter(|d| !d.eq_ignore_ascii_case(&digest))
    {
        return Err(Failed {
            code: CHECKSUM,
            message: format!(
                "what is offered as `{}` has the SHA-256 {digest}, not {other}",
                shared.name
            ),
        });
    }
    Ok(download::Job {
        url: url(&format!("{SCHEME}{digest}"), "https://example.org/file")?,
        headers: Vec::new(),
        sha256: Some(shared.sha256),
        pool: true,
        shared: Some(shared),
    })
}

/// An upload that may keep its notes in `journal`.
///
/// # Errors
/// Where a URL or a header is not one, or the parts are empty.
pub(super) fn upload(request: PutRequest, journal: PathBuf) -> Result<upload::Job, Failed> {
    if request.part_size == Some(0) {
        return Err(wrong("parts of 0 bytes cannot be sent".into()));
    }
    Ok(upload::Job {
        target: url(&request.target, "s3://BUCKET/KEY or https://example.org/file")?,
        s3: request.s3.map(s3).transpose()?,
        headers: headers(&request.headers)?,
        pool: request.pool,
        part_size: request.part_size,
        abort: request.abort,
        journal: Some(journal),
    })
}

fn s3(access: S3Access) -> Result<S3Options, Failed> {
    let endpoint = access.endpoint.map(|e| url(&e, "https://s3.example.org"));
    Ok(S3Options {
        endpoint: endpoint.transpose()?,
        region: access.region,
        access_key: access.access_key,
        secret_key: access.secret_key,
        session_token: access.session_token,
    })
}

fn url(text: &str, such_as: &str) -> Result<Url, Failed> {
    let parsed = Url::parse(text);
    parsed.map_err(|e| {
        wrong(format!(
            "`{text}` is not a URL ({e}); write one such as {such_as}"
        ))
    })
}

fn headers(pairs: &[(String, String)]) -> Result<Vec<(HeaderName, HeaderValue)>, Failed> {
    let parsed = pairs.iter().map(|(name, value)| {
        let name_of = HeaderName::from_str(name).ok();
        let mut value = HeaderValue::from_str(value).ok();
        // Tokens are sent so: no debug text of a request shows them.
        value.iter_mut().for_each(|v| v.set_sensitive(true));
        let pair = name_of.zip(value);
        pair.ok_or_else(|| wrong(format!("`{name}` is not a header that can be sent")))
    });
    parsed.collect()
}

const fn wrong(message: String) -> Failed {
    Failed { code: USAGE, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> PutRequest {
        PutRequest {
            target: "https://files.example/x".into(),
            headers: vec![("Authorization".into(), "Bearer hunter2".into())],
            pool: true,
            part_size: None,
            abort: false,
            s3: None,
        }
    }

    #[test]
    fn an_upload_is_asked_for_with_what_can_be_sent_only() {
        let bad = |change: fn(&mut PutRequest)| {
            let mut request = request();
            change(&mut request);
            upload(request, "journal".into()).unwrap_err()
        };
        assert!(
            bad(|r| r.target = "nowhere".into())
                .message
                .contains("s3://BUCKET/KEY")
        );
        assert!(
            bad(|r| r.headers = vec![("a b".into(), "c".into())])
                .message
                .contains("`a b`")
        );
        let failed = bad(|r| r.part_size = Some(0));
        assert_eq!((failed.code, failed.message.contains("0 bytes")), (USAGE, true));
        let failed = bad(|r| {
            r.s3 = Some(S3Access {
                endpoint: Some("nowhere".into()),
                region: String::new(),
                access_key: String::new(),
                secret_key: String::new(),
                session_token: None,
            });
        });
        assert!(
            failed.message.contains("https://s3.example.org"),
            "{}",
            failed.message
        );
    }

    #[test]
    fn what_members_offer_is_asked_for_without_what_only_an_origin_takes() {
        let offered = || download::Shared {
            name: "film.mkv".into(),
            subject: crate::share::Subject([1; 32]),
            sha256: [0xab; 32],
            total: 7,
        };
        let plain = || GetRequest {
            url: "shared:film.mkv".into(),
            headers: Vec::new(),
            sha256: Some("AB".repeat(32)),
            pool: true,
        };
        let job = shared(&plain(), offered()).unwrap();
        assert_eq!(job.url.as_str(), format!("shared:{}", "ab".repeat(32)));
        assert_eq!((job.sha256, job.shared), (Some([0xab; 32]), Some(offered())));
        let code = |change: fn(&mut GetRequest)| {
            let mut request = plain();
            change(&mut request);
            shared(&request, offered()).unwrap_err().code
        };
        assert_eq!(code(|r| r.headers = vec![("A".into(), "b".into())]), USAGE);
        assert_eq!(code(|r| r.pool = false), USAGE);
        assert_eq!(code(|r| r.sha256 = Some("cd".repeat(32))), CHECKSUM);
    }

    #[test]
    fn sec_b11_a_jobs_headers_show_no_token() {
        let job = upload(request(), "journal".into()).unwrap();
        assert!(!format!("{job:?}").contains("hunter2"), "{job:?}");
        assert_eq!(job.journal, Some("journal".into()));
    }
}
