//! FUZ-14: what members say on the household's streams, and the leaves that they sign.

use tributary::fuzzing::device;
use tributary::share::Subject;
use tributary::share::leaves::Leaves;
use tributary::share::wire::{News, decode, question};
use tributary::types::PIECE;

use super::frames::judge_text;
use super::input::Input;

const PIECES: u64 = 300;

/// A body as each kind of news and question, and as a batch of leaves: as it comes, and signed by a member, whatever it is.
pub fn check(data: &[u8]) {
    for kind in 40..64 {
        let _ = question(kind, data);
        if let Ok(news) = decode(kind, data) {
            judge(&news, kind);
        }
    }
    let mut leaves = Leaves::new(Subject([7; 32]), PIECES * PIECE);
    if leaves.add(data, &|_| false).is_ok() {
        let mut forged = data.to_vec();
        let at = usize::from(data.last().copied().unwrap_or_default()) % forged.len();
        forged[at] ^= 1;
        assert!(leaves.add(&forged, &|_| false).is_err(), "nobody signed that");
        leaves = Leaves::new(leaves.subject(), PIECES * PIECE);
    }
    let mut input = Input(data);
    let mut entries = Vec::new();
    while !input.is_empty() && entries.len() < 64 {
        entries.push((u32::from(input.u16()), [input.u8(); 32]));
    }
    for (n, entries) in entries.chunks(8).enumerate() {
        let key = device(n as u8 % 2);
        let signed = Leaves::sign(leaves.subject(), entries, &key);
        let (known, told) = (leaves.len(), leaves.add(&signed, &|_| false));
        if entries.iter().any(|(piece, _)| u64::from(*piece) >= PIECES) {
            assert!(
                told.is_err() && leaves.len() == known,
                "pieces that are not there"
            );
        }
        assert!(
            leaves.add(&signed, &|id| id == key.id()).is_err(),
            "the word of one who is barred"
        );
    }
    for piece in 0..PIECES {
        let said = entries.iter().filter(|(of, _)| u64::from(*of) == piece);
        if let Some(leaf) = leaves.leaf(piece) {
            assert!(said.clone().any(|(_, hash)| *hash == leaf.hash));
        }
    }
}

fn judge(news: &News, kind: u16) {
    if let News::Offered(files) = news {
        for file in files {
            judge_text(&file.name);
            assert!(!file.name.contains(['/', '\\']) && !file.name.starts_with('.'));
        }
    }
    if *news == News::Unknown {
        return;
    }
    // What was understood and cut short is said and understood again as it is.
    match news.frame() {
        Ok(frame) => assert_eq!(decode(kind, &frame[6..]).as_ref().ok(), Some(news)),
        Err(error) => panic!("cannot be said again: {error}"),
    }
}
