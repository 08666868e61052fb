//! The configuration as its owner meets it: files that are right, files that are wrong, `tributary check-config`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tributary::config::Config;
use tributary::types::{ByteSize, LineId, Rate};
use tributary::uplink::Lend;

const BAD_CONFIG: i32 = 64;

#[test]
fn every_valid_fixture_is_taken() {
    let all = fixtures("valid");
    assert!(all.len() >= 5);
    for path in all {
        let loaded = Config::load(Some(&path));
        assert!(loaded.is_ok(), "{}: {}", path.display(), loaded.unwrap_err());
    }
}

#[test]
fn every_rejected_fixture_is_refused_with_file_line_key_what_was_found_and_what_is_allowed() {
    let all = fixtures("rejected");
    assert!(all.len() >= 30);
    for path in all {
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        let expected = text.lines().next().unwrap().strip_prefix("# expect: ").unwrap();
        let error = Config::load(Some(&path)).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{}{expected}", path.display())),
            "\nexpected {expected}\ngot      {error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn what_is_written_is_what_is_meant() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config/valid/everything.toml");
    let (config, found) = Config::load(Some(&path)).unwrap();
    assert_eq!(found, [path]);
    assert_eq!(config.device.name.as_deref(), Some("Küche \"Pi\""));
    assert_eq!((config.lan.port, config.lan.peers.len()), (Some(65_535), 3));
    assert_eq!((config.egress.tunnels, config.egress.idle.0.as_secs()), (10, 90));
    assert_eq!(config.egress.neighbours_per_day, ByteSize(5_000_000_000));
    let [wwan, eth] = &config.uplinks.0[..] else {
        panic!("{config:?}")
    };
    assert_eq!(wwan.cap.down, Some(Rate::bits(20_000_000)));
    assert_eq!(wwan.cap.up, Some(Rate::bits(500_000)));
    assert_eq!(
        (wwan.metered, wwan.lend, eth.metered, eth.lend),
        (Some(true), Lend::Members, None, Lend::Nobody)
    );
    assert_eq!(eth.line, Some(LineId::named("cable")));
}

#[test]
fn check_config_says_what_is_valid_and_what_is_not_and_how_scripts_see_it() {
    let home = tempfile::tempdir().unwrap();
    let own = home.path().join(".config/tributary/tributary.toml");
    let nothing = tributary(home.path(), &["check-config"]);
    assert_eq!(nothing.status.code(), Some(0));
    fs::create_dir_all(own.parent().unwrap()).unwrap();
    fs::write(&own, "[lan]\nport = 7000\n").unwrap();
    let valid = tributary(home.path(), &["check-config"]);
    assert_eq!(valid.status.code(), Some(0));
    assert!(text(&valid.stdout).contains(&format!("{} is valid", own.display())));
    let elsewhere = home.path().join("wrong.toml");
    fs::write(&elsewhere, "[lan]\nport = 0\npeers = [\"x\"]\n").unwrap();
    for arguments in [
        ["check-config", elsewhere.to_str().unwrap()].as_slice(),
        &["--config", elsewhere.to_str().unwrap(), "check-config"],
    ] {
        let wrong = tributary(home.path(), arguments);
        assert_eq!(wrong.status.code(), Some(BAD_CONFIG), "{arguments:?}");
        let said = text(&wrong.stderr);
        assert!(
            said.contains("wrong.toml:2: lan.port: found 0") && said.contains("wrong.toml:3: lan.peers"),
            "{said}"
        );
        assert!(wrong.stdout.is_empty());
    }
    let absent = tributary(home.path(), &["check-config", "absent.toml"]);
    assert_eq!(absent.status.code(), Some(BAD_CONFIG));
    assert!(text(&absent.stderr).contains("absent.toml"));
    assert!(!home.path().join("state").exists(), "nothing was begun");
}

#[test]
fn a_wrong_file_ends_whoever_needs_it_before_a_socket_or_a_directory_is_made() {
    let home = tempfile::tempdir().unwrap();
    let own = home.path().join(".config/tributary/tributary.toml");
    fs::create_dir_all(own.parent().unwrap()).unwrap();
    fs::write(&own, "[egress]\nidle = 3\n").unwrap();
    for arguments in [["run"].as_slice(), &["get", "https://example.org/x"]] {
        let output = tributary(home.path(), arguments);
        assert_eq!(output.status.code(), Some(BAD_CONFIG), "{arguments:?}");
        let said = text(&output.stderr);
        assert!(said.contains("tributary.toml:2: egress.idle: found 3"), "{said}");
    }
    assert!(!home.path().join("state").exists(), "nothing was begun");
}

fn fixtures(kind: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/config")
        .join(kind);
    let mut paths: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    paths.sort();
    paths
}

fn tributary(home: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tributary"))
        .args(arguments)
        .current_dir(home)
        .env("HOME", home)
        .env("TRIBUTARY_STATE_DIR", home.join("state"))
        .env_remove("TRIBUTARY_CONFIG")
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
