//! Who this device is: an Ed25519 key made at the first start, and the TLS settings that prove it to other peers.
//!
//! A peer's id *is* its public key (RFC 7250 raw public keys): no X.509, no names, no dates, so a Pi without a clock
//! has the same identity after every power cut.
//!
//! Invariants: the key file is only readable by its owner and is written whole or not at all; a key that is in use
//! by another process is never used by this one; a key that was copied from another device is not used on this one.

mod board;
mod crypto;
mod state;
mod tls;
#[cfg(any(fuzzing, test))]
pub(crate) use tls::door;

pub use crypto::{has_aes, provider};
pub use state::{DAMAGED, StateDir, StateError, write_atomic};
pub use tls::{ALPN, peer_of_spki, tls_client, tls_server};

use std::fmt;
use std::io::ErrorKind;
use std::sync::Arc;

use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};

use crate::types::PeerId;

use board::Board;

const KEY_FILE: &str = "identity.key";
/// What is appended to the name of a key that is another device's.
const COPIED: &str = "of-another-device";

/// The device's secret key and the id it stands for. Never printed.
#[derive(Clone)]
pub struct DeviceKey {
    pkcs8: Vec<u8>,
    pair: Arc<Ed25519KeyPair>,
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
    /// A file that is not a key (a damaged SD card) is kept as `identity.key.damaged`, and the device gets a new
    /// identity: it must come back after every power cut without anybody's help.
    ///
    /// A key in a directory that was copied from another device (a cloned SD card) is kept as
    /// `identity.key.of-another-device`, and this one gets an identity of its own: whom the other one trusts, and who
    /// trusts it, is not this one's.
    ///
    /// # Errors
    /// Where the file cannot be read or written. It is then left as it is: what cannot be read now may be a key.
    pub fn load_or_create(state: &StateDir) -> Result<Self, StateError> {
        Self::load_or_create_on(&Board::here(), state)
    }

    fn load_or_create_on(board: &Board, state: &StateDir) -> Result<Self, StateError> {
        if board.is_another(state) {
            if state.path(KEY_FILE).exists() {
                let kept = state.set_aside(KEY_FILE, COPIED)?;
                tracing::error!(
                    "{} was copied from another device: this one gets a new identity, and nobody trusts it yet (`tributary \
                     join` or `approve`). The old key is kept as {}; if the other device is gone and this one is to be it, \
                     stop tributary, rename that file back, remove {} and start again",
                    state.path(KEY_FILE).display(),
                    kept.display(),
                    state.path(board::FILE).display()
                );
            }
            board.take_over(state);
        }
        let file = match state.read(KEY_FILE) {
            // No key is so large, or a directory.
            Err(StateError::Io { source, .. })
                if matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::IsADirectory) =>
            {
                Some(Vec::new())
            }
            read => read?,
        };
        if let Some(bytes) = file {
            if let Some(key) = Self::from_pkcs8(bytes) {
                return Ok(key);
            }
            let kept = state.set_aside(KEY_FILE, DAMAGED)?;
            tracing::error!(
                "{} was damaged: this device gets a new identity, and to the others it is a new device. The old file is \
                 kept as {}; if you have a backup of it, stop tributary, put it back and start again",
                state.path(KEY_FILE).display(),
                kept.display()
            );
        }
        let key = Self::ephemeral()?;
        state.write(KEY_FILE, &key.pkcs8)?;
        tracing::info!(id = %key.id().short(), "a new identity for this device");
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

    /// This device's signature (Ed25519) of `message`, which must begin with what it is signed for.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(message).as_ref());
        signature
    }

    fn from_pkcs8(pkcs8: Vec<u8>) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).ok()?;
        let id = PeerId(pair.public_key().as_ref().try_into().ok()?);
        Some(Self {
            pkcs8,
            pair: Arc::new(pair),
            id,
        })
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
    fn a_damaged_key_is_set_aside_and_the_device_gets_a_new_identity_that_it_keeps() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let mut ids = Vec::new();
        let large = vec![7; 3 << 20];
        for damaged in [&b"not a key"[..], b"", &large] {
            fs::write(dir.path().join(KEY_FILE), damaged).unwrap();
            let new = DeviceKey::load_or_create(&state).unwrap();
            assert_eq!(DeviceKey::load_or_create(&state).unwrap().id(), new.id());
            let kept = fs::read(dir.path().join("identity.key.damaged")).unwrap();
            assert!(kept == damaged, "{} bytes were kept", kept.len());
            ids.push(new.id());
        }
        ids.dedup();
        assert_eq!(ids.len(), 3);
    }

    #[test]
    fn sec_b10_a_copied_directory_gives_another_device_another_identity_and_the_first_one_keeps_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let on = |serial: &str| {
            let board = Board::new(Some(serial.into()), Some(b"the card's".to_vec()));
            DeviceKey::load_or_create_on(&board, &state).unwrap().id()
        };
        let first = on("board 1");
        assert_eq!(first, on("board 1"));
        let other = on("board 2");
        assert_ne!(first, other);
        assert_eq!(other, on("board 2"), "it keeps it");
        let kept = fs::read(dir.path().join("identity.key.of-another-device")).unwrap();
        assert_eq!(DeviceKey::from_pkcs8(kept).unwrap().id(), first);
    }

    #[test]
    fn a_key_is_never_printed() {
        let key = DeviceKey::ephemeral().unwrap();
        assert!(!format!("{key:?}").contains("pkcs8"));
    }
}
