//! Tests of what is kept and told.

use std::fs;

use super::*;

struct Device {
    state: StateDir,
    key: DeviceKey,
    _directory: tempfile::TempDir,
}

impl Device {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let key = DeviceKey::load_or_create(&state).unwrap();
        Self {
            state,
            key,
            _directory: directory,
        }
    }

    fn trust(&self) -> Trust {
        Trust::load(&self.state, &self.key).unwrap()
    }
}

/// Without a file.
fn alone() -> Trust {
    Trust::none(&DeviceKey::ephemeral().unwrap())
}

fn stranger() -> PeerId {
    DeviceKey::ephemeral().unwrap().id()
}

/// What both know is what either knew, as if they were linked.
fn meet(a: &Trust, b: &Trust) {
    for _ in 0..2 {
        b.hear(a.me(), a.statements()).unwrap();
        a.hear(b.me(), b.statements()).unwrap();
    }
}

#[test]
fn every_right_stands_in_the_table_once() {
    let rights: std::collections::BTreeSet<Right> = RIGHTS.iter().map(|(right, _)| *right).collect();
    assert_eq!(rights.len(), RIGHTS.len());
    for (right, least) in RIGHTS {
        assert!(!Tier::Blocked.may(*right), "{right:?}");
        assert!(Tier::Member.may(*right), "{right:?}");
        assert_eq!(Tier::Neighbour.may(*right), *least == Tier::Neighbour);
    }
}

#[test]
fn flt_45_who_is_trusted_survives_a_restart_and_a_damaged_file_trusts_nobody() {
    let device = Device::new();
    let (friend, foe) = (stranger(), stranger());
    let trust = device.trust();
    trust.vouch(friend, true).unwrap();
    trust.called(friend, "kitchen-pi");
    trust.put_out(foe, PutOut::Block).unwrap();
    let tiers = |trust: &Trust| [friend, foe].map(|peer| trust.tier(peer));
    assert_eq!(tiers(&trust), [Tier::Member, Tier::Blocked]);
    assert_eq!(tiers(&device.trust()), [Tier::Member, Tier::Blocked]);
    assert_eq!(device.trust().name(friend).as_deref(), Some("kitchen-pi"));

    fs::write(device.state.path(FILE), b"{\"statements\": [\"half a fi").unwrap();
    assert_eq!(tiers(&device.trust()), [Tier::Neighbour; 2]);
    assert!(device.state.path("trust.json.damaged").exists());
}

#[test]
fn one_damaged_statement_in_the_file_costs_that_one_only() {
    let device = Device::new();
    let friends = [stranger(), stranger()];
    for friend in friends {
        device.trust().vouch(friend, true).unwrap();
    }
    let text = fs::read_to_string(device.state.path(FILE)).unwrap();
    let mut kept: Kept = serde_json::from_str(&text).unwrap();
    kept.statements[0].replace_range(100..102, "zz");
    fs::write(device.state.path(FILE), serde_json::to_vec(&kept).unwrap()).unwrap();
    let left = friends
        .into_iter()
        .filter(|f| device.trust().tier(*f) == Tier::Member);
    assert_eq!(left.count(), 1);
}

#[test]
fn sec_b10_a_trust_table_with_another_key_trusts_nobody() {
    let (device, other) = (Device::new(), Device::new());
    let friend = stranger();
    device.trust().vouch(friend, true).unwrap();
    fs::copy(device.state.path(FILE), other.state.path(FILE)).unwrap();
    assert_eq!(other.trust().tier(friend), Tier::Neighbour);
}

#[test]
fn a_device_that_is_forgotten_leaves_those_it_vouched_for_and_a_blocked_one_takes_them_with_it() {
    let [a, b, c] = [alone(), alone(), alone()];
    for (one, other) in [(&a, &b), (&b, &a), (&b, &c), (&c, &b)] {
        one.vouch(other.me(), true).unwrap();
    }
    meet(&a, &b);
    meet(&b, &c);
    assert_eq!([a.tier(c.me()), c.tier(a.me())], [Tier::Member; 2]);
    assert!(a.put_out(b.me(), PutOut::Forget).unwrap().is_empty());
    assert_eq!([a.tier(b.me()), a.tier(c.me())], [Tier::Neighbour, Tier::Member]);

    let d = stranger();
    a.vouch(b.me(), true).unwrap();
    b.hear(a.me(), a.statements()).unwrap();
    b.vouch(a.me(), true).unwrap();
    b.vouch(d, true).unwrap();
    a.hear(b.me(), b.statements()).unwrap();
    assert_eq!(a.tier(d), Tier::Member);
    assert_eq!(a.put_out(b.me(), PutOut::Block).unwrap(), [d]);
    assert_eq!(
        [a.tier(b.me()), a.tier(d), a.tier(c.me())],
        [Tier::Blocked, Tier::Neighbour, Tier::Member]
    );
}

#[test]
fn a_block_is_lifted_by_forgetting_and_by_vouching() {
    let trust = alone();
    let peer = stranger();
    trust.put_out(peer, PutOut::Block).unwrap();
    trust.put_out(peer, PutOut::Forget).unwrap();
    assert_eq!(trust.tier(peer), Tier::Neighbour);
    trust.put_out(peer, PutOut::Block).unwrap();
    assert_eq!(trust.tier(peer), Tier::Blocked);
    trust.vouch(peer, false).unwrap();
    assert_eq!(trust.tier(peer), Tier::Member);
}

#[test]
fn nothing_can_be_said_of_oneself_but_that_one_leaves() {
    let trust = alone();
    assert!(matches!(trust.vouch(trust.me(), true), Err(TrustError::Oneself)));
    assert!(matches!(
        trust.put_out(trust.me(), PutOut::Block),
        Err(TrustError::Oneself)
    ));
    trust.leave().unwrap();
}

#[test]
fn who_left_can_be_vouched_for_again() {
    let (a, b) = (alone(), alone());
    a.vouch(b.me(), true).unwrap();
    b.vouch(a.me(), true).unwrap();
    meet(&a, &b);
    b.leave().unwrap();
    assert_eq!(b.tier(a.me()), Tier::Neighbour);
    // What links do when they meet as neighbours.
    a.hear(b.me(), b.last_word(a.me()).into_iter().collect()).unwrap();
    assert_eq!(a.tier(b.me()), Tier::Neighbour);
    a.vouch(b.me(), true).unwrap();
    b.vouch(a.me(), true).unwrap();
    meet(&a, &b);
    assert_eq!([a.tier(b.me()), b.tier(a.me())], [Tier::Member; 2]);
}

#[test]
fn what_a_neighbour_says_of_others_is_nothing() {
    let (a, b) = (alone(), alone());
    let c = stranger();
    b.vouch(c, true).unwrap();
    b.put_out(a.me(), PutOut::Block).unwrap();
    assert!(!a.hear(b.me(), b.statements()).unwrap());
    assert!(a.statements().is_empty());
}
