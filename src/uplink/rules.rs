//! What the owner says of single uplinks: the word that wins over whatever the kernel's tables suggest.
//!
//! Pure. Invariant: applied to a snapshot, rules change nothing but the fields they are about, and applying them twice
//! is applying them once.

use crate::types::LineId;
use crate::uplink::Network;
use crate::uplink::limit::Cap;

/// Whom an uplink is lent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lend {
    /// Nobody: it is for this device itself.
    Nobody,
    /// Those who may borrow what is kept for the household, even where it is metered.
    Members,
    /// Every peer, unless it is metered.
    #[default]
    All,
}

/// One `[[uplink]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The interface it is about, by name.
    pub interface: String,
    /// Which peers may use it. Default: all.
    pub lend: Lend,
    /// Whether its bytes cost money. Default, `None`: by what kind of interface it is.
    pub metered: Option<bool>,
    /// The most it may carry. Default: unlimited.
    pub cap: Cap,
    /// The line it ends in, as the owner knows it. Default, `None`: as found out.
    pub line: Option<LineId>,
}

impl Rule {
    /// A rule that changes nothing yet.
    pub fn new(interface: &str) -> Self {
        Self {
            interface: interface.into(),
            lend: Lend::All,
            metered: None,
            cap: Cap::default(),
            line: None,
        }
    }
}

/// Every rule, one for an interface at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// The rule for an interface.
    pub fn of(&self, interface: &str) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.interface == interface)
    }

    /// The rule for an interface, made where there is none.
    pub fn entry(&mut self, interface: &str) -> &mut Rule {
        let place = self.0.iter().position(|rule| rule.interface == interface);
        let place = place.unwrap_or_else(|| {
            self.0.push(Rule::new(interface));
            self.0.len() - 1
        });
        &mut self.0[place]
    }

    /// The limits that are set, by interface.
    pub fn caps(&self) -> impl Iterator<Item = (&str, Cap)> {
        self.0.iter().map(|rule| (rule.interface.as_str(), rule.cap))
    }

    /// The snapshot as the owner wants it seen.
    pub fn apply(&self, mut network: Network) -> Network {
        for uplink in &mut network.uplinks {
            let Some(rule) = self.of(&uplink.name) else {
                continue;
            };
            uplink.lend = rule.lend;
            uplink.metered = rule.metered.unwrap_or(uplink.metered);
            if let Some(line) = rule.line {
                uplink.line = line;
                uplink.line_named = true;
            }
        }
        network
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::types::UplinkKind;
    use crate::uplink::Uplink;

    fn uplink(name: &str, kind: UplinkKind) -> Uplink {
        Uplink {
            kind,
            metered: kind == UplinkKind::Cellular,
            line: LineId([1; 8]),
            ..Uplink::fixture(1, name)
        }
    }

    fn network() -> Network {
        Network {
            interfaces: vec![],
            uplinks: vec![
                uplink("wwan0", UplinkKind::Cellular),
                uplink("eth0", UplinkKind::Wired),
            ],
        }
    }

    #[test]
    fn without_a_rule_nothing_changes() {
        assert_eq!(Rules::default().apply(network()), network());
        let about_another = Rules(vec![Rule {
            lend: Lend::Nobody,
            ..Rule::new("eth1")
        }]);
        assert_eq!(about_another.apply(network()), network());
    }

    #[test]
    fn the_owners_word_wins_and_only_where_it_was_given() {
        let rules = Rules(vec![
            Rule {
                metered: Some(false),
                ..Rule::new("wwan0")
            },
            Rule {
                lend: Lend::Nobody,
                line: Some(LineId::named("the cable")),
                ..Rule::new("eth0")
            },
        ]);
        let ruled = rules.apply(network());
        let [wwan, eth] = &ruled.uplinks[..] else {
            panic!("two uplinks: {ruled:?}")
        };
        assert_eq!(
            (wwan.metered, wwan.lend, wwan.line_named),
            (false, Lend::All, false)
        );
        assert_eq!(
            (eth.metered, eth.lend, eth.line_named),
            (false, Lend::Nobody, true)
        );
        assert_eq!(eth.line, LineId::named("the cable"));
        assert_ne!(eth.line, LineId::named("the mast"));
        assert_eq!(rules.apply(ruled.clone()), ruled);
    }
}
