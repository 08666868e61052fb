//! The file as serde reads it: which keys there are, and what was written for each, with its place. Nothing is judged here
//! but that a key exists; `check` says what its value may be.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use toml::Spanned;

/// What was written for a key; `None`: nothing.
pub(super) type Said = Option<Spanned<Written>>;

/// A whole file.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) device: Device,
    pub(super) lan: Lan,
    pub(super) egress: Egress,
    pub(super) trust: Trust,
    pub(super) share: Share,
    pub(super) uplink: Vec<Spanned<Uplink>>,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Device {
    pub(super) name: Said,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Lan {
    pub(super) port: Said,
    pub(super) interfaces: Said,
    pub(super) peers: Said,
    pub(super) anywhere: Said,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Egress {
    pub(super) allow: Said,
    pub(super) ports: Said,
    pub(super) tunnels: Said,
    pub(super) tunnels_per_peer: Said,
    pub(super) idle: Said,
    pub(super) neighbours_per_day: Said,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Trust {
    pub(super) neighbours: Said,
    pub(super) lend_to_neighbours: Said,
    pub(super) borrow_from_neighbours: Said,
    pub(super) passphrase: Said,
    pub(super) passphrase_file: Said,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Share {
    pub(super) enabled: Said,
    pub(super) cache: Said,
    pub(super) cache_age: Said,
}

#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Uplink {
    pub(super) interface: Said,
    pub(super) lend: Said,
    pub(super) metered: Said,
    pub(super) max_down: Said,
    pub(super) max_up: Said,
    pub(super) line: Said,
}

/// A value of any type, so that one of the wrong type can be answered in the owner's words and not in serde's.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(super) enum Written {
    Text(String),
    Number(i64),
    YesNo(bool),
    List(Vec<Spanned<Self>>),
    /// A date, a table or a number with a fraction: what no key of ours takes.
    Other(&'static str),
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A message is a line, whatever was written.
            Self::Text(text) => write!(f, "{:?}", text.chars().take(60).collect::<String>()),
            Self::Number(number) => write!(f, "{number}"),
            Self::YesNo(value) => write!(f, "{value}"),
            Self::List(_) => f.write_str("a list"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Written;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Written, E> {
        Ok(Written::Text(text.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Written, E> {
        Ok(Written::Number(number))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Written, E> {
        Ok(Written::Other("a number with a fraction"))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Written, E> {
        Ok(Written::YesNo(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Written, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = sequence.next_element()? {
            list.push(element);
        }
        Ok(Written::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Written, A::Error> {
        while map
            .next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?
            .is_some()
        {}
        Ok(Written::Other("a table or a date"))
    }
}
