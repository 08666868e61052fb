//! FUZ-7, the parser of the program's own: who announces tributary in a packet.

use tributary::fuzzing::announced;

/// The bytes as a packet: what is found is bounded by the packet, is there, and is found twice.
pub fn check(data: &[u8]) {
    let found = announced(data);
    assert_eq!(announced(data), found);
    // A record takes 11 bytes at least.
    assert!(found.len() <= data.len() / 11);
    for (name, _) in &found {
        assert!(
            name.len() <= 32 && !name.chars().any(char::is_control),
            "{name:?}"
        );
    }
    // What follows the records that the head counts is nothing.
    let longer = [data, &[0; 16][..]].concat();
    assert!(announced(&longer).starts_with(&found));
}
