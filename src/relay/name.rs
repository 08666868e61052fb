//! Host names, as a borrower must give them: names only, never an address in any spelling, nothing that is answered on
//! the LAN by its nature. Pure.
//!
//! What a name resolves to is judged by number later (`egress`); this keeps away what resolvers turn into an address
//! by themselves (`127.1`, `0x7f000001`) and what would make the lender ask its LAN about its own devices.

/// The longest name DNS can carry.
const MAX_NAME: usize = 253;
/// The longest part between two dots.
const MAX_LABEL: usize = 63;
/// Names that by RFC 6761, 6762, 7686, 8375 or ICANN's word are never public.
const LOCAL: &[&str] = &[
    "localhost",
    "local",
    "internal",
    "home.arpa",
    "onion",
    "invalid",
    "alt",
    "localdomain",
];

/// Why a text is no name of a public host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, too long, empty or too long between two dots.
    #[error("not a host name: its length")]
    Length,
    /// Something else than letters, digits, `-`, `_` and single dots.
    #[error("not a host name: its characters")]
    Characters,
    /// An address in one of its spellings.
    #[error("an address: give a host name")]
    Address,
    /// A single word, or below a domain that is never public.
    #[error("a name of local use")]
    Local,
}

/// The name in lower case and without a trailing dot.
///
/// # Errors
/// Why it is refused.
pub fn check_name(host: &str) -> Result<String, NameError> {
    let bare = host.strip_suffix('.').unwrap_or(host);
    if bare.is_empty() || bare.len() > MAX_NAME {
        return Err(NameError::Length);
    }
    if bare.contains([':', '[', ']']) {
        return Err(NameError::Address);
    }
    let name = bare.to_ascii_lowercase();
    for label in name.split('.') {
        check_label(label)?;
    }
    // Resolvers read a text as an IPv4 address if its last part is a number: decimal, octal or hex.
    let last = name.rsplit('.').next().unwrap_or(&name);
    if last.bytes().all(|b| b.is_ascii_digit()) || is_hex_number(last) {
        return Err(NameError::Address);
    }
    let local = |domain: &&str| match name.strip_suffix(*domain) {
        Some(head) => head.is_empty() || head.ends_with('.'),
        None => false,
    };
    if !name.contains('.') || LOCAL.iter().any(local) {
        return Err(NameError::Local);
    }
    Ok(name)
}

fn check_label(label: &str) -> Result<(), NameError> {
    if label.is_empty() || label.len() > MAX_LABEL {
        return Err(NameError::Length);
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !label.bytes().all(allowed) || label.starts_with('-') || label.ends_with('-') {
        return Err(NameError::Characters);
    }
    Ok(())
}

fn is_hex_number(label: &str) -> bool {
    label
        .strip_prefix("0x")
        .is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn host_names_pass_in_one_spelling() {
        for (given, name) in [
            ("example.com", "example.com"),
            ("Example.COM.", "example.com"),
            ("a.b-c.xn--p1ai", "a.b-c.xn--p1ai"),
            ("my_bucket.s3.example.com", "my_bucket.s3.example.com"),
            ("1.2.3.4.example.com", "1.2.3.4.example.com"),
            ("127.0.0.1.nip.example", "127.0.0.1.nip.example"),
            ("origin.demo.test", "origin.demo.test"),
            ("notlocalhost.com", "notlocalhost.com"),
            ("local.example", "local.example"),
            ("0xg.example", "0xg.example"),
        ] {
            assert_eq!(check_name(given).as_deref(), Ok(name), "{given}");
        }
    }

    #[test]
    fn sec_a5_addresses_are_no_names_in_any_spelling() {
        for text in [
            "192.168.1.1",
            "192.168.1.1.",
            "127.1",
            "127.1.",
            "2130706433",
            "2130706433.",
            "0x7f000001",
            "0X7F000001",
            "0x7f.1",
            "0x7f.0.0.0x1",
            "127.0.0.0x1",
            "017700000001",
            "0177.0.0.1",
            "0177.0.0.01",
            "0x",
            "0x.0x",
            "1",
            "0",
            "[::1]",
            "[::1",
            "::1]",
            "::1",
            "::ffff:10.0.0.1",
            "[::ffff:10.0.0.1]",
            "64:ff9b::a00:1",
            "2002:0a00:0001::",
            "fe80::1%eth0",
            "[fe80::1%25eth0]",
            "localhost:80",
            "256.256.256.256",
            "99999999999",
            "1.2.3.4.5",
            "example.com.127",
            "a.0x7f",
        ] {
            assert_eq!(check_name(text), Err(NameError::Address), "{text}");
        }
    }

    #[test]
    fn sec_a5_local_names_are_refused() {
        for text in [
            "localhost",
            "LOCALHOST",
            "localhost.",
            "x.localhost",
            "a.b.localhost.",
            "printer.local",
            "printer.LOCAL.",
            "local",
            "router",
            "nas",
            "intranet.",
            "metadata.google.internal",
            "nas.home.arpa",
            "x.onion",
            "localhost.localdomain",
        ] {
            assert_eq!(check_name(text), Err(NameError::Local), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_name_is_refused() {
        let long = format!("{}.com", "a".repeat(64));
        let endless = "a.".repeat(126) + "com";
        for (text, why) in [
            ("", NameError::Length),
            (".", NameError::Length),
            ("..", NameError::Length),
            ("example..com", NameError::Length),
            (".example.com", NameError::Length),
            ("example.com..", NameError::Length),
            (&long, NameError::Length),
            (&endless, NameError::Length),
            ("exa mple.com", NameError::Characters),
            ("example.com\0", NameError::Characters),
            ("example.com/", NameError::Characters),
            ("user@example.com", NameError::Characters),
            ("example.com\r\nx", NameError::Characters),
            ("%31.example.com", NameError::Characters),
            ("-a.example.com", NameError::Characters),
            ("a-.example.com", NameError::Characters),
            ("b\u{fc}cher.example", NameError::Characters),
            ("127\u{3002}0\u{3002}0\u{3002}1", NameError::Characters),
            ("\u{ff11}27.0.0.1", NameError::Characters),
        ] {
            assert_eq!(check_name(text), Err(why), "{text:?}");
        }
        assert!(check_name(&("a.".repeat(125) + "com")).is_ok());
    }

    proptest! {
        #[test]
        fn what_the_system_reads_as_an_address_is_no_name(parts in prop::collection::vec(0u64..300, 1..5), hex in any::<[bool; 4]>(), dot: bool) {
            let spell = |(i, part): (usize, &u64)| if hex[i] { format!("{part:#x}") } else { format!("{part:#o}").replace("0o", "0") };
            let text: Vec<String> = parts.iter().enumerate().map(spell).collect();
            let text = text.join(".") + if dot { "." } else { "" };
            prop_assert_eq!(check_name(&text), Err(NameError::Address), "{}", text);
        }

        #[test]
        fn whatever_passes_is_a_clean_name_and_no_address(text in "[0-9a-fx.]{1,20}") {
            if let Ok(name) = check_name(&text) {
                prop_assert_eq!(check_name(&name), Ok(name.clone()));
                prop_assert!(name.parse::<std::net::IpAddr>().is_err());
            }
        }
    }
}
