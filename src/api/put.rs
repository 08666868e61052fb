//! What the control API says of uploads besides the words it shares with downloads.
//!
//! Invariant: what lets somebody in somewhere (keys, tokens in headers or in a URL's query) appears in no `Debug`, so that
//! no log has it; it leaves the client only towards the daemon, which passes it to nobody but the server.

use std::fmt;

use serde::{Deserialize, Serialize};
use url::Url;

/// An upload to be done; what from, only the client knows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutRequest {
    /// `s3://BUCKET/KEY`, `tus+https://…`, `https://…`.
    pub target: String,
    /// Headers to send, name and value.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// Whether other peers' uplinks may be used.
    pub pool: bool,
    /// Parts of exactly so many bytes, but the last.
    #[serde(default)]
    pub part_size: Option<u64>,
    /// Whether to remove what an unfinished upload left at the server, instead of sending anything.
    #[serde(default)]
    pub abort: bool,
    /// Who is asking, of an S3 service.
    #[serde(default)]
    pub s3: Option<S3Access>,
}

impl fmt::Debug for PutRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("PutRequest")
            .field("target", &without_secrets(&self.target))
            .field("headers", &names)
            .field("pool", &self.pool)
            .field("part_size", &self.part_size)
            .field("abort", &self.abort)
            .field("s3", &self.s3)
            .finish()
    }
}

/// Which S3 service, and who is asking.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct S3Access {
    /// The service's URL; `null`: AWS in `region`.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// Whose key it is.
    pub access_key: String,
    /// What requests are signed with.
    pub secret_key: String,
    /// Of temporary credentials.
    #[serde(default)]
    pub session_token: Option<String>,
}

impl fmt::Debug for S3Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Access")
            .field("endpoint", &self.endpoint.as_deref().map(without_secrets))
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// What became of many files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesDone {
    /// Sent in this run.
    pub sent: u64,
    /// There already, with the same content as far as can be told.
    pub same: u64,
    /// How many were not sent.
    pub left_out: u64,
    /// The first ones of these.
    pub reasons: Vec<LeftOut>,
}

/// A file that was not sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its name in the directory.
    pub name: String,
    /// Why, in words.
    pub why: String,
}

/// A URL for logs: a user's name and password and a query, which may be a signature, are no log's business.
fn without_secrets(url: &str) -> String {
    let Ok(mut url) = Url::parse(url) else {
        return "(not a URL)".into();
    };
    url.set_query(None);
    url.set_fragment(None);
    // Where a URL has no host it has no user either.
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    url.into()
}

#[cfg(test)]
mod tests {
    use super::super::{Done, Progress, Reply, Request};
    use super::*;

    fn request() -> PutRequest {
        PutRequest {
            target: "https://me:hunter2@files.example/dir/?signature=hunter3".into(),
            headers: vec![("Authorization".into(), "Bearer hunter4".into())],
            pool: true,
            part_size: Some(8 << 20),
            abort: false,
            s3: Some(S3Access {
                endpoint: Some("https://me:hunter5@s3.example".into()),
                region: "eu-central-1".into(),
                access_key: "AKIAhunter6".into(),
                secret_key: "hunter7".into(),
                session_token: Some("hunter8".into()),
            }),
        }
    }

    #[test]
    fn sec_b11_what_lets_somebody_in_is_in_no_debug_text() {
        let shown = format!("{:?} {:#?}", Request::Put(request()), request());
        assert!(!shown.contains("hunter") && !shown.contains("AKIA"), "{shown}");
        for expected in [
            "files.example/dir/",
            "Authorization",
            "s3.example",
            "eu-central-1",
        ] {
            assert!(shown.contains(expected), "{expected} is missing in {shown}");
        }
        let odd = PutRequest {
            target: "hunter9".into(),
            ..request()
        };
        assert!(!format!("{odd:?}").contains("hunter"));
    }

    #[test]
    fn a_request_survives_the_wire_and_a_short_one_is_understood() {
        let sent = Request::Put(request());
        let text = serde_json::to_string(&sent).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), sent);
        let short = r#"{"put":{"target":"https://files.example/x","pool":false}}"#;
        let Request::Put(short) = serde_json::from_str(short).unwrap() else {
            panic!("not a put");
        };
        assert_eq!((short.part_size, short.abort, short.s3), (None, false, None));
    }

    /// As they were before there were uploads.
    #[test]
    fn older_lines_are_still_understood() {
        let progress = r#"{"progress":{"name":"x","total":3,"done":1,"rate":8,"lanes":[]}}"#;
        let Reply::Progress(Progress { upload, .. }) = serde_json::from_str(progress).unwrap() else {
            panic!("no progress");
        };
        assert!(!upload);
        let done = r#"{"done":{"path":"/x","bytes":3,"resumed":0,"elapsed":1.0,"rate":24,"duplicated":0,"lanes":[],
            "best_single":null,"speedup":null,"note":null}}"#;
        let Reply::Done(Done { target, files, .. }) = serde_json::from_str(done).unwrap() else {
            panic!("not done");
        };
        assert_eq!((target, files), (None, None));
    }
}
