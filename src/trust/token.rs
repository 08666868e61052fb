//! Tokens: what the owner of a member carries to a new device, once, on paper or in the clipboard.
//!
//! Pure. A token is 128 random bits and a checksum, in letters and digits that nobody confuses (Crockford's base 32).
//! It is kept in memory alone: a restart ends all of them, so that a power cut can never give one a second life.
//! Invariants: a token is used once, whoever comes at the same time; it ends; few are open at once.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use ring::digest;
use serde::{Deserialize, Serialize};

use super::pake::Secret;
use super::words::No;

/// Without Crockford's excluded letters: I, L, O and U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const SECRET: usize = 16;
/// Six groups of five: 128 bits of secret and 22 that check it.
const LETTERS: usize = 30;
const GROUP: usize = 5;
const CHECK_DOMAIN: &[u8] = b"tributary 1 token checksum\0";
const ID_DOMAIN: &[u8] = b"tributary 1 token id\0";
/// Open at once; an owner who needs more of them has scripts that can wait.
pub const MAX_TOKENS: usize = 16;
/// Remembered to say why one is over, and for nothing else.
const MAX_OVER: usize = 64;
/// How long one is good for, where nothing else is said.
pub const VALID: Duration = Duration::from_secs(3600);
/// And at most.
pub const MAX_VALID: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a device may say of a token to all who hear it: it is none the wiser who knows it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenId(pub [u8; 16]);

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token(Secret);

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// A sign that no token has.
    #[error("`{0}` is in no token: it has the digits and the letters A to Z without U, in groups of five")]
    Sign(char),
    /// Too short or too long.
    #[error("a token has {LETTERS} letters and digits, this has {0}")]
    Length(usize),
    /// The checksum.
    #[error("the token is mistyped: its letters do not fit together")]
    Mistyped,
}

impl Token {
    /// The token of these random bytes.
    pub fn new(random: [u8; SECRET]) -> Self {
        Self(Secret::new(random.to_vec()))
    }

    /// What it is, to prove that one knows it.
    pub fn secret(&self) -> &[u8] {
        self.0.bytes()
    }

    /// Its id.
    pub fn id(&self) -> TokenId {
        TokenId(hash(ID_DOMAIN, self.secret()))
    }
}

fn hash<const N: usize>(domain: &[u8], secret: &[u8]) -> [u8; N] {
    let digest = digest::digest(&digest::SHA256, &[domain, secret].concat());
    let mut start = [0; N];
    for (to, from) in start.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    start
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let check: [u8; 3] = hash(CHECK_DOMAIN, self.secret());
        let bits = [self.secret(), &check[..]].concat();
        for at in 0..LETTERS {
            if at > 0 && at % GROUP == 0 {
                f.write_str("-")?;
            }
            let value = (0..5).fold(0, |value, n| value << 1 | bit(&bits, at * 5 + n));
            let letter = ALPHABET.get(usize::from(value)).copied().unwrap_or_default();
            write!(f, "{}", char::from(letter))?;
        }
        Ok(())
    }
}

fn bit(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at / 8).map_or(0, |byte| byte >> (7 - at % 8) & 1)
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut bits = [0_u8; (LETTERS * 5).div_ceil(8)];
        let mut letters = 0;
        for sign in text.chars().filter(|c| !c.is_whitespace() && *c != '-') {
            let value = value(sign).ok_or(TokenError::Sign(sign))?;
            for n in 0..5 {
                let at = letters * 5 + n;
                if let Some(byte) = bits.get_mut(at / 8) {
                    *byte |= (value >> (4 - n) & 1) << (7 - at % 8);
                }
            }
            letters += 1;
        }
        if letters != LETTERS {
            return Err(TokenError::Length(letters));
        }
        let secret = bits.first_chunk().copied().ok_or(TokenError::Mistyped)?;
        let token = Self::new(secret);
        // What else the letters hold is the checksum: so it is compared whole.
        let typed: Vec<char> = text.chars().filter_map(letter).collect();
        let right: Vec<char> = token.to_string().chars().filter_map(letter).collect();
        if typed == right {
            Ok(token)
        } else {
            Err(TokenError::Mistyped)
        }
    }
}

/// A sign's value; people write O for 0, and I or L for 1.
fn value(sign: char) -> Option<u8> {
    let sign = letter(sign)?;
    let at = ALPHABET.iter().position(|l| char::from(*l) == sign)?;
    u8::try_from(at).ok()
}

fn letter(sign: char) -> Option<char> {
    match sign.to_ascii_uppercase() {
        'O' => Some('0'),
        'I' | 'L' => Some('1'),
        '-' => None,
        c if c.is_whitespace() => None,
        c => Some(c),
    }
}

/// A token that somebody may still come with.
#[derive(Debug)]
pub struct Invitation {
    /// The token.
    pub token: Token,
    /// Whoever comes may vouch for others.
    pub may_vouch: bool,
    until: Instant,
}

/// The tokens that this device has given out.
#[derive(Debug, Default)]
pub struct Tokens {
    open: Vec<Invitation>,
    over: VecDeque<(TokenId, No)>,
}

