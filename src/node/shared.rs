//! What the household offers by hand, for people: the list of it, and which content a name or a SHA-256 means.

use std::time::Duration;

use crate::api::convert::{ORIGIN, REFUSED};
use crate::api::{Failed, SharedFile, SharedFiles};
use crate::download::Shared;
use crate::share::{Household, Subject};
use crate::types::{hex, sha256_from_hex};

use super::Node;

/// Whose a file is that this device offers.
pub(super) const OWN: &str = "this device";
/// A node that was started for one command has no links yet: for so long after its start, what nobody offers may still come.
const SETTLED: Duration = Duration::from_secs(5);
/// How often it is asked again meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// The household, where this device takes part in it.
///
/// # Errors
/// Where it does not.
pub(super) fn household(node: &Node) -> Result<&Household, Failed> {
    node.household().ok_or_else(|| Failed {
        code: REFUSED,
        message: "this device does not share with its household: its configuration says `[share] enabled = false`, or \
                  another tributary runs beside this one and does it"
            .into(),
    })
}

/// All that is offered, by name; this device's own first where the names are the same.
pub(super) async fn all(node: &Node) -> SharedFiles {
    let Some(household) = node.household() else {
        return SharedFiles::default();
    };
    let mut files = own(node);
    let offered = household.offered().await.into_iter();
    files.extend(offered.map(|offered| SharedFile {
        name: offered.name,
        bytes: offered.total,
        sha256: hex(&offered.sha256),
        owner: offered.owner,
        id: offered.peer.to_string(),
        own: false,
    }));
    files.sort_by(|a, b| (&a.name, !a.own, &a.owner, &a.id).cmp(&(&b.name, !b.own, &b.owner, &b.id)));
    SharedFiles { files }
}

/// What this device offers.
pub(super) fn own(node: &Node) -> Vec<SharedFile> {
    let offered = node.household().into_iter().flat_map(|household| household.own());
    let file = |own: crate::share::Own| SharedFile {
        name: own.name,
        bytes: own.total,
        sha256: hex(&own.sha256),
        owner: OWN.into(),
        id: node.id.to_string(),
        own: true,
    };
    offered.map(file).collect()
}

/// The content that a name or a SHA-256 means.
///
/// # Errors
/// Where nobody else offers it, or the name is of several.
pub(super) async fn wanted(node: &Node, what: &str) -> Result<Shared, Failed> {
    household(node)?;
    loop {
        let shared = all(node).await;
        match choose(&shared.files, what) {
            // Whoever else has it may not be linked yet.
            Err(none) if none.code == ORIGIN && node.began.elapsed() < SETTLED => {
                tokio::time::sleep(ASK_AGAIN).await;
            }
            decided => return decided,
        }
    }
}

/// # Errors
/// Where none of `files` is meant that is a member's, or several are.
fn choose(files: &[SharedFile], what: &str) -> Result<Shared, Failed> {
    let file = one(files, what)?;
    if !files.iter().any(|f| f.sha256 == file.sha256 && !f.own) {
        return Err(Failed {
            code: ORIGIN,
            message: format!("`{}` is this device's own: nobody else offers it", file.name),
        });
    }
    let sha256 = sha256_from_hex(&file.sha256).ok_or_else(|| nobody(what))?;
    Ok(Shared {
        name: file.name.clone(),
        subject: Subject::of_sha256(&sha256, file.bytes),
        sha256,
        total: file.bytes,
    })
}

/// The one of `files` that has this name or SHA-256; of those with the same content any.
///
/// # Errors
/// Where there is none, or contents differ.
pub(super) fn one<'a>(files: &'a [SharedFile], what: &str) -> Result<&'a SharedFile, Failed> {
    let digest = sha256_from_hex(what).map(|digest| hex(&digest));
    let by_digest = |file: &&SharedFile| digest.as_ref() == Some(&file.sha256);
    if let Some(file) = files.iter().find(by_digest) {
        return Ok(file);
    }
    let mut named = files.iter().filter(|file| file.name == what);
    let first = named.next().ok_or_else(|| nobody(what))?;
    // A digest that comes with two lengths is a lie of one of them.
    let same = |other: &SharedFile| (&other.sha256, other.bytes) == (&first.sha256, first.bytes);
    if named.all(same) {
        return Ok(first);
    }
    let mut all: Vec<String> = files
        .iter()
        .filter(|file| file.name == what)
        .map(|file| format!("{} (of {})", file.sha256, file.owner))
        .collect();
    all.dedup();
    Err(Failed {
        code: REFUSED,
        message: format!(
            "`{what}` is the name of several: write the SHA-256 of the one that is meant instead:\n  {}",
            all.join("\n  ")
        ),
    })
}

fn nobody(what: &str) -> Failed {
    Failed {
        code: ORIGIN,
        message: format!(
            "nobody of the household offers `{what}` now: `tributary shared` lists what there is"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, content: u8, owner: &str) -> SharedFile {
        SharedFile {
            name: name.into(),
            bytes: u64::from(content),
            sha256: hex(&[content; 32]),
            owner: owner.into(),
            id: owner.into(),
            own: owner == OWN,
        }
    }

    #[test]
    fn a_name_or_a_digest_means_one_content() {
        let files = [
            file("a", 1, "ann"),
            file("a", 1, "bob"),
            file("b", 2, "ann"),
            file(&hex(&[2; 32]), 3, "ann"),
        ];
        let wanted = choose(&files, "a").unwrap();
        assert_eq!(
            (wanted.name.as_str(), wanted.sha256, wanted.total),
            ("a", [1; 32], 1)
        );
        assert_eq!(wanted.subject, Subject::of_sha256(&[1; 32], 1));
        // A digest means what has it, whatever somebody calls a file.
        assert_eq!(choose(&files, &hex(&[2; 32]).to_uppercase()).unwrap().name, "b");
        assert_eq!(choose(&files, &hex(&[3; 32])).unwrap().sha256, [3; 32]);
        for none in ["A", "", "c", &hex(&[9; 32])] {
            let failed = choose(&files, none).unwrap_err();
            assert_eq!(failed.code, ORIGIN, "{none}");
            assert!(
                failed.message.contains("`tributary shared`"),
                "{}",
                failed.message
            );
        }
    }

    #[test]
    fn a_name_of_several_contents_is_answered_with_their_digests() {
        let files = [file("a", 1, "ann"), file("a", 2, "bob")];
        let failed = choose(&files, "a").unwrap_err();
        assert_eq!(failed.code, REFUSED);
        for digest in [[1; 32], [2; 32]] {
            assert!(failed.message.contains(&hex(&digest)), "{}", failed.message);
        }
        assert!(failed.message.contains("(of bob)"), "{}", failed.message);
        let liar = SharedFile {
            bytes: 7,
            ..file("a", 1, "eve")
        };
        assert!(choose(&[file("a", 1, "ann"), liar], "a").is_err());
    }

    #[test]
    fn what_only_this_device_offers_is_not_fetched_from_itself() {
        let files = [file("a", 1, OWN), file("b", 2, OWN), file("b", 2, "ann")];
        let failed = choose(&files, "a").unwrap_err();
        assert!(failed.message.contains("this device's own"), "{}", failed.message);
        assert_eq!(choose(&files, "b").unwrap().total, 2);
    }
}
