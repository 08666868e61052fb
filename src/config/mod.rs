//! The configuration: TOML to checked values, or an error that says where, what was found and what is allowed.
//!
//! Nothing needs a file: an absent one is the defaults. `config/tributary.toml` documents every key. The system's file is
//! read first, then the user's own on top of it, key by key: the nearer to the user, the more it counts.
//! Invariant: a value that is wrong, or a key that does not exist, stops the program before a socket is opened.

mod check;
mod error;
mod raw;

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::relay::{self, Cidr};
use crate::share;
use crate::types::{ByteSize, Period};
use crate::uplink::Rules;

pub use error::{ConfigError, Wrong};

use error::Source;

const SYSTEM_FILE: &str = "/etc/tributary/tributary.toml";
/// No hand has written more; a device or an archive named by mistake is not read to its end.
const MAX_FILE: u64 = 1 << 20;

/// Everything the owner can say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// About this device.
    pub device: Device,
    /// About the LAN.
    pub lan: Lan,
    /// About what is lent.
    pub egress: Egress,
    /// About who is trusted.
    pub trust: Trust,
    /// `[share]`: about what is shared with the household. Default: all that may be, and no copies are kept for it.
    pub share: share::Config,
    /// About single uplinks. Default: nothing.
    pub uplinks: Rules,
}

/// `[device]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// What other peers' owners see. Default: the host's name.
    pub name: Option<String>,
}

/// `[lan]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lan {
    /// UDP port for links. Default: 7436, or any free one where another process has that.
    pub port: Option<u16>,
    /// Interfaces on which peers are met. Default: all that look like a LAN.
    pub interfaces: Option<Vec<String>>,
    /// Peers to dial without multicast: addresses, with a port where it is not 7436. Default: none.
    pub peers: Vec<PeerAddress>,
    /// Whether peers are met on every network that a portable device is carried to. Default: false.
    pub anywhere: bool,
}

/// `[egress]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Ranges that may be dialled for others although they are not public. Default: none.
    pub allow: Vec<Cidr>,
    /// TCP ports that are lent. Default: 80 and 443.
    pub ports: Vec<u16>,
    /// Connections lent at once, to all peers. Default: 64.
    pub tunnels: usize,
    /// Connections lent at once to one peer. Default: 16.
    pub tunnels_per_peer: usize,
    /// A lent connection without a byte ends after this. Default: 120 s.
    pub idle: Period,
    /// What all neighbours together may move in a day, both ways. Default: 20 GB.
    pub neighbours_per_day: ByteSize,
}

impl Default for Egress {
    fn default() -> Self {
        let relay = relay::Config::default();
        Self {
            allow: relay.allow,
            ports: relay.ports,
            tunnels: relay.limits.tunnels,
            tunnels_per_peer: relay.limits.tunnels_per_peer,
            idle: Period(relay.limits.idle),
            neighbours_per_day: relay.limits.neighbours_per_day,
        }
    }
}

impl Egress {
    /// The relay's limits, those that nobody can set included.
    pub fn limits(&self) -> relay::Limits {
        relay::Limits {
            tunnels: self.tunnels,
            tunnels_per_peer: self.tunnels_per_peer,
            idle: self.idle.0,
            neighbours_per_day: self.neighbours_per_day,
            ..relay::Limits::default()
        }
    }
}

/// `[trust]`
#[derive(Clone, PartialEq, Eq)]
pub struct Trust {
    /// Whether those who joined by themselves may lend and borrow at all. Default: yes.
    pub neighbours: bool,
    /// Whether they may borrow. Default: yes.
    pub lend_to_neighbours: bool,
    /// Whether their uplinks are used. Default: yes.
    pub borrow_from_neighbours: bool,
    /// Devices with the same one vouch for each other. Default: none.
    pub passphrase: Option<String>,
    /// A file that holds it. Default: none.
    pub passphrase_file: Option<PathBuf>,
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            neighbours: true,
            lend_to_neighbours: true,
            borrow_from_neighbours: true,
            passphrase: None,
            passphrase_file: None,
        }
    }
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust")
            .field("doors", &self.doors())
            .field("passphrase", &self.passphrase.as_ref().map(|_| "..."))
            .field("passphrase_file", &self.passphrase_file)
            .finish()
    }
}