impl Tokens {
    /// Lets somebody come with this token; false where too many are open.
    pub fn add(&mut self, token: Token, may_vouch: bool, valid: Duration, now: Instant) -> bool {
        self.expire(now);
        let room = self.open.len() < MAX_TOKENS;
        if room {
            let until = now + valid.min(MAX_VALID);
            self.open.push(Invitation {
                token,
                may_vouch,
                until,
            });
        }
        room
    }

    /// The token of that id.
    ///
    /// # Errors
    /// Why there is none.
    pub fn get(&mut self, id: TokenId, now: Instant) -> Result<&Invitation, No> {
        self.expire(now);
        let over = self.over.iter().find(|(of, _)| *of == id).map(|(_, why)| *why);
        let open = self.open.iter().find(|i| i.token.id() == id);
        open.ok_or(over.unwrap_or(No::Unknown))
    }

    /// Uses it up: whoever asks for it next does not get it.
    ///
    /// # Errors
    /// Why there is none.
    pub fn take(&mut self, id: TokenId, now: Instant) -> Result<Invitation, No> {
        self.get(id, now)?;
        let at = self.open.iter().position(|i| i.token.id() == id);
        let invitation = self.open.swap_remove(at.ok_or(No::Unknown)?);
        self.end(id, No::Used);
        Ok(invitation)
    }

    fn expire(&mut self, now: Instant) {
        let (open, over): (Vec<_>, Vec<_>) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|i| now < i.until);
        self.open = open;
        for invitation in over {
            self.end(invitation.token.id(), No::Expired);
        }
    }

    fn end(&mut self, id: TokenId, why: No) {
        if self.over.len() == MAX_OVER {
            self.over.pop_front();
        }
        self.over.push_back((id, why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn token(n: u8) -> Token {
        Token::new([n; 16])
    }

    #[test]
    fn a_token_is_read_however_it_is_typed() {
        for n in [0, 1, 0x5a, 0xff] {
            let token = token(n);
            let text = token.to_string();
            assert_eq!(text.len(), 35, "{text}");
            let sloppy = text
                .to_lowercase()
                .replace('-', " ")
                .replace('0', "o")
                .replace('1', "l");
            for typed in [&text, &sloppy, &text.replace('-', ""), &format!("  {text}\r\n")] {
                assert_eq!(typed.parse(), Ok(token.clone()), "{typed}");
            }
            let shown = format!("{token:?}");
            assert!(!shown.contains("90"), "printed: {shown}");
        }
        assert_eq!("abc".parse::<Token>(), Err(TokenError::Length(3)));
        assert_eq!("U".parse::<Token>(), Err(TokenError::Sign('U')));
        assert_eq!("ü".parse::<Token>(), Err(TokenError::Sign('ü')));
        assert_eq!("0".repeat(31).parse::<Token>(), Err(TokenError::Length(31)));
        assert_eq!(
            "0".repeat(10_000).parse::<Token>(),
            Err(TokenError::Length(10_000))
        );
    }

    #[test]
    fn every_single_mistake_is_noticed() {
        let text: String = token(0x37).to_string().replace('-', "");
        for at in 0..text.len() {
            for other in ALPHABET.iter().map(|l| char::from(*l)) {
                let mut typed: Vec<char> = text.chars().collect();
                let right = std::mem::replace(&mut typed[at], other);
                let typed: String = typed.into_iter().collect();
                assert_eq!(typed.parse::<Token>().is_ok(), right == other, "{typed}");
            }
        }
        for at in 1..text.len() {
            let mut typed: Vec<char> = text.chars().collect();
            typed.swap(at - 1, at);
            let typed: String = typed.into_iter().collect();
            assert_eq!(typed.parse::<Token>().is_ok(), typed == text, "{typed}");
        }
    }

    #[test]
    fn a_token_is_used_once_and_ends() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        let id = token(1).id();
        assert!(tokens.add(token(1), true, HOUR, now));
        assert!(tokens.get(id, now + HOUR - Duration::from_secs(1)).is_ok());
        assert!(tokens.take(id, now).unwrap().may_vouch);
        assert_eq!(tokens.take(id, now).unwrap_err(), No::Used);
        assert_eq!(tokens.get(id, now).unwrap_err(), No::Used);
        assert!(tokens.add(token(2), false, HOUR, now));
        assert_eq!(tokens.take(token(2).id(), now + HOUR).unwrap_err(), No::Expired);
        assert_eq!(tokens.take(token(3).id(), now).unwrap_err(), No::Unknown);
    }

    #[test]
    fn no_token_is_good_for_more_than_a_week_and_sixteen_are_open_at_most() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        for n in 0..16 {
            assert!(tokens.add(token(n), true, Duration::MAX.min(MAX_VALID * 9), now));
        }
        assert!(!tokens.add(token(16), true, HOUR, now));
        assert!(tokens.get(token(0).id(), now + MAX_VALID - HOUR).is_ok());
        assert!(tokens.add(token(16), true, HOUR, now + MAX_VALID));
        for n in 0..200 {
            let later = now + MAX_VALID;
            tokens.add(token(n), true, HOUR, later);
            let _ = tokens.take(token(n).id(), later);
        }
        assert!(tokens.over.len() <= MAX_OVER);
    }

    #[test]
    fn an_id_tells_one_token_from_another_and_is_not_the_secret() {
        assert_ne!(token(1).id(), token(2).id());
        assert_ne!(token(1).id().0, [1; 16]);
    }
}
