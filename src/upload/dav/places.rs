//! Where files go: their addresses below the target's, and the directories that must be there first.
//!
//! Invariant: a name is one segment for each of its parts, whatever characters it has, so nothing is ever stored outside
//! the target, and no two names have one address.

use std::collections::BTreeSet;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::Url;

use crate::upload::Item;

/// Everything but what RFC 3986 leaves unreserved.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The address of `name` (with `/` between its parts) below a directory's, which ends in `/`. An empty name is the
/// directory itself, one that ends in `/` a directory.
pub(super) fn below(directory: &Url, name: &str) -> Url {
    let mut path = directory.path().to_owned();
    for (n, part) in name.split('/').enumerate() {
        if n > 0 {
            path.push('/');
        }
        path.extend(utf8_percent_encode(part, SEGMENT));
    }
    let mut url = directory.clone();
    url.set_path(&path);
    url
}

/// The directories of the items, relative, each with a `/` at its end, parents first; the target itself is not among them.
pub(super) fn directories(items: &[Item]) -> Vec<String> {
    let mut all = BTreeSet::new();
    for item in items {
        for (at, _) in item.name.match_indices('/') {
            all.insert(item.name.get(..=at).unwrap_or_default());
        }
    }
    all.into_iter().map(str::to_owned).collect()
}

/// The directory that a name is in, as [`directories`] writes it; "" is the target.
pub(super) fn parent(name: &str) -> &str {
    let name = name.strip_suffix('/').unwrap_or(name);
    name.rfind('/').and_then(|at| name.get(..=at)).unwrap_or("")
}

/// How many directories deep a name lies.
pub(super) fn depth(directory: &str) -> usize {
    directory.matches('/').count()
}

/// The name that `url` has within `directory`, if it is something directly in it.
pub(super) fn within(directory: &Url, url: &Url) -> Option<String> {
    let rest = url.path().strip_prefix(directory.path())?;
    let segment = rest.strip_suffix('/').unwrap_or(rest);
    let name = percent_decode_str(segment).decode_utf8().ok()?;
    let one = !name.is_empty() && !segment.contains('/') && !name.contains('/');
    one.then(|| name.into_owned())
}

/// The directory above, as an address. `None`: the origin's root has none.
pub(super) fn above(directory: &Url) -> Option<Url> {
    let path = directory.path().strip_suffix('/')?;
    let end = path.rfind('/')?;
    let mut url = directory.clone();
    url.set_path(path.get(..=end)?);
    Some(url)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn dir() -> Url {
        Url::parse("https://h/d%20x/").unwrap()
    }

    fn item(name: &str) -> Item {
        Item {
            name: name.into(),
            size: 1,
            modified: UNIX_EPOCH,
        }
    }

    #[test]
    fn every_character_of_a_name_stays_in_its_segment() {
        for (name, path) in [
            ("a b", "/d%20x/a%20b"),
            ("100%", "/d%20x/100%25"),
            ("%2e%2e", "/d%20x/%252e%252e"),
            ("a#b?c", "/d%20x/a%23b%3Fc"),
            ("\u{fc}\u{1f600}", "/d%20x/%C3%BC%F0%9F%98%80"),
            ("a\\b", "/d%20x/a%5Cb"),
            ("tab\tline\nend", "/d%20x/tab%09line%0Aend"),
            ("a;b=c&d,e", "/d%20x/a%3Bb%3Dc%26d%2Ce"),
            ("sub/dir/f", "/d%20x/sub/dir/f"),
            ("sub/", "/d%20x/sub/"),
            ("", "/d%20x/"),
            ("...", "/d%20x/..."),
        ] {
            let url = below(&dir(), name);
            assert_eq!(url.path(), path, "{name:?}");
            assert!(url.query().is_none() && url.fragment().is_none());
        }
        let long = "x".repeat(255);
        assert_eq!(below(&dir(), &long).path().len(), 255 + "/d%20x/".len());
    }

    #[test]
    fn a_name_that_a_listing_gives_back_is_the_one_that_was_stored() {
        for name in [
            "a b", "100%", "%2e%2e", "a#b?c", "\u{fc}", "a\\b", "tab\tx", "...",
        ] {
            assert_eq!(within(&dir(), &below(&dir(), name)).as_deref(), Some(name));
        }
        let sub = below(&dir(), "sub/");
        assert_eq!(within(&dir(), &sub).as_deref(), Some("sub"));
        for other in [
            "https://h/d%20x/",
            "https://h/e/a",
            "https://h/d%20x/a/b",
            "https://h/d%20x/a%2Fb",
        ] {
            assert_eq!(within(&dir(), &Url::parse(other).unwrap()), None, "{other}");
        }
    }

    #[test]
    fn directories_come_parents_first_and_once() {
        let items = [
            item("a/b/c/1"),
            item("a/2"),
            item("a/b/c/3"),
            item("z"),
            item("a b/4"),
        ];
        assert_eq!(directories(&items), ["a b/", "a/", "a/b/", "a/b/c/"]);
        assert_eq!(directories(&[item("z")]), Vec::<String>::new());
        assert_eq!(
            [parent("a/b/c/1"), parent("a/b/"), parent("a/"), parent("z")],
            ["a/b/c/", "a/", "", ""]
        );
        assert_eq!([depth(""), depth("a/"), depth("a/b/")], [0, 1, 2]);
    }

    #[test]
    fn above_a_directory_is_its_parent_and_above_the_root_nothing() {
        let at = |text: &str| above(&Url::parse(text).unwrap()).map(String::from);
        assert_eq!(at("https://h/a/b/").as_deref(), Some("https://h/a/"));
        assert_eq!(at("https://h/a/").as_deref(), Some("https://h/"));
        assert_eq!(at("https://h/"), None);
    }
}
