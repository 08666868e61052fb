//! What is wrong with a configuration: file, line, key, what was found and what is allowed.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Characters shown of a key: ours are shorter, with their section.
const MOST_OF_KEY: usize = 80;
/// And of what is wrong: the longest that we say has half as many, and quotes 60 of what was written.
const MOST_OF_WHY: usize = 400;

/// Why there is no configuration.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Files say something they may not: everything that is wrong, in the order in which it stands there.
    Wrong(Vec<Wrong>),
}

/// One thing that a file may not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The file.
    pub path: PathBuf,
    /// Counted from 1.
    pub line: usize,
    /// The key with its section; empty where the file is no TOML at all.
    pub key: String,
    /// What was found there, and what is allowed.
    pub why: String,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, source } => {
                write!(f, "cannot read the configuration {}: {source}", path.display())
            }
            Self::Wrong(all) => {
                for (place, wrong) in all.iter().enumerate() {
                    let between = if place == 0 { "" } else { "\n" };
                    write!(f, "{between}{wrong}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.path.display(), self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.why)
    }
}

/// A file as text, to say where in it something is wrong.
#[derive(Debug)]
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Source<'_> {
    pub(super) fn wrong(&self, at: usize, key: &str, why: String) -> Wrong {
        let before = self.text.as_bytes().iter().take(at);
        Wrong {
            path: self.path.into(),
            line: before.filter(|byte| **byte == b'\n').count() + 1,
            key: shown(key, MOST_OF_KEY),
            why: shown(&why, MOST_OF_WHY),
        }
    }

    /// What the parser or serde found, in our words where they are about a key that does not exist.
    pub(super) fn of_toml(&self, mut error: toml::de::Error) -> Wrong {
        let span = error.span().unwrap_or_default();
        let key = keys_of(&mut error);
        match unknown(error.message()) {
            Some((unknown, known)) => {
                // The library names the section that the key is not in.
                let named = if key.is_empty() {
                    unknown.to_owned()
                } else {
                    format!("{key}.{unknown}")
                };
                self.wrong(span.start, &named, no_such_key(unknown, &key, &known))
            }
            None if self.parses() => {
                let found = self.text.get(span.clone()).unwrap_or_default().trim();
                let found = found.lines().next().unwrap_or_default();
                self.wrong(
                    span.start,
                    &key,
                    format!("found `{found}`; allowed: {}", expected(&error)),
                )
            }
            None => self.wrong(
                end_of(self.text, &span),
                "",
                format!("not TOML: {}", error.message()),
            ),
        }
    }

    fn parses(&self) -> bool {
        toml::de::DeTable::parse(self.text).is_ok()
    }
}

/// As a line for people: what was found may be anything that was written.
fn shown(text: &str, most: usize) -> String {
    let plain = |c: char| {
        if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    text.chars().take(most).map(plain).collect()
}

/// An error at the file's end is one of its last line.
fn end_of(text: &str, span: &Range<usize>) -> usize {
    span.start.min(text.trim_end().len())
}

/// Where the error is, as `section.key`: the library says it only of errors without a text.
fn keys_of(error: &mut toml::de::Error) -> String {
    error.set_input(None);
    let shown = error.to_string();
    let keys = shown.rsplit_once("in `").map_or("", |(_, keys)| keys);
    keys.trim_end().trim_end_matches('`').to_owned()
}

/// What a section is, where something else was written for it.
fn expected(error: &toml::de::Error) -> &'static str {
    if error.message().contains("a sequence") {
        "entries that begin with `[[uplink]]`"
    } else {
        "a section, which begins with its name in brackets, such as `[lan]`"
    }
}

/// Of serde's "unknown field `a`, expected one of `b`, `c`": the unknown one, and the others.
fn unknown(message: &str) -> Option<(&str, Vec<&str>)> {
    message.strip_prefix("unknown field")?;
    let mut named = message.split('`').skip(1).step_by(2);
    Some((named.next()?, named.collect()))
}

fn no_such_key(unknown: &str, section: &str, known: &[&str]) -> String {
    let meant = known
        .iter()
        .map(|k| (distance(unknown, k), k))
        .min()
        .filter(|(distance, k)| *distance <= k.len().max(3) / 3);
    let meant = meant.map_or_else(String::new, |(_, k)| format!(" (did you mean `{k}`?)"));
    let place = match section {
        "" => "the sections are",
        "uplink" => "[[uplink]] has",
        _ => {
            return format!(
                "there is no such key{meant}; [{section}] has {}",
                known.join(", ")
            );
        }
    };
    format!("there is no such key{meant}; {place} {}", known.join(", "))
}

/// How many letters must be changed, added, left out or swapped with their neighbour to get from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(40).collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_that_were_swapped_forgotten_or_changed_are_near() {
        for (a, b, expected) in [
            ("pears", "peers", 1),
            ("preers", "peers", 1),
            ("lned", "lend", 1),
            ("", "lend", 4),
            ("lend", "lend", 0),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
