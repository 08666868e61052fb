//! FUZ-14: whose key a certificate is. Exactly one shape is one: an Ed25519 key and nothing else.

use tributary::fuzzing::accepts_certificate;
use tributary::identity::peer_of_spki;

/// The bytes as what a peer shows, and again with something after them.
pub fn check(data: &[u8]) {
    let found = peer_of_spki(data);
    assert_eq!(found.map(|id| id.0), slow(data), "{data:02x?}");
    assert_eq!(accepts_certificate(data, &[]), (found.is_some(), found.is_some()));
    assert_eq!(
        accepts_certificate(data, &[data]),
        (false, false),
        "a chain is none"
    );
    // The same key in the only frame there is for it, and in every other one of that length.
    if let [key @ .., flip] = data
        && let Ok(key) = <[u8; 32]>::try_from(key)
    {
        let mut good = vec![0x30, 42, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 33, 0];
        good.extend_from_slice(&key);
        assert_eq!(peer_of_spki(&good).map(|id| id.0), Some(key));
        let (byte, bit) = (usize::from(flip / 8) % 12, flip % 8);
        good[byte] ^= 1 << bit;
        assert_eq!(accepts_certificate(&good, &[]), (false, false));
    }
}

/// RFC 8410 4 in DER (X.690), one element at a time: `SEQUENCE { SEQUENCE { OID 1.3.101.112 }, BIT STRING }`, where the
/// algorithm has no parameters, the string no unused bits, and nothing follows anything.
fn slow(data: &[u8]) -> Option<[u8; 32]> {
    let (spki, rest) = element(data, 0x30)?;
    let (algorithm, key) = element(spki, 0x30)?;
    let (oid, parameters) = element(algorithm, 6)?;
    let (key, after) = element(key, 3)?;
    let nothing = rest.is_empty() && parameters.is_empty() && after.is_empty();
    // 1.3 is 40 + 3.
    if oid != [43, 101, 112] || !nothing {
        return None;
    }
    let (unused, key) = key.split_first()?;
    if *unused != 0 {
        return None;
    }
    key.try_into().ok()
}

/// The contents of one element, and what follows it. Lengths in their shortest form only; none of ours needs a longer one.
fn element(data: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let [found, length, rest @ ..] = data else {
        return None;
    };
    if *found != tag || *length >= 0x80 {
        return None;
    }
    rest.split_at_checked(usize::from(*length))
}