impl Trust {
    /// The passphrase, from its file where there is one.
    ///
    /// # Errors
    /// Where the file cannot be read, or holds none.
    pub fn secret(&self) -> Result<Option<String>, ConfigError> {
        let Some(path) = &self.passphrase_file else {
            return Ok(self.passphrase.clone());
        };
        let unreadable = |source| ConfigError::Unreadable {
            path: path.clone(),
            source,
        };
        let bytes = read(path).map_err(unreadable)?;
        let open_to = std::fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o077;
        if open_to != 0 {
            tracing::warn!(
                "others may read the passphrase in {}: `chmod 600` it",
                path.display()
            );
        }
        let text = String::from_utf8(bytes).unwrap_or_default();
        let text = text.trim_end_matches(['\n', '\r']);
        if check::is_passphrase(text) {
            return Ok(Some(text.to_owned()));
        }
        Err(ConfigError::Wrong(vec![Wrong {
            path: path.clone(),
            line: 1,
            key: String::new(),
            why: format!(
                "what stands there is not shown here; allowed: {}",
                check::PASSPHRASE
            ),
        }]))
    }

    /// What is open to those who joined by themselves.
    pub const fn doors(&self) -> (bool, bool) {
        (
            self.neighbours && self.lend_to_neighbours,
            self.neighbours && self.borrow_from_neighbours,
        )
    }
}

/// Where a peer is, as the owner wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddress(pub SocketAddr);

impl Config {
    /// Reads `path`; without one, the system's file and then the user's own, whose keys win; without any, the defaults.
    /// Also gives the files that were there.
    ///
    /// # Errors
    /// Where a file that was named is missing, or one that is there cannot be read or says something wrong.
    pub fn load(path: Option<&Path>) -> Result<(Self, Vec<PathBuf>), ConfigError> {
        match path {
            Some(path) => Self::read(&[path.into()], true),
            None => Self::read(&standard_paths(), false),
        }
    }

    /// The keys in which `other` differs that a running daemon cannot take over, each as `section.key`.
    pub fn needs_restart(&self, other: &Self) -> Vec<&'static str> {
        let mut keys = Vec::new();
        for (key, same) in [
            ("device.name", self.device == other.device),
            ("lan.port", self.lan.port == other.lan.port),
            ("lan.interfaces", self.lan.interfaces == other.lan.interfaces),
            (
                "trust.passphrase",
                self.trust.passphrase == other.trust.passphrase,
            ),
            (
                "trust.passphrase_file",
                self.trust.passphrase_file == other.trust.passphrase_file,
            ),
            ("lan.anywhere", self.lan.anywhere == other.lan.anywhere),
        ] {
            if !same {
                keys.push(key);
            }
        }
        keys
    }

    fn read(paths: &[PathBuf], must_exist: bool) -> Result<(Self, Vec<PathBuf>), ConfigError> {
        let mut config = Self::default();
        let (mut found, mut wrongs) = (Vec::new(), Vec::new());
        for path in paths {
            let bytes = match read(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => continue,
                Err(source) => {
                    let path = path.clone();
                    return Err(ConfigError::Unreadable { path, source });
                }
                Ok(bytes) => bytes,
            };
            found.push(path.clone());
            wrongs.extend(config.take(path, &bytes));
        }
        if wrongs.is_empty() {
            Ok((config, found))
        } else {
            Err(ConfigError::Wrong(wrongs))
        }
    }

    /// Takes over what a file says; gives everything that is wrong with it.
    fn take(&mut self, path: &Path, bytes: &[u8]) -> Vec<Wrong> {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let text = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
                let source = Source { path, text };
                let why = "not TOML: a byte that is not UTF-8, as all of the file must be".into();
                return vec![source.wrong(text.len(), "", why)];
            }
        };
        let source = Source { path, text };
        match toml::from_str(text) {
            Ok(raw) => check::check(&raw, &source, self),
            Err(error) => vec![source.of_toml(error)],
        }
    }
}

/// What `fuzzing` may call: a file that says these bytes, on top of the defaults.
#[cfg(any(fuzzing, test))]
pub(crate) mod door {
    use super::{Config, Path, Wrong};

    /// The configuration, or everything that is wrong with the file.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Config, Vec<Wrong>> {
        let mut config = Config::default();
        let wrongs = config.take(path, bytes);
        if wrongs.is_empty() {
            Ok(config)
        } else {
            Err(wrongs)
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(
            "it is larger than 1 MiB, so it is no configuration",
        ));
    }
    Ok(bytes)
}

/// The least important first.
fn standard_paths() -> Vec<PathBuf> {
    let own = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from);
    let own = own.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    [PathBuf::from(SYSTEM_FILE)]
        .into_iter()
        .chain(own.map(|dir| dir.join("tributary/tributary.toml")))
        .collect()
}

#[cfg(test)]
mod tests;
