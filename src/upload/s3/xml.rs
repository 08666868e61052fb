//! Foreign XML into a small tree, bounded in every direction.
//!
//! Namespaces are ignored: some services write S3's, some none. There are no entities but XML's own and characters, and no
//! document types, so that a text is never longer than what came. What makes no sense is refused as a whole.

use quick_xml::events::{BytesRef, Event};
use quick_xml::reader::Reader;

/// S3's deepest answer has five levels.
const MAX_DEPTH: usize = 16;
/// A page of 1,000 parts has about 10,000 elements with all checksums there are.
const MAX_ELEMENTS: usize = 50_000;
/// The longest name that means anything to us has half as many.
const MAX_NAME: usize = 64;

/// An element: its name without a prefix, its own text, and what is in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) name: String,
    pub(super) text: String,
    pub(super) children: Vec<Self>,
}

impl Element {
    /// The text of the first child of that name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let child = self.children.iter().find(|child| child.name == name);
        child.map(|child| child.text.as_str())
    }

    /// All children of that name.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }
}

/// What is no XML, or more of it than any answer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no XML that S3 could have written")]
pub(super) struct Malformed;

/// The one element that `bytes` consist of.
///
/// # Errors
/// [`Malformed`], whatever is wrong: nobody could do anything about the details.
pub(super) fn parse(bytes: &[u8]) -> Result<Element, Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed)?;
    let mut reader = Reader::from_str(text);
    reader.config_mut().check_end_names = true;
    let mut builder = Builder::default();
    loop {
        match reader.read_event().map_err(|_| Malformed)? {
            Event::Start(start) => builder.open(start.local_name().as_ref())?,
            Event::Empty(start) => {
                builder.open(start.local_name().as_ref())?;
                builder.close()?;
            }
            Event::End(_) => builder.close()?,
            Event::Text(text) => builder.text(&text.decode().map_err(|_| Malformed)?)?,
            Event::CData(text) => builder.text(&text.decode().map_err(|_| Malformed)?)?,
            Event::GeneralRef(reference) => {
                let mut buffer = [0; 4];
                builder.text(character(&reference)?.encode_utf8(&mut buffer))?;
            }
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
            Event::DocType(_) => return Err(Malformed),
            Event::Eof => return builder.root.filter(|_| builder.open.is_empty()).ok_or(Malformed),
        }
    }
}

/// The tree so far: `open` is the way from the root to where the reader is.
#[derive(Debug, Default)]
struct Builder {
    open: Vec<Element>,
    root: Option<Element>,
    elements: usize,
}

impl Builder {
    fn open(&mut self, name: &[u8]) -> Result<(), Malformed> {
        self.elements += 1;
        let too_much = self.elements > MAX_ELEMENTS || self.open.len() >= MAX_DEPTH || name.len() > MAX_NAME;
        if too_much || self.root.is_some() {
            return Err(Malformed);
        }
        self.open.push(Element {
            name: String::from_utf8_lossy(name).into_owned(),
            ..Element::default()
        });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Malformed> {
        let closed = self.open.pop().ok_or(Malformed)?;
        match self.open.last_mut() {
            Some(parent) => parent.children.push(closed),
            None => self.root = Some(closed),
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Malformed> {
        match self.open.last_mut() {
            Some(element) => element.text.push_str(text),
            None if text.trim().is_empty() => {}
            None => return Err(Malformed),
        }
        Ok(())
    }
}

fn character(reference: &BytesRef<'_>) -> Result<char, Malformed> {
    if let Some(character) = reference.resolve_char_ref().map_err(|_| Malformed)? {
        return Ok(character);
    }
    match &*reference.decode().map_err(|_| Malformed)? {
        "amp" => Ok('&'),
        "lt" => Ok('<'),
        "gt" => Ok('>'),
        "quot" => Ok('"'),
        "apos" => Ok('\''),
        _ => Err(Malformed),
    }
}

/// `text` as the content of an element.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_have_their_texts_whatever_their_namespace() {
        let of_s3 = br#"<?xml version="1.0"?> <A xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><B>x &amp; &#65;</B><C/></A>"#;
        let with_prefix = b"\n<s:A xmlns:s='u'><s:B>x <![CDATA[&]]> A</s:B><s:C></s:C></s:A>\n";
        let expected = parse(b"<A><B>x &amp; A</B><C/></A>").unwrap();
        assert_eq!(parse(of_s3).unwrap(), expected);
        assert_eq!(parse(with_prefix).unwrap(), expected);
        assert_eq!(expected.get("B"), Some("x & A"));
        assert_eq!(expected.get("C"), Some(""));
        assert_eq!(expected.get("D"), None);
    }

    #[test]
    fn what_is_no_whole_element_is_refused() {
        for text in [
            "",
            "x",
            "<A>",
            "<A></B>",
            "<A/><A/>",
            "<A/>x",
            "</A>",
            "<A>&b;</A>",
            "<A>&#xd800;</A>",
            "<A>&#99999999999;</A>",
            "<!DOCTYPE a [<!ENTITY b 'c'>]><A>&b;</A>",
        ] {
            assert_eq!(parse(text.as_bytes()), Err(Malformed), "{text}");
        }
        assert_eq!(parse(b"<A>\xff</A>"), Err(Malformed));
    }

    #[test]
    fn depth_number_and_names_are_bounded() {
        let nested = |n: usize| format!("{}{}", "<a>".repeat(n), "</a>".repeat(n));
        assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert_eq!(parse(nested(MAX_DEPTH + 1).as_bytes()), Err(Malformed));
        assert_eq!(parse(nested(500_000).as_bytes()), Err(Malformed));
        let many = |n: usize| format!("<a>{}</a>", "<b/>".repeat(n));
        assert!(parse(many(MAX_ELEMENTS - 1).as_bytes()).is_ok());
        assert_eq!(parse(many(MAX_ELEMENTS).as_bytes()), Err(Malformed));
        assert_eq!(
            parse(format!("<{}/>", "n".repeat(MAX_NAME + 1)).as_bytes()),
            Err(Malformed)
        );
    }

    #[test]
    fn what_is_escaped_is_read_back() {
        let text = "a<b>&\"c'd é";
        let read = parse(format!("<A>{}</A>", escaped(text)).as_bytes()).unwrap();
        assert_eq!(read.text, text);
    }
}
