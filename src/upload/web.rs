//! What the targets that speak plain HTTP (tus, PUT) share: the address without its credentials, the headers of every
//! request, addresses that come from the server, and what its refusals mean in words.
//!
//! Invariant: every request goes to the address's own origin, whatever the server says: credentials, the user's headers
//! and the file are for that one alone.

use headers::{Authorization, HeaderMapExt};
use hyper::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderName, HeaderValue, LOCATION};
use hyper::{HeaderMap, Method};
use percent_encoding::percent_decode_str;
use url::{Position, Url};

use super::error::UploadError;
use super::exchange::{Answer, Ask};

/// Of what a server says, so much is shown to people.
const SHOWN: usize = 200;

/// An origin that takes uploads, and what it is told with every request.
#[derive(Clone, Debug)]
pub(super) struct Web {
    /// http or https, without credentials and fragment.
    pub(super) base: Url,
    headers: HeaderMap,
}

impl Web {
    /// Of an address as the user wrote it, after `prefix`; a user and password in it become Basic authentication.
    pub(super) fn new(
        target: &Url,
        prefix: &str,
        extra: &[(HeaderName, HeaderValue)],
    ) -> Result<Self, UploadError> {
        let invalid = |why: &str| UploadError::Url {
            url: target
                .as_str()
                .replace(&target[Position::BeforeUsername..Position::BeforeHost], ""),
            why: why.to_owned(),
        };
        // Again from its text: of a scheme of our own, the parser takes hosts as they are.
        let text = target.as_str().strip_prefix(prefix).unwrap_or(target.as_str());
        let mut base = Url::parse(text).map_err(|error| invalid(&error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(invalid("write https://HOST/PATH"));
        }
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if !base.username().is_empty() || base.password().is_some() {
            let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
            let password = decoded(base.password().unwrap_or_default());
            headers.typed_insert(Authorization::basic(&decoded(base.username()), &password));
        }
        if extra.iter().any(|(name, _)| name == AUTHORIZATION) {
            headers.remove(AUTHORIZATION);
        }
        for (name, value) in extra {
            headers.append(name.clone(), value.clone());
        }
        // These fail only for addresses without a host.
        let _ = base.set_username("");
        let _ = base.set_password(None);
        base.set_fragment(None);
        Ok(Self { base, headers })
    }

    /// A request to this origin.
    pub(super) fn ask(&self, method: Method, url: Url) -> Ask {
        let mut ask = Ask::new(method, url);
        ask.headers.clone_from(&self.headers);
        ask
    }

    /// What an address in an answer means, relative to where it was asked; nothing but this origin is asked anything.
    pub(super) fn resolve(&self, asked: &Url, reference: &str) -> Result<Url, String> {
        let mut url = asked
            .join(reference)
            .map_err(|error| format!("`{}` is no address: {error}", shown(reference)))?;
        if url.origin() != self.base.origin() {
            let elsewhere = url.origin().ascii_serialization();
            return Err(format!(
                "it names an address at {}, and only {} was to be used",
                shown(&elsewhere),
                self.base.origin().ascii_serialization()
            ));
        }
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.set_fragment(None);
        Ok(url)
    }

    /// Where the answer to a request at `asked` says the thing is.
    pub(super) fn location(&self, asked: &Url, answer: &Answer) -> Result<Url, String> {
        let location = answer.headers.get(LOCATION).and_then(|value| value.to_str().ok());
        self.resolve(asked, location.ok_or("it does not say where it is (Location)")?)
    }

    /// The server's name, for messages.
    pub(super) fn host(&self) -> String {
        self.base.host_str().unwrap_or_default().to_owned()
    }

    /// The error that ends an upload when the server answers so.
    pub(super) fn refused(&self, method: &Method, answer: &Answer) -> UploadError {
        let (host, why) = (self.host(), meaning(method, answer));
        match answer.status.as_u16() {
            401 | 403 | 407 => UploadError::Refused { host, why },
            _ => UploadError::Status {
                host,
                status: answer.status,
                why,
            },
        }
    }

    /// The error for an answer that makes no sense.
    pub(super) fn senseless(&self, why: impl Into<String>) -> UploadError {
        UploadError::Answer {
            host: self.host(),
            why: why.into(),
        }
    }
}

/// What a refusal means and what to do about it.
pub(super) fn meaning(method: &Method, answer: &Answer) -> String {
    let known = match answer.status.as_u16() {
        300..=399 => {
            let to = answer.headers.get(LOCATION).and_then(|v| v.to_str().ok());
            return match to {
                Some(to) => format!("it sends elsewhere ({}): upload there", shown(to)),
                None => "it sends elsewhere and does not say where".to_owned(),
            };
        }
        401 => {
            "it wants to know who is there: write https://USER:PASSWORD@HOST/… or give a header with -H 'Authorization: …'"
        }
        403 => "whoever this is may not write there: check user, password and rights",
        404 => "there is no such place: check the address",
        405 | 501 => return format!("it takes no {method} there: check the address"),
        409 => "the directory is missing, or a directory has this name",
        411 => "it wants to know a length that it was told: another program in between is in the way",
        412 => "it does not speak this version of the protocol",
        413 => "it takes no files so large (its limit can be raised there; nginx: client_max_body_size)",
        414 => "the name is too long for it",
        415 => "it takes no files of this kind",
        423 => "somebody has locked it there",
        431 => "the list of parts is too long for it",
        507 => "it has no room left",
        _ => "",
    };
    let said = shown(std::str::from_utf8(&answer.body).unwrap_or_default());
    match (known, said.as_str()) {
        ("", "") => format!("it does not take this ({method})"),
        ("", said) => format!("it says: {said}"),
        (known, _) => known.to_owned(),
    }
}

/// Text from a server as it may be shown: one line without control characters, not too long, no page of HTML.
pub(super) fn shown(text: &str) -> String {
    let text = text.trim();
    if text.starts_with('<') {
        return String::new();
    }
    let visible = text.chars().take_while(|c| *c != '\n' && *c != '\r');
    visible.filter(|c| !c.is_control()).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::StatusCode;

    use super::*;

    fn web(target: &str) -> Web {
        Web::new(&Url::parse(target).unwrap(), "tus+", &[]).unwrap()
    }

    fn answer(status: u16, headers: &[(&'static str, &str)], body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
                .collect(),
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    #[test]
    fn credentials_in_the_address_become_a_header_and_are_nowhere_else() {
        let web = web("tus+https://us%40er:p%3ass@Host.example:444/files/#x");
        assert_eq!(web.base.as_str(), "https://host.example:444/files/");
        let ask = web.ask(Method::POST, web.base.clone());
        // us@er:p:ss
        assert_eq!(ask.headers[AUTHORIZATION], "Basic dXNAZXI6cDpzcw==");
    }

    #[test]
    fn a_header_of_the_users_replaces_the_credentials() {
        let own = [(AUTHORIZATION, HeaderValue::from_static("Bearer x"))];
        let web = Web::new(&Url::parse("https://a:b@h/").unwrap(), "", &own).unwrap();
        let ask = web.ask(Method::PUT, web.base.clone());
        let all: Vec<_> = ask.headers.get_all(AUTHORIZATION).iter().collect();
        assert_eq!(all, ["Bearer x"]);
    }

    #[test]
    fn an_address_that_is_not_of_the_web_is_refused_without_its_password() {
        let error = Web::new(&Url::parse("tus+ftp://u:secret@h/").unwrap(), "tus+", &[]).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(error.to_string().contains("https://HOST/PATH"), "{error}");
    }

    #[test]
    fn http_32_an_address_from_the_server_is_only_followed_to_the_same_origin() {
        let web = web("https://host/files/");
        let asked = web.base.clone();
        let resolve = |to| web.resolve(&asked, to).map(String::from);
        assert_eq!(resolve("abc"), Ok("https://host/files/abc".into()));
        assert_eq!(
            resolve("/other/abc?x=1#f"),
            Ok("https://host/other/abc?x=1".into())
        );
        assert_eq!(resolve("https://host:443/a"), Ok("https://host/a".into()));
        for foreign in [
            "http://host/files/a",
            "https://host:444/a",
            "//other/a",
            "https://169.254.169.254/latest/",
            "file:///etc/passwd",
        ] {
            let why = resolve(foreign).unwrap_err();
            assert!(why.contains("https://host"), "{foreign}: {why}");
        }
        assert!(resolve("https://[").is_err());
        assert_eq!(resolve("https://u:p@host/a"), Ok("https://host/a".into()));
    }

    #[test]
    fn refusals_say_what_to_do() {
        let put = Method::PUT;
        for (status, part) in [
            (401, "USER:PASSWORD"),
            (403, "rights"),
            (404, "address"),
            (405, "no PUT there"),
            (413, "client_max_body_size"),
            (507, "no room"),
        ] {
            let why = meaning(&put, &answer(status, &[], "<html>"));
            assert!(why.contains(part), "{status}: {why}");
        }
        let moved = answer(301, &[("location", "https://new.example/x")], "");
        assert!(meaning(&put, &moved).contains("https://new.example/x"));
        let odd = answer(418, &[], "short\x1b[31m and stout\nsecond line");
        assert_eq!(meaning(&put, &odd), "it says: short[31m and stout");
    }

    #[test]
    fn who_may_not_write_is_told_apart_from_what_makes_no_sense() {
        let web = web("https://host/");
        let error = web.refused(&Method::PUT, &answer(403, &[], ""));
        assert!(matches!(error, UploadError::Refused { .. }));
        let error = web.refused(&Method::PUT, &answer(404, &[], ""));
        assert!(matches!(error, UploadError::Status { .. }));
    }
}
