//! What the service says, as values that were checked: everything in here comes from outside.
//!
//! Invariants: nothing of a service's words gets on a terminal or into a log but through [`shown`]; lists are bounded by the
//! caller's page, pages by [`MAX_LISTED`].

use super::grid::MAX_NUMBER;
use super::xml::{Element, Malformed, escaped, parse};

/// A page of S3's has at most 1,000; some services do not stop there.
const MAX_LISTED: usize = 10_000;
/// Longer than any upload's id or part's ETag that is known.
const MAX_TOKEN: usize = 2_048;
/// Of a service's words for people.
const MAX_SHOWN: usize = 300;

/// One page of a list, and where the next one begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page<T, Marker> {
    pub(super) found: Vec<T>,
    pub(super) next: Option<Marker>,
}

/// An upload that somebody began and did not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) id: String,
    /// When, as the service writes it: later ones are greater.
    pub(super) began: String,
}

/// A part that the service has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) number: u64,
    pub(super) size: u64,
    /// Without its quotes.
    pub(super) etag: String,
}

/// An error in the service's own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) code: String,
    pub(super) message: String,
    /// Where the bucket is.
    pub(super) region: Option<String>,
}

/// The id of an upload that was begun.
pub(super) fn upload_id(body: &[u8]) -> Result<String, Malformed> {
    let root = named(body, "InitiateMultipartUploadResult")?;
    token(root.get("UploadId"))
}

/// A page of the uploads that are not complete.
pub(super) fn uploads(body: &[u8]) -> Result<Page<Upload, (String, String)>, Malformed> {
    let root = named(body, "ListMultipartUploadsResult")?;
    let found: Result<Vec<_>, _> = root.all("Upload").take(MAX_LISTED).map(upload).collect();
    let marker = || {
        let key = root.get("NextKeyMarker")?.to_owned();
        Some((key, root.get("NextUploadIdMarker").unwrap_or_default().to_owned()))
    };
    Ok(Page {
        found: found?,
        next: if truncated(&root) { marker() } else { None },
    })
}

/// A page of the parts of an upload.
pub(super) fn parts(body: &[u8]) -> Result<Page<Listed, u64>, Malformed> {
    let root = named(body, "ListPartsResult")?;
    let found: Result<Vec<_>, _> = root.all("Part").take(MAX_LISTED).map(listed).collect();
    let next = root.get("NextPartNumberMarker").and_then(number);
    Ok(Page {
        found: found?,
        next: next.filter(|_| truncated(&root)),
    })
}

/// The ETag of an object that was completed; or the error that came with a good status.
pub(super) fn completed(body: &[u8]) -> Result<Result<String, Said>, Malformed> {
    let root = parse(body)?;
    if root.name == "Error" {
        return Ok(Err(of_error(&root)));
    }
    if root.name != "CompleteMultipartUploadResult" {
        return Err(Malformed);
    }
    Ok(Ok(unquoted(&token(root.get("ETag"))?)))
}

/// The error in an answer's body, if there is one.
pub(super) fn error(body: &[u8]) -> Option<Said> {
    let root = parse(body).ok()?;
    (root.name == "Error").then(|| of_error(&root))
}

/// What a list of parts asks to be made an object of.
pub(super) fn completion<'a>(parts: impl Iterator<Item = (u64, &'a str)>) -> String {
    let mut body =
        String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for (number, etag) in parts {
        body += &format!(
            "<Part><PartNumber>{number}</PartNumber><ETag>&quot;{}&quot;</ETag></Part>",
            escaped(etag)
        );
    }
    body + "</CompleteMultipartUpload>"
}

/// An ETag without quotes and without a mark of weakness.
pub(super) fn unquoted(etag: &str) -> String {
    let etag = etag.trim();
    etag.strip_prefix("W/")
        .unwrap_or(etag)
        .trim_matches('"')
        .to_owned()
}

/// A checked ETag of a header.
pub(super) fn etag(text: &str) -> Result<String, Malformed> {
    token(Some(&unquoted(text)))
}

/// The MD5 that an ETag is, where it has that shape.
pub(super) fn md5_of(etag: &str) -> Option<[u8; 16]> {
    let mut sum = [0; 16];
    if etag.len() != 32 || !etag.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in sum.iter_mut().zip((0..32).step_by(2)) {
        *byte = u8::from_str_radix(etag.get(at..at + 2)?, 16).ok()?;
    }
    Some(sum)
}

