//! Which device this is, so that a copied SD card does not become a second device with the same key.
//!
//! Beside the key lies a salted hash of what tells devices apart: the board's serial number, and the system's machine id
//! where there is no such number (a copied card has the same one). Invariants: only what was known on both occasions
//! counts, so that a system that has no such facts, or writes them later, is never taken for a copy; the facts themselves
//! are not kept.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use ring::digest;
use ring::rand::{SystemRandom, generate};
use serde::{Deserialize, Serialize};

use crate::types::hex;

use super::StateDir;

pub(super) const FILE: &str = "identity.device";
const DOMAIN: &[u8] = b"tributary 1 device\0";
const SERIAL: &str = "serial";
const MACHINE: &str = "machine-id";
/// Of boards with a device tree (a Raspberry Pi), and of PCs (for root only).
const SERIALS: [&str; 2] = [
    "/sys/firmware/devicetree/base/serial-number",
    "/sys/class/dmi/id/product_uuid",
];
const MACHINE_ID: &str = "/etc/machine-id";
const MACHINE_ID_DIGITS: usize = 32;
/// None of them is longer.
const MAX_FACT: u64 = 256;

/// What tells this device from others, as far as it can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Board {
    facts: BTreeMap<String, Vec<u8>>,
}

/// What is kept of it.
#[derive(Debug, Serialize, Deserialize)]
struct Bound {
    salt: String,
    facts: BTreeMap<String, String>,
}

impl Board {
    /// This device.
    pub(super) fn here() -> Self {
        let serial = SERIALS.iter().find_map(|path| fact(path));
        let machine = fact(MACHINE_ID)
            .filter(|id| id.len() == MACHINE_ID_DIGITS && id.iter().all(u8::is_ascii_hexdigit));
        Self::new(serial, machine)
    }

    pub(super) fn new(serial: Option<Vec<u8>>, machine: Option<Vec<u8>>) -> Self {
        let facts = [(SERIAL, serial), (MACHINE, machine)];
        Self {
            facts: facts
                .into_iter()
                .filter_map(|(name, fact)| Some((name.to_owned(), fact?)))
                .collect(),
        }
    }

    /// Whether the directory was written by another device. Else it is this one's from now on.
    pub(super) fn is_another(&self, state: &StateDir) -> bool {
        let kept = state.read(FILE).ok().flatten();
        let kept: Option<Bound> = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let now = |name: &str, salt: &str| Some(hashed(name, self.facts.get(name)?, salt));
        let same = |bound: &Bound, name: &str| Some(*bound.facts.get(name)? == now(name, &bound.salt)?);
        // Where the board is the same, its system may be a new one.
        let verdict = kept
            .as_ref()
            .and_then(|bound| same(bound, SERIAL).or_else(|| same(bound, MACHINE)));
        if verdict == Some(false) {
            return true;
        }
        self.note(state, kept);
        false
    }

    /// The directory is this device's from now on, whosever it was.
    pub(super) fn take_over(&self, state: &StateDir) {
        self.note(state, None);
    }

    /// Notes what is known now; what was known before and cannot be read now stays.
    fn note(&self, state: &StateDir, kept: Option<Bound>) {
        let fresh = || {
            let salt = hex(&generate::<[u8; 16]>(&SystemRandom::new()).ok()?.expose());
            let facts = BTreeMap::new();
            Some(Bound { salt, facts })
        };
        let Some(Bound { salt, mut facts }) = kept.or_else(fresh) else {
            return;
        };
        let known = facts.clone();
        for (name, fact) in &self.facts {
            facts.insert(name.clone(), hashed(name, fact, &salt));
        }
        if facts == known {
            return;
        }
        // Plain data.
        let bytes = serde_json::to_vec(&Bound { salt, facts }).unwrap_or_default();
        if let Err(error) = state.write(FILE, &bytes) {
            tracing::warn!(%error, "the identity is not bound to this device");
        }
    }
}

fn hashed(name: &str, fact: &[u8], salt: &str) -> String {
    let parts = [DOMAIN, salt.as_bytes(), b"\0", name.as_bytes(), b"\0", fact].concat();
    hex(digest::digest(&digest::SHA256, &parts).as_ref())
}

/// A file's content without what surrounds it; `None` where there is none.
fn fact(path: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(MAX_FACT)
        .read_to_end(&mut bytes)
        .ok()?;
    bytes.retain(|byte| byte.is_ascii_graphic());
    Some(bytes).filter(|bytes| !bytes.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(serial: &str, machine: &str) -> Board {
        let some = |fact: &str| Some(fact.as_bytes().to_vec()).filter(|f| !f.is_empty());
        Board::new(some(serial), some(machine))
    }

    /// Whether each in turn is taken for another device than those before, on one directory.
    fn seen(boards: &[(&str, &str)]) -> Vec<bool> {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let seen = boards.iter().map(|(s, m)| board(s, m).is_another(&state));
        seen.collect()
    }

    #[test]
    fn sec_b10_a_directory_on_another_board_or_another_system_is_a_copy() {
        assert_eq!(
            seen(&[("A", "m"), ("B", "m")]),
            [false, true],
            "a copied card in another board"
        );
        assert_eq!(
            seen(&[("", "m"), ("", "n")]),
            [false, true],
            "boards without a number"
        );
        assert_eq!(seen(&[("A", "m"), ("", "m"), ("B", "m")]), [false, false, true]);
    }

    #[test]
    fn flt_45_a_reboot_an_upgrade_and_facts_that_come_and_go_are_no_copy() {
        for same in [
            &[("A", "m"), ("A", "m"), ("A", "m")][..],
            &[("", ""), ("", ""), ("", "m"), ("A", "m"), ("A", "m")],
            &[("A", "m"), ("", "")],
            &[("A", "m"), ("A", ""), ("A", "n"), ("", "n")],
            &[("", "m"), ("A", "")],
        ] {
            assert!(!seen(same).contains(&true), "{same:?}");
        }
    }

    #[test]
    fn what_is_kept_tells_nobody_the_facts_and_a_damaged_file_binds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert!(!board("SERIAL", "machine").is_another(&state));
        let kept = String::from_utf8(state.read(FILE).unwrap().unwrap()).unwrap();
        assert!(
            !kept.contains("SERIAL") && !kept.contains(&hex(b"SERIAL")),
            "{kept}"
        );
        state.write(FILE, b"{\"salt\":").unwrap();
        assert!(!board("OTHER", "system").is_another(&state));
        assert!(board("THIRD", "system").is_another(&state));
        board("THIRD", "system").take_over(&state);
        assert!(!board("THIRD", "system").is_another(&state));
    }

    #[test]
    fn this_device_is_the_same_each_time() {
        assert_eq!(Board::here(), Board::here());
    }
}
