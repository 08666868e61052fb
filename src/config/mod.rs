//! The configuration file: TOML to checked values, or an error that says where, what was found and what is allowed.
//!
//! Nothing needs one: an absent file is the defaults. `config/tributary.toml` documents every key.
//! Invariant: a value that is wrong, or a key that does not exist, stops the program before a socket is opened.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::link::DEFAULT_PORT;
use crate::relay::{self, Cidr};

const SYSTEM_FILE: &str = "/etc/tributary/tributary.toml";

/// Everything the owner can say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// About this device.
    pub device: Device,
    /// About the LAN.
    pub lan: Lan,
    /// About what is lent.
    pub egress: Egress,
}

/// `[device]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Device {
    /// What other peers' owners see. Default: the host's name.
    pub name: Option<String>,
}

/// `[lan]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lan {
    /// UDP port for links. Default: 7436, or any free one where another process has that.
    pub port: Option<u16>,
    /// Interfaces on which peers are met. Default: all that look like a LAN.
    pub interfaces: Option<Vec<String>>,
    /// Peers to dial without multicast: addresses, with a port where it is not 7436. Default: none.
    pub peers: Vec<PeerAddress>,
}

/// `[egress]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Egress {
    /// Ranges that may be dialled for others although they are not public. Default: none.
    #[serde(deserialize_with = "cidrs")]
    pub allow: Vec<Cidr>,
    /// TCP ports that are lent. Default: 80 and 443.
    pub ports: Vec<u16>,
}

impl Default for Egress {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            ports: relay::Config::default().ports,
        }
    }
}

/// Where a peer is, as the owner wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddress(pub SocketAddr);

impl<'de> Deserialize<'de> for PeerAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let with_port = text.parse::<SocketAddr>();
        let address = with_port.or_else(|_| text.parse::<IpAddr>().map(|ip| (ip, DEFAULT_PORT).into()));
        address.map(Self).map_err(|_| {
            D::Error::custom(format!(
                "`{text}` is not a peer's address: write an IP address, with a port if it is not {DEFAULT_PORT}, \
                 such as \"192.168.1.7\" or \"192.168.1.7:7000\""
            ))
        })
    }
}

fn cidrs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Cidr>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts
        .iter()
        .map(|text| {
            text.parse()
                .map_err(|e: <Cidr as std::str::FromStr>::Err| D::Error::custom(e))
        })
        .collect()
}

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
    /// The file says something it may not.
    Wrong {
        /// Which.
        path: PathBuf,
        /// Line, key and what is allowed.
        why: String,
    },
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, source } => {
                write!(f, "cannot read the configuration {}: {source}", path.display())
            }
            Self::Wrong { path, why } => write!(f, "{}: {}", path.display(), why.trim_end()),
        }
    }
}

impl Config {
    /// Reads `path`; without one, the user's own file, then the system's; without any, the defaults.
    ///
    /// # Errors
    /// Where a file that was named is missing, or one that is there cannot be read or says something wrong.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        if let Some(path) = path {
            return Self::read(path);
        }
        for path in standard_paths() {
            match Self::read(&path) {
                Err(ConfigError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                decided => return decided,
            }
        }
        Ok(Self::default())
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable {
            path: path.into(),
            source,
        };
        let text = fs::read_to_string(path).map_err(unreadable)?;
        toml::from_str(&text).map_err(|e| ConfigError::Wrong {
            path: path.into(),
            why: e.to_string(),
        })
    }
}

fn standard_paths() -> Vec<PathBuf> {
    let own = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from);
    let own = own.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    own.map(|dir| dir.join("tributary/tributary.toml"))
        .into_iter()
        .chain([PathBuf::from(SYSTEM_FILE)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Config::load(Some(file.path())).map_err(|e| e.to_string())
    }

    #[test]
    fn every_key_of_the_documented_file_has_its_real_default() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/tributary.toml");
        let documented = fs::read_to_string(path).unwrap();
        assert_eq!(
            load(&documented).unwrap(),
            Config::default(),
            "as it stands, the file changes nothing"
        );
        // Every key is there as a comment with its default: uncommented, it must still be the default.
        let mut keys = 0;
        let uncommented: String = documented
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(key)
                    if key
                        .split_once(" = ")
                        .is_some_and(|(k, _)| k.chars().all(|c| c.is_ascii_lowercase())) =>
                {
                    keys += 1;
                    format!("{key}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        assert_eq!(keys, 3, "a key is missing in the documented file");
        assert_eq!(
            load(&uncommented).unwrap(),
            Config {
                lan: Lan {
                    port: Some(DEFAULT_PORT),
                    ..Lan::default()
                },
                ..Config::default()
            }
        );
    }

    #[test]
    fn peers_are_addresses_with_an_optional_port() {
        let config = load("[lan]\npeers = [\"192.168.1.7\", \"192.168.1.8:99\", \"fe80::1\"]").unwrap();
        let addresses: Vec<String> = config.lan.peers.iter().map(|p| p.0.to_string()).collect();
        assert_eq!(
            addresses,
            ["192.168.1.7:7436", "192.168.1.8:99", "[fe80::1]:7436"]
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_what_is_allowed() {
        for (text, expected) in [
            ("[lan]\npears = []", "line 2"),
            ("[lan]\npears = []", "peers"),
            ("[lan]\npeers = [\"kitchen\"]", "192.168.1.7:7000"),
            ("[egress]\nallow = [\"203.0.113.0/33\"]", "line 2"),
            ("[egress]\nports = [70000]", "line 2"),
            ("device = 3", "line 1"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_that_was_named_must_exist() {
        let error = Config::load(Some(Path::new("/nonexistent/tributary.toml"))).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/tributary.toml"),
            "{error}"
        );
    }
}
