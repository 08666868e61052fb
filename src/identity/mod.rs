//! Who this device is: an Ed25519 key made at the first start, and the TLS settings that prove it to other peers.
//!
//! A peer's id *is* its public key (RFC 7250 raw public keys): no X.509, no names, no dates, so a Pi without a clock
//! has the same identity after every power cut.
//!
//! Invariants: the key file is only readable by its owner and is written whole or not at all; a key that is in use
//! by another process is never used by this one.

mod crypto;
mod state;
mod tls;

pub use crypto::{has_aes, provider};
pub use state::{StateDir, StateError, write_atomic};
pub use tls::{ALPN, peer_of_spki, tls_client, tls_server};

use std::fmt;

use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};

use crate::types::PeerId;

const KEY_FILE: &str = "identity.key";

/// The device's secret key and the id it stands for. Never printed.
pub struct DeviceKey {
    pkcs8: Vec<u8>,
    id: PeerId,
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl DeviceKey {
    /// Reads the device's key from the state directory, or makes and stores one.
    ///
    /// # Errors
    /// Where the file cannot be read or written, or holds something that is not an Ed25519 key: it is left as it
    /// is, because replacing it would change who this device is.
    pub fn load_or_create(state: &StateDir) -> Result<Self, StateError> {
        if let Some(bytes) = state.read(KEY_FILE)? {
            return Self::from_pkcs8(bytes).ok_or_else(|| StateError::NotAKey {
                path: state.path(KEY_FILE),
            });
        }
        let key = Self::ephemeral()?;
        state.write(KEY_FILE, &key.pkcs8)?;
        Ok(key)
    }

    /// A key that lives as long as the process: for a second process beside the one that has the device's own.
    ///
    /// # Errors
    /// Where the system gives no randomness.
    pub fn ephemeral() -> Result<Self, StateError> {
        let document =
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| StateError::NoRandom)?;
        Self::from_pkcs8(document.as_ref().to_vec()).ok_or(StateError::NoRandom)
    }

    /// The public half: this device's peer id.
    pub const fn id(&self) -> PeerId {
        self.id
    }

    fn from_pkcs8(pkcs8: Vec<u8>) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).ok()?;
        let id = PeerId(pair.public_key().as_ref().try_into().ok()?);
        Some(Self { pkcs8, id })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_device_keeps_its_identity_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = DeviceKey::load_or_create(&StateDir::open(dir.path()).unwrap()).unwrap();
        let again = DeviceKey::load_or_create(&StateDir::open(dir.path()).unwrap()).unwrap();
        assert_eq!(first.id(), again.id());
        let mode = fs::metadata(dir.path().join(KEY_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_ne!(first.id(), DeviceKey::ephemeral().unwrap().id());
    }

    #[test]
    fn a_damaged_key_is_reported_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(KEY_FILE);
        fs::write(&file, b"not a key").unwrap();
        let error = DeviceKey::load_or_create(&StateDir::open(dir.path()).unwrap()).unwrap_err();
        assert!(error.to_string().contains("identity.key"), "{error}");
        assert_eq!(fs::read(&file).unwrap(), b"not a key");
    }

    #[test]
    fn a_key_is_never_printed() {
        let key = DeviceKey::ephemeral().unwrap();
        assert!(!format!("{key:?}").contains("pkcs8"));
    }
}
