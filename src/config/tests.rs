//! What a file means, and that the documented one documents everything.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;

use super::*;
use crate::link::DEFAULT_PORT;
use crate::types::{LineId, Rate};
use crate::uplink::Rule;

fn load(text: &str) -> Result<Config, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    Config::load(Some(file.path()))
        .map(|(config, _)| config)
        .map_err(|e| e.to_string())
}

/// One line of the documented file.
#[derive(Clone, Debug)]
enum Line {
    Section(String),
    /// Section, key, value; whether it is the default.
    Key(String, String, String, bool),
}

fn documented() -> (String, Vec<Line>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/tributary.toml");
    let text = fs::read_to_string(path).unwrap();
    let mut section = String::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        let said = line.trim_start_matches('#').trim_start();
        if said.starts_with('[') && said.ends_with(']') && !said.contains('"') {
            section = said.trim_matches(['[', ']']).to_owned();
            lines.push(Line::Section(said.to_owned()));
        } else if let Some((key, value)) = said.split_once(" = ")
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            let default = line.starts_with("# ") && !line.starts_with("#  ");
            lines.push(Line::Key(section.clone(), key.into(), value.into(), default));
        }
    }
    (text, lines)
}

/// Every key there is, as `section.key`, from the very structs that the file is read into.
fn all_keys() -> BTreeSet<String> {
    let raw = raw::Raw {
        uplink: vec![toml::Spanned::new(0..0, raw::Uplink::default())],
        ..raw::Raw::default()
    };
    let tree = serde_json::to_value(&raw).unwrap();
    let mut keys = BTreeSet::new();
    for (section, fields) in tree.as_object().unwrap() {
        let fields = if fields.is_array() { &fields[0] } else { fields };
        for key in fields.as_object().unwrap().keys() {
            keys.insert(format!("{section}.{key}"));
        }
    }
    assert!(keys.len() >= 15, "{keys:?}");
    keys
}

/// The file that says just this.
fn file_with(section: &str, key: &str, value: &str) -> String {
    match (section, key) {
        ("uplink", "interface") => format!("[[uplink]]\n{key} = {value}\n"),
        ("uplink", _) => format!("[[uplink]]\ninterface = \"wwan0\"\n{key} = {value}\n"),
        _ => format!("[{section}]\n{key} = {value}\n"),
    }
}

#[test]
fn the_documented_file_names_every_key_and_changes_nothing_as_it_stands() {
    let (text, lines) = documented();
    assert_eq!(load(&text).unwrap(), Config::default());
    let named: Vec<String> = lines
        .iter()
        .filter_map(|line| match line {
            Line::Key(section, key, ..) => Some(format!("{section}.{key}")),
            Line::Section(_) => None,
        })
        .collect();
    let set: BTreeSet<String> = named.iter().cloned().collect();
    assert_eq!(set, all_keys());
    assert_eq!(named.len(), set.len(), "a key is documented twice: {named:?}");
}

#[test]
fn each_default_in_the_documented_file_is_the_real_one_and_each_example_says_something_else() {
    let nothing = Config {
        uplinks: Rules(vec![Rule::new("wwan0")]),
        ..Config::default()
    };
    for line in documented().1 {
        let Line::Key(section, key, value, default) = line else {
            continue;
        };
        let mut said = load(&file_with(&section, &key, &value)).unwrap();
        let about_an_uplink = section == "uplink";
        if (section.as_str(), key.as_str()) == ("lan", "port") {
            // Not quite the same: another port is taken where the default is in use, and only there.
            assert_eq!(said.lan.port.take(), Some(DEFAULT_PORT));
        }
        let plain = if about_an_uplink {
            &nothing
        } else {
            &Config::default()
        };
        let same = said == *plain;
        let only_names_it = about_an_uplink && key == "interface";
        assert_eq!(same, default || only_names_it, "{section}.{key} = {value}");
    }
}

#[test]
fn uncommented_as_a_whole_the_documented_file_is_a_valid_one() {
    let mut text = String::new();
    for line in documented().1 {
        match line {
            Line::Section(header) => text += &format!("{header}\n"),
            Line::Key(_, key, value, _) => text += &format!("{key} = {value}\n"),
        }
    }
    let config = load(&text).unwrap();
    assert_eq!(config.uplinks.0.len(), 1, "{text}");
    assert_eq!(config.uplinks.0[0].line, Some(LineId::named("cable")));
}

#[test]
fn peers_are_addresses_with_an_optional_port() {
    let config = load("[lan]\npeers = [\"192.168.1.7\", \"192.168.1.8:99\", \"fe80::1\"]").unwrap();
    let addresses: Vec<String> = config.lan.peers.iter().map(|p| p.0.to_string()).collect();
    assert_eq!(
        addresses,
        ["192.168.1.7:7436", "192.168.1.8:99", "[fe80::1]:7436"]
    );
}

#[test]
fn everything_that_is_wrong_with_a_file_is_said_at_once() {
    let error = load("[lan]\nport = 0\npeers = [\n  \"10.0.0.1\",\n  \"kitchen\",\n]\n[egress]\nidle = 30\n")
        .unwrap_err();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 3, "{error}");
    assert!(
        lines[0].contains(":2: lan.port: found 0; allowed: a number from 1 to 65535"),
        "{error}"
    );
    assert!(
        lines[1].contains(":5: lan.peers: found \"kitchen\"; allowed: "),
        "{error}"
    );
    assert!(
        lines[2].contains(":8: egress.idle: found 30; allowed: a time from 10 s to 1 h"),
        "{error}"
    );
}

