//! One part over one lane, and whether what the service has is what was sent (SEC-B11).
//!
//! The part's MD5 goes with it, so that the service refuses what was changed on the way; the ETag that comes back must be that
//! MD5, so that a service that stored something else is found out before anything is put together.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::Method;
use hyper::header::{ETAG, HeaderMap};

use super::S3;
use super::answers::{self, md5_of, shown};
use super::books::Entry;
use super::faults::Fault;
use super::sign::Operation;
use crate::stripe::Part;
use crate::types::{ByteRange, hex};
use crate::upload::UploadError;
use crate::upload::exchange::{Answer, Content, Line, Trouble};
use crate::upload::source::Checksum;

/// A time and a region can be learned.
const LESSONS: usize = 2;
/// What a part's refusal is told with.
const WHAT: &str = "store a part of an upload";

impl S3 {
    /// Sends a part of the work over that lane.
    pub(super) async fn send_part(&self, part: Part, line: &Line) -> Result<(), Trouble> {
        let range = self.grid.range(part);
        let md5 = self.md5(range).await.map_err(Trouble::Fatal)?;
        let operation = self.storing(range, md5);
        self.books.begins(self.grid.number(range));
        let mut lessons = 0;
        loop {
            let signed = self.service.signer.sign(&operation).map_err(Trouble::Fatal)?;
            let answer = line.exchange(&signed.ask).await?;
            if answer.status.is_success() {
                return self.confirmed(range, md5, &answer, line);
            }
            let fault = Fault::of(&answer);
            lessons += 1;
            if lessons > LESSONS || !self.service.signer.learn(&signed, &answer, &fault) {
                return Err(self.failed(range, &fault, &answer, line));
            }
        }
    }

    /// The MD5 of a range of the file, as it is now.
    pub(super) async fn md5(&self, range: ByteRange) -> Result<[u8; 16], UploadError> {
        let digest = self
            .source
            .digest(&Part { item: 0, range }, Checksum::Md5)
            .await?;
        digest
            .try_into()
            .map_err(|_| UploadError::Task("an MD5 has 16 bytes".to_owned()))
    }

    /// The request that stores that range: as a part, or as the whole object.
    pub(super) fn storing(&self, range: ByteRange, md5: [u8; 16]) -> Operation {
        let mut operation = Operation::object(Method::PUT)
            .header("content-md5", BASE64.encode(md5))
            .content(Content::Part(Part { item: 0, range }));
        if let Some(id) = &self.upload {
            operation = operation
                .query("partNumber", self.grid.number(range))
                .query("uploadId", id);
        }
        operation
    }

    /// What the service said it stored, if that can be true.
    pub(super) fn entry(&self, range: ByteRange, md5: [u8; 16], answer: &Answer) -> Result<Entry, Wrong> {
        let etag = answer.headers.get(ETAG).and_then(|value| value.to_str().ok());
        let etag = etag
            .and_then(|text| answers::etag(text).ok())
            .ok_or(Wrong::None)?;
        let sure = match md5_of(&etag) {
            Some(theirs) if theirs == md5 => true,
            Some(_) if !is_encrypted(&answer.headers) => return Err(Wrong::Other(etag)),
            _ => false,
        };
        Ok(Entry {
            number: self.grid.number(range),
            range,
            etag,
            md5,
            sure,
        })
    }

    fn confirmed(
        &self,
        range: ByteRange,
        md5: [u8; 16],
        answer: &Answer,
        line: &Line,
    ) -> Result<(), Trouble> {
        match self.entry(range, md5, answer) {
            Ok(entry) => {
                self.books.enter(entry);
                Ok(())
            }
            Err(Wrong::None) => Err(Trouble::Fatal(
                self.service.senseless("it stored a part and names no ETag of it"),
            )),
            Err(Wrong::Other(etag)) => Err(self.wrong(range, md5, &etag, line)),
        }
    }

    /// It is sent again, over another lane if possible; if the service says the same then, it is the service.
    fn wrong(&self, range: ByteRange, md5: [u8; 16], said: &str, line: &Line) -> Trouble {
        let why = format!(
            "bytes {range} have the MD5 {}, and it says {}",
            hex(&md5),
            shown(said)
        );
        if self.books.wrong(range, line.lane(), said) {
            Trouble::Fatal(UploadError::Corrupt {
                host: self.service.signer.host(),
                why,
            })
        } else {
            Trouble::Lane(why)
        }
    }

    fn failed(&self, range: ByteRange, fault: &Fault, answer: &Answer, line: &Line) -> Trouble {
        let host = self.service.signer.host();
        let trouble = fault.trouble(answer.retry_after(), self.service.asked(&host, WHAT));
        if fault.code == "BadDigest" && self.books.wrong(range, line.lane(), &fault.code) {
            let why = format!("bytes {range} come to it with another checksum, over whatever lane");
            return Trouble::Fatal(UploadError::Corrupt { host, why });
        }
        trouble
    }
}

/// What is wrong with an ETag.
#[derive(Debug)]
pub(super) enum Wrong {
    /// There is none.
    None,
    /// It is of something else.
    Other(String),
}

/// Whether the service says that it encrypts with a key of somebody's: its ETags are no MD5 then, whatever they look like.
fn is_encrypted(headers: &HeaderMap) -> bool {
    let own = headers
        .get("x-amz-server-side-encryption")
        .and_then(|value| value.to_str().ok());
    own.is_some_and(|kind| kind.starts_with("aws:kms"))
        || headers.contains_key("x-amz-server-side-encryption-customer-algorithm")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderName, HeaderValue};

    #[test]
    fn only_keys_of_somebodys_make_etags_say_nothing() {
        let headers = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
        };
        assert!(is_encrypted(&headers("x-amz-server-side-encryption", "aws:kms")));
        assert!(is_encrypted(&headers(
            "x-amz-server-side-encryption",
            "aws:kms:dsse"
        )));
        assert!(is_encrypted(&headers(
            "x-amz-server-side-encryption-customer-algorithm",
            "AES256"
        )));
        assert!(!is_encrypted(&headers("x-amz-server-side-encryption", "AES256")));
        assert!(!is_encrypted(&HeaderMap::new()));
    }
}
