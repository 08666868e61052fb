//! The answer to `PROPFIND` (RFC 4918): what is in a directory.
//!
//! A reader for just this: elements by their local name, text with its entities, everything else passed over. It builds no
//! tree and defines nothing, so neither depth nor entities can be made to grow.
//!
//! Invariants: any bytes are read to an end in one pass; at most [`MAX_ENTRIES`] entries come of them.

/// As many as a directory of ours may hold.
const MAX_ENTRIES: usize = 100_000;

/// A thing in a directory, as the server tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its address, as it was written.
    pub(super) href: String,
    pub(super) directory: bool,
    pub(super) length: Option<u64>,
    pub(super) etag: Option<String>,
    pub(super) modified: Option<String>,
}

/// All entries of the answer.
pub(super) fn parse(body: &[u8]) -> Vec<Entry> {
    let text = String::from_utf8_lossy(body);
    let mut entries = Vec::new();
    let mut entry: Option<Entry> = None;
    let mut open = String::new();
    for token in (Tokens { rest: &text }) {
        match token {
            Token::Start { name, empty } => {
                match (name, &mut entry) {
                    ("response", _) => entry = Some(Entry::default()),
                    ("collection", Some(entry)) => entry.directory = true,
                    _ => {}
                }
                open.clear();
                if !empty {
                    open.push_str(name);
                }
            }
            Token::Text(raw) => {
                if let Some(entry) = &mut entry {
                    entry.take(&open, raw);
                }
            }
            Token::End(name) => {
                open.clear();
                if name == "response"
                    && let Some(entry) = entry.take()
                    && !entry.href.is_empty()
                {
                    entries.push(entry);
                    if entries.len() >= MAX_ENTRIES {
                        break;
                    }
                }
            }
        }
    }
    entries
}

impl Entry {
    /// Text that stands in the element `of`; the first of its kind counts.
    fn take(&mut self, of: &str, raw: &str) {
        let text = unescape(raw.trim());
        if text.is_empty() {
            return;
        }
        match of {
            "href" if self.href.is_empty() => self.href = text,
            "getcontentlength" if self.length.is_none() => self.length = text.parse().ok(),
            "getetag" if self.etag.is_none() => self.etag = Some(text),
            "getlastmodified" if self.modified.is_none() => self.modified = Some(text),
            _ => {}
        }
    }
}

enum Token<'a> {
    /// An element's local name.
    Start {
        name: &'a str,
        empty: bool,
    },
    End(&'a str),
    Text(&'a str),
}

struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            if self.rest.is_empty() {
                return None;
            }
            let Some(tag) = self.rest.strip_prefix('<') else {
                let end = self.rest.find('<').unwrap_or(self.rest.len());
                let (text, rest) = self.rest.split_at(end);
                self.rest = rest;
                return Some(Token::Text(text));
            };
            if let Some(data) = tag.strip_prefix("![CDATA[") {
                // Its text is taken as it is, but for entities, of which it should have none.
                return Some(Token::Text(self.upto(data, "]]>")?));
            }
            if let Some(comment) = tag.strip_prefix("!--") {
                self.upto(comment, "-->")?;
            } else if tag.starts_with(['!', '?']) {
                self.upto(tag, ">")?;
            } else {
                let tag = self.upto(tag, ">")?;
                return Some(named(tag));
            }
        }
    }
}

impl<'a> Tokens<'a> {
    /// What is before `end`; goes on behind it. `None`: it never ends, so nothing more comes.
    fn upto(&mut self, from: &'a str, end: &str) -> Option<&'a str> {
        let found = from.split_once(end);
        self.rest = found.map_or("", |(_, rest)| rest);
        found.map(|(before, _)| before)
    }
}

/// A tag by its local name.
fn named(tag: &str) -> Token<'_> {
    let (tag, closes) = match tag.strip_prefix('/') {
        Some(tag) => (tag, true),
        None => (tag, false),
    };
    let end = |c: char| c.is_ascii_whitespace() || c == '/';
    let name = tag.split(end).next().unwrap_or_default();
    let name = name.rsplit(':').next().unwrap_or_default();
    if closes {
        Token::End(name)
    } else {
        Token::Start {
            name,
            empty: tag.ends_with('/'),
        }
    }
}