#[test]
fn of_two_files_the_later_ones_keys_win_and_the_other_ones_stay() {
    let directory = tempfile::tempdir().unwrap();
    let [system, own, absent] = ["system", "own", "absent"].map(|name| directory.path().join(name));
    fs::write(
        &system,
        "[lan]\nport = 1000\npeers = [\"10.0.0.1\"]\n[[uplink]]\ninterface = \"a\"\nlend = false\nmax_up = \"1 Mbit/s\"\n",
    )
    .unwrap();
    fs::write(
        &own,
        "[lan]\nport = 2000\n[[uplink]]\ninterface = \"b\"\n[[uplink]]\ninterface = \"a\"\nmax_up = \"2 Mbit/s\"\n",
    )
    .unwrap();
    let (config, found) = Config::read(&[system.clone(), absent.clone(), own.clone()], false).unwrap();
    assert_eq!(found, [system.clone(), own.clone()]);
    assert_eq!(config.lan.port, Some(2000));
    assert_eq!(config.lan.peers.len(), 1);
    let names: Vec<&str> = config.uplinks.0.iter().map(|r| r.interface.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(
        config.uplinks.0[0].lend == crate::uplink::Lend::Nobody,
        "the system's word stands where the user said nothing"
    );
    assert_eq!(config.uplinks.0[0].cap.up, Some(Rate::bits(2_000_000)));
    // What is wrong is said with the file it is in, and of both.
    fs::write(&own, "[lan]\nport = -1\n").unwrap();
    fs::write(&system, "\n\n[lan]\npeers = 7\n").unwrap();
    let error = Config::read(&[system, absent, own], false)
        .unwrap_err()
        .to_string();
    assert!(error.contains("system:4: lan.peers: found 7"), "{error}");
    assert!(error.contains("own:2: lan.port: found -1"), "{error}");
}

#[test]
fn a_file_that_was_named_must_exist_and_be_of_a_reasonable_size() {
    let error = Config::load(Some(Path::new("/nonexistent/tributary.toml"))).unwrap_err();
    assert!(
        error.to_string().contains("/nonexistent/tributary.toml"),
        "{error}"
    );
    let error = Config::load(Some(Path::new("/dev/zero"))).unwrap_err();
    assert!(error.to_string().contains("larger than 1 MiB"), "{error}");
}

#[test]
fn what_a_running_daemon_cannot_take_over_is_named() {
    let before = Config::default();
    let live =
        load("[egress]\nidle = \"30 s\"\n[[uplink]]\ninterface = \"a\"\n[lan]\npeers = [\"10.0.0.1\"]\n[share]\nenabled = false\ncache = \"1 GB\"\n")
            .unwrap();
    assert_eq!(before.needs_restart(&live), Vec::<&str>::new());
    let other = load("[device]\nname = \"x\"\n[lan]\nport = 9\ninterfaces = [\"eth0\"]\n").unwrap();
    assert_eq!(
        before.needs_restart(&other),
        ["device.name", "lan.port", "lan.interfaces"]
    );
}

#[test]
fn sharing_has_sizes_and_times_with_units_and_says_which_are_allowed() {
    let share = load("[share]\nenabled = false\ncache = \"20 GB\"\ncache_age = \"24 h\"\n")
        .unwrap()
        .share;
    assert_eq!(
        (share.enabled, share.cache.0, share.cache_age.as_secs()),
        (false, 20_000_000_000, 86_400)
    );
    for (line, expected) in [
        (
            "enabled = \"no\"",
            "share.enabled: found \"no\"; allowed: true or false",
        ),
        (
            "cache = 20",
            "share.cache: found 20; allowed: a size with its unit",
        ),
        ("cache = \"all\"", "or \"0 B\" for none"),
        (
            "cache_age = \"1 s\"",
            "share.cache_age: found \"1 s\"; allowed: a time from 1 h to 8760 h",
        ),
        ("cache_age = \"9999 h\"", "such as \"720 h\""),
        ("size = 1", "size"),
    ] {
        let error = load(&format!("[share]\n{line}\n")).unwrap_err();
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn the_limits_that_can_be_set_reach_the_relay() {
    let config = load("[egress]\nidle = \"30 s\"\ntunnels = 7\ntunnels_per_peer = 3\n").unwrap();
    let limits = config.egress.limits();
    assert_eq!(
        (limits.idle.as_secs(), limits.tunnels, limits.tunnels_per_peer),
        (30, 7, 3)
    );
    assert_eq!(Config::default().egress.limits(), relay::Limits::default());
}

#[test]
fn whatever_was_written_is_answered_in_one_short_line_without_control_characters() {
    let long = "x".repeat(100_000);
    for text in [
        "[egress]\nallow = [\"\"\"a\nb\\u001b[31m\"\"\"]",
        "[device]\n\"n\\u001b\\u0007\" = 1",
        "\"\\u001b[31m\" = 1",
        "lan = \"a\tb\"",
        &format!("lan = \"{long}\""),
        &format!("[lan]\n{long} = 1"),
        &format!("[lan]\nport = \"{long}\""),
        &format!("[lan]\npeers = [\"{long}\"]"),
        &format!("[egress]\nallow = [\"{long}\"]"),
    ] {
        let said = load(text).unwrap_err();
        let start: String = text.chars().take(40).collect();
        assert!(
            said.len() < 1000 && !said.chars().any(char::is_control),
            "{start:?}: {said:?}"
        );
    }
}