/// A stranger's words on one line, of bounded length, without what could disturb a terminal or a log.
pub(super) fn shown(text: &str) -> String {
    let plain = |c: char| {
        if c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        {
            '?'
        } else {
            c
        }
    };
    let mut shown: String = text.trim().chars().take(MAX_SHOWN).map(plain).collect();
    if text.trim().chars().nth(MAX_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

fn named(body: &[u8], name: &str) -> Result<Element, Malformed> {
    parse(body).and_then(|root| {
        if root.name == name {
            Ok(root)
        } else {
            Err(Malformed)
        }
    })
}

fn upload(element: &Element) -> Result<Upload, Malformed> {
    Ok(Upload {
        key: element.get("Key").ok_or(Malformed)?.to_owned(),
        id: token(element.get("UploadId"))?,
        began: element.get("Initiated").unwrap_or_default().to_owned(),
    })
}

fn listed(element: &Element) -> Result<Listed, Malformed> {
    let number = element.get("PartNumber").and_then(number).ok_or(Malformed)?;
    if !(1..=MAX_NUMBER).contains(&number) {
        return Err(Malformed);
    }
    Ok(Listed {
        number,
        size: element.get("Size").and_then(self::number).ok_or(Malformed)?,
        // A service may leave it out; then the part cannot be told to be ours.
        etag: element
            .get("ETag")
            .map(unquoted)
            .filter(|e| e.len() <= MAX_TOKEN)
            .unwrap_or_default(),
    })
}

fn of_error(root: &Element) -> Said {
    Said {
        code: shown(root.get("Code").unwrap_or_default()),
        message: shown(root.get("Message").unwrap_or_default()),
        region: root.get("Region").filter(|r| is_region(r)).map(ToOwned::to_owned),
    }
}

/// Whether this could be a region's name: it becomes part of a host's.
pub(super) fn is_region(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn truncated(root: &Element) -> bool {
    root.get("IsTruncated").is_some_and(|text| text.trim() == "true")
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// What the service wants to hear again as it said it.
fn token(text: Option<&str>) -> Result<String, Malformed> {
    let text = text.ok_or(Malformed)?.trim();
    let good = (1..=MAX_TOKEN).contains(&text.len()) && !text.chars().any(char::is_control);
    if good { Ok(text.to_owned()) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood_with_and_without_s3s_namespace() {
        let with = r#"<?xml version="1.0" encoding="UTF-8"?><InitiateMultipartUploadResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Bucket>b</Bucket><Key>k</Key><UploadId>VXBsb2Fk.ID-1</UploadId></InitiateMultipartUploadResult>"#;
        assert_eq!(upload_id(with.as_bytes()), Ok("VXBsb2Fk.ID-1".into()));
        let without =
            "<InitiateMultipartUploadResult><UploadId>4_z0</UploadId></InitiateMultipartUploadResult>";
        assert_eq!(upload_id(without.as_bytes()), Ok("4_z0".into()));
    }

    #[test]
    fn a_page_of_parts_says_where_the_next_begins_only_where_there_is_one() {
        let page = |truncated: &str| {
            let body = format!(
                "<ListPartsResult><PartNumberMarker>0</PartNumberMarker><NextPartNumberMarker>81</NextPartNumberMarker>\
                 <IsTruncated>{truncated}</IsTruncated><Part><PartNumber>1</PartNumber><ETag>&quot;AB&quot;</ETag>\
                 <Size>5</Size></Part><Part><PartNumber>81</PartNumber><Size>6</Size></Part></ListPartsResult>"
            );
            parts(body.as_bytes()).unwrap()
        };
        let found = vec![
            Listed {
                number: 1,
                size: 5,
                etag: "AB".into(),
            },
            Listed {
                number: 81,
                size: 6,
                etag: String::new(),
            },
        ];
        assert_eq!(
            page("false"),
            Page {
                found: found.clone(),
                next: None
            }
        );
        assert_eq!(
            page("true"),
            Page {
                found,
                next: Some(81)
            }
        );
    }

    #[test]
    fn a_part_with_an_impossible_number_spoils_the_list() {
        for number in ["0", "10001", "-1", "x", ""] {
            let body = format!(
                "<ListPartsResult><Part><PartNumber>{number}</PartNumber><Size>5</Size></Part></ListPartsResult>"
            );
            assert_eq!(parts(body.as_bytes()), Err(Malformed), "{number}");
        }
    }

    #[test]
    fn unfinished_uploads_are_read_with_their_age() {
        let body = "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker>\
                    <NextUploadIdMarker>u2</NextUploadIdMarker><Upload><Key>k</Key><UploadId>u1</UploadId>\
                    <Initiated>2026-01-02T00:00:00.000Z</Initiated></Upload></ListMultipartUploadsResult>";
        let page = uploads(body.as_bytes()).unwrap();
        let upload = Upload {
            key: "k".into(),
            id: "u1".into(),
            began: "2026-01-02T00:00:00.000Z".into(),
        };
        assert_eq!(page.found, [upload]);
        assert_eq!(page.next, Some(("k".into(), "u2".into())));
    }

    #[test]
    fn an_error_with_a_good_status_is_an_error() {
        let failed = b"<Error><Code>InternalError</Code><Message>We\x1b[2J\nfailed</Message></Error>";
        // An escape character cannot be in XML at all.
        assert!(matches!(completed(failed), Ok(Err(_)) | Err(Malformed)));
        let failed = b"<Error><Code>InternalError</Code><Message>We&#27;[2J\nfailed</Message></Error>";
        let said = completed(failed).unwrap().unwrap_err();
        assert_eq!(
            (said.code.as_str(), said.message.as_str()),
            ("InternalError", "We?[2J?failed")
        );
        let done = b"<CompleteMultipartUploadResult><ETag>&#34;3858f62230ac3c915f300c664312c11f-9&#34;</ETag></CompleteMultipartUploadResult>";
        assert_eq!(
            completed(done),
            Ok(Ok("3858f62230ac3c915f300c664312c11f-9".into()))
        );
        assert_eq!(completed(b"<CompleteMultipartUploadResult/>"), Err(Malformed));
        assert_eq!(completed(b""), Err(Malformed));
    }

    #[test]
    fn a_region_that_could_lead_elsewhere_is_not_taken() {
        let said = |region: &str| {
            error(format!("<Error><Code>x</Code><Region>{region}</Region></Error>").as_bytes())
        };
        assert_eq!(said("eu-west-1").unwrap().region, Some("eu-west-1".into()));
        for bad in ["", "evil.example/", "a.b", "a@b", &"a".repeat(64)] {
            assert_eq!(said(bad).unwrap().region, None, "{bad}");
        }
    }

    #[test]
    fn ids_that_nobody_could_send_back_are_refused() {
        for id in ["", " ", "a&#10;b", &"a".repeat(MAX_TOKEN + 1)] {
            let body = format!(
                "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
            );
            assert_eq!(upload_id(body.as_bytes()), Err(Malformed), "{id}");
        }
    }

    #[test]
    fn a_completion_lists_its_parts_in_order_and_escaped() {
        assert_eq!(
            completion([(1, "a"), (80, "b<&")].into_iter()),
            "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <Part><PartNumber>1</PartNumber><ETag>&quot;a&quot;</ETag></Part>\
             <Part><PartNumber>80</PartNumber><ETag>&quot;b&lt;&amp;&quot;</ETag></Part></CompleteMultipartUpload>"
        );
    }

    #[test]
    fn only_what_looks_like_an_md5_is_taken_for_one() {
        assert_eq!(
            md5_of("d41d8cd98f00b204e9800998ecf8427e").map(|m| m[0]),
            Some(0xd4)
        );
        assert_eq!(
            md5_of("D41D8CD98F00B204E9800998ECF8427E").map(|m| m[15]),
            Some(0x7e)
        );
        for no in [
            "",
            "d41d8cd98f00b204e9800998ecf8427e-1",
            "g41d8cd98f00b204e9800998ecf8427e",
            "+41d8cd98f00b204e9800998ecf8427",
        ] {
            assert_eq!(md5_of(no), None, "{no}");
        }
    }

    #[test]
    fn words_of_strangers_are_bounded_and_on_one_line() {
        assert_eq!(shown(" a\nb\u{1b}[0m\u{202e} "), "a?b?[0m?");
        assert_eq!(shown(&"x".repeat(1_000)).chars().count(), MAX_SHOWN + 1);
    }
}