/// The five entities of XML, and characters by number; what is no entity stays as it is.
fn unescape(raw: &str) -> String {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((before, after)) = rest.split_once('&') {
        text.push_str(before);
        let known = after
            .split_once(';')
            .and_then(|(name, behind)| Some((entity(name)?, behind)));
        match known {
            Some((character, behind)) => {
                text.push(character);
                rest = behind;
            }
            None => {
                text.push('&');
                rest = after;
            }
        }
    }
    text.push_str(rest);
    text
}

fn entity(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let number = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => number.parse(),
            };
            char::from_u32(number.ok()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Apache writes it.
    const APACHE: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<D:multistatus xmlns:D="DAV:" xmlns:ns0="DAV:">
<D:response xmlns:lp1="DAV:" xmlns:lp2="http://apache.org/dav/props/">
<D:href>/dav/</D:href>
<D:propstat><D:prop>
<lp1:resourcetype><D:collection/></lp1:resourcetype>
<lp1:getlastmodified>Mon, 23 Nov 2026 18:00:00 GMT</lp1:getlastmodified>
<lp1:getetag>"1000-62"</lp1:getetag>
</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat>
</D:response>
<D:response>
<D:href>/dav/a%20b&amp;c.txt</D:href>
<D:propstat><D:prop>
<lp1:resourcetype/>
<lp1:getcontentlength>1234</lp1:getcontentlength>
<lp1:getlastmodified>Mon, 23 Nov 2026 17:00:00 GMT</lp1:getlastmodified>
<lp1:getetag>&quot;4d2-62&#34;</lp1:getetag>
</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat>
</D:response>
</D:multistatus>"#;

    #[test]
    fn what_is_in_a_directory_is_read_whatever_the_prefixes_are() {
        let file = Entry {
            href: "/dav/a%20b&c.txt".into(),
            directory: false,
            length: Some(1234),
            etag: Some("\"4d2-62\"".into()),
            modified: Some("Mon, 23 Nov 2026 17:00:00 GMT".into()),
        };
        let entries = parse(APACHE.as_bytes());
        assert_eq!(entries.len(), 2);
        assert!(entries[0].directory);
        assert_eq!(entries[1], file);
        let plain = APACHE.replace("lp1:", "").replace("D:", "");
        assert_eq!(parse(plain.as_bytes()), entries);
    }

    #[test]
    fn comments_cdata_and_other_properties_do_no_harm() {
        let text = "<!DOCTYPE x><multistatus><!-- <response> --><response><href><![CDATA[/x/y]]></href>\
            <prop><other><href>/not/this</href></other><getcontentlength> 7 </getcontentlength></prop></response>";
        let entries = parse(text.as_bytes());
        assert_eq!(entries.len(), 1);
        assert_eq!((entries[0].href.as_str(), entries[0].length), ("/x/y", Some(7)));
    }

    #[test]
    fn what_is_broken_ends_without_more() {
        for text in [
            "",
            "<",
            "<response",
            "<response><href>/x",
            "<response><href>/x</href>",
            "<response></response>",
            "<!-- <response><href>/x</href></response>",
            "<response><getcontentlength>-1</getcontentlength></response>",
            "</response>",
            "&#x110000;&;&",
            "<html><body>not here</body></html>",
        ] {
            assert_eq!(parse(text.as_bytes()), [], "{text}");
        }
        let cut = &APACHE[..APACHE.len() - 60];
        assert_eq!(parse(cut.as_bytes()).len(), 1, "only what is whole counts");
        assert_eq!(parse(&[0xff, b'<', 0xfe]), []);
    }
}
