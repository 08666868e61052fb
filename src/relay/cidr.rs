//! Ranges of addresses as people write them: `192.0.2.0/24`, `2001:db8::/32`, or one address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::Deserialize;

/// A range of addresses of one family. Invariant: the bits behind the prefix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// A text that is no range of addresses; says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not an address.
    #[error(
        "`{0}` is not a range of addresses: write one such as `192.0.2.0/24`, `2001:db8::/32` or `192.0.2.1`"
    )]
    Address(String),
    /// A prefix longer than the address, or no number.
    #[error("`{found}`: the prefix after `/` must be a number from 0 to {most}")]
    Prefix {
        /// What was written.
        found: String,
        /// The address's length in bits.
        most: u8,
    },
    /// Bits behind the prefix.
    #[error("`{found}` has bits behind its prefix: do you mean `{meant}`?")]
    Bits {
        /// What was written.
        found: String,
        /// The range that contains it.
        meant: Cidr,
    },
}

impl Cidr {
    /// The range of this length that contains `address`; a longer prefix than the address has counts as all of it.
    pub fn around(address: IpAddr, prefix: u8) -> Self {
        let prefix = prefix.min(bits(address));
        let address = match address {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & mask4(prefix)).into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & mask6(prefix)).into(),
        };
        Self { address, prefix }
    }

    /// A range of a table in the code: 4 numbers and a prefix.
    pub const fn v4(octets: [u8; 4], prefix: u8) -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3])),
            prefix,
        }
    }

    /// A range of a table in the code: the first 4 groups (the others are zero) and a prefix.
    pub const fn v6(head: [u16; 4], prefix: u8) -> Self {
        let address = Ipv6Addr::new(head[0], head[1], head[2], head[3], 0, 0, 0, 0);
        Self {
            address: IpAddr::V6(address),
            prefix,
        }
    }

    /// One address.
    pub const fn one(address: Ipv6Addr) -> Self {
        Self {
            address: IpAddr::V6(address),
            prefix: 128,
        }
    }

    /// Whether `ip` lies in it. Families never mix, not even mapped ones.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => ip.to_bits() & mask4(self.prefix) == own.to_bits(),
            (IpAddr::V6(own), IpAddr::V6(ip)) => ip.to_bits() & mask6(self.prefix) == own.to_bits(),
            _ => false,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let text = text.trim();
        // A message must not carry a whole file.
        let found = || text.chars().take(60).collect::<String>();
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| CidrError::Address(found()))?;
        let most = bits(address);
        let prefix = match prefix {
            None => most,
            Some(digits) => digits
                .parse()
                .ok()
                .filter(|p| *p <= most && digits.bytes().all(|b| b.is_ascii_digit()))
                .ok_or_else(|| CidrError::Prefix { found: found(), most })?,
        };
        let range = Self::around(address, prefix);
        if range.address != address {
            return Err(CidrError::Bits {
                found: found(),
                meant: range,
            });
        }
        Ok(range)
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

const fn bits(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn mask4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

fn mask6(prefix: u8) -> u128 {
    u128::MAX
        .checked_shl(128 - u32::from(prefix.min(128)))
        .unwrap_or(0)
}

#[cfg(test)]
impl Cidr {
    /// The borders, for tests that look there.
    pub(super) fn first_and_last(&self) -> (IpAddr, IpAddr) {
        let last = match self.address {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() | !mask4(self.prefix)).into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() | !mask6(self.prefix)).into(),
        };
        (self.address, last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_read_as_people_write_them() {
        for (text, shown) in [
            ("203.0.113.0/24", "203.0.113.0/24"),
            (" 10.0.0.0/8 ", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn a_wrong_range_is_refused_with_what_to_write() {
        for (text, says) in [
            ("", "such as `192.0.2.0/24`"),
            ("printer", "such as"),
            ("192.168.1/24", "such as"),
            ("10.0.0.0/33", "from 0 to 32"),
            ("10.0.0.0/+8", "from 0 to 32"),
            ("10.0.0.0/", "from 0 to 32"),
            ("fd00::/129", "from 0 to 128"),
            ("192.168.1.7/24", "do you mean `192.168.1.0/24`"),
        ] {
            let error = text.parse::<Cidr>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_range_contains_what_shares_its_leading_bits(a: u128, b: u128, prefix in 0u8..=128) {
            let same = (0..prefix).all(|i| (a >> (127 - i)) & 1 == (b >> (127 - i)) & 1);
            let v6 = |bits| IpAddr::from(Ipv6Addr::from_bits(bits));
            prop_assert_eq!(Cidr::around(v6(a), prefix).contains(v6(b)), same);
            prop_assert!(Cidr::around(v6(a), prefix).contains(v6(a)));
            let (a4, b4, prefix) = (a as u32, b as u32, prefix % 33);
            let same = (0..prefix).all(|i| (a4 >> (31 - i)) & 1 == (b4 >> (31 - i)) & 1);
            let v4 = |bits| IpAddr::from(Ipv4Addr::from_bits(bits));
            prop_assert_eq!(Cidr::around(v4(a4), prefix).contains(v4(b4)), same);
            prop_assert!(!Cidr::around(v4(a4), 0).contains(v6(a)));
        }
    }
}
