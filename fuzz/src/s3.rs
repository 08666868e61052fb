//! What an S3 service answers: read as each kind of answer there is, nothing panics, and no word for people has a control
//! character in it or is without end.

use tributary::fuzzing::s3_answer;

/// Longer than any id, ETag or message that is passed on.
const LONG: usize = 4 << 10;

/// As the body of an answer.
pub fn check(data: &[u8]) {
    for word in s3_answer(data) {
        assert!(word.len() <= LONG, "{} bytes", word.len());
        assert!(!word.chars().any(char::is_control), "{word:?}");
    }
}
