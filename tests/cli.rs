//! The program as a user or a script meets it: exit codes, messages, the demo.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// The demo's promise.
const DEMO_WITHIN: Duration = Duration::from_secs(40);
/// The doctor's, and what a busy machine adds.
const DOCTOR_WITHIN: Duration = Duration::from_secs(8);

#[test]
fn a_wrong_configuration_is_named_before_anything_is_opened() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("tributary.toml");
    std::fs::write(&config, "[lan]\npears = []\n").unwrap();
    let output = tributary(home.path(), &["run", "--config", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(64));
    let message = text(&output.stderr);
    assert!(message.contains("tributary.toml:2: lan.pears"), "{message}");
    assert!(message.contains("`peers`"), "what is allowed: {message}");
    assert!(!home.path().join("state").exists(), "nothing was begun");
}

#[test]
fn the_status_without_a_daemon_says_how_to_start_one() {
    let home = tempfile::tempdir().unwrap();
    let output = tributary(home.path(), &["status"]);
    assert_eq!(output.status.code(), Some(7));
    assert!(
        text(&output.stderr).contains("tributary run"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn what_cannot_be_downloaded_is_refused_with_what_to_write_instead() {
    let home = tempfile::tempdir().unwrap();
    for (arguments, expected) in [
        (vec!["get", "not a url"], "https://example.org/file"),
        (vec!["get", "ftp://example.org/file"], "only http and https"),
        (
            vec!["get", "-H", "no colon", "https://example.org/file"],
            "'Name: value'",
        ),
        (
            vec!["get", "--sha256", "abc", "https://example.org/file"],
            "64 hexadecimal digits",
        ),
        (
            vec!["get", "-o", "a", "-d", "b", "https://example.org/file"],
            "cannot be used with",
        ),
        (vec!["fetch"], "unrecognized subcommand"),
    ] {
        let output = tributary(home.path(), &arguments);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        assert!(
            text(&output.stderr).contains(expected),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn a_failure_is_json_too_for_those_who_asked_for_it() {
    let home = tempfile::tempdir().unwrap();
    let output = tributary(home.path(), &["get", "--json", "not a url"]);
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["failed"]["code"], 2);
}

#[test]
fn the_doctor_examines_any_machine_in_a_few_seconds_and_leaves_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    let began = Instant::now();
    // A name that no name server has (RFC 6761): nothing is asked of anybody's host.
    let output = tributary(home.path(), &["doctor", "--json", "--probe", "doctor.invalid"]);
    assert!(began.elapsed() < DOCTOR_WITHIN, "{:?}", began.elapsed());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let names = checks.iter().find(|check| check["name"] == "names").unwrap();
    assert_eq!(names["verdict"], "problem", "{names}");
    assert_eq!(output.status.code(), Some(1));
    assert!(!home.path().join("state").exists(), "nothing was written");
    let offline = text(&tributary(home.path(), &["doctor", "--offline"]).stdout);
    assert!(offline.contains("not tried (--offline)"), "{offline}");
    let output = tributary(home.path(), &["doctor", "--offline", "--probe", "example.org"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

#[test]
fn help_has_examples_and_the_exit_codes() {
    let home = tempfile::tempdir().unwrap();
    let help = text(&tributary(home.path(), &["--help"]).stdout);
    for expected in ["Examples:", "tributary demo", "Exit codes:", "130"] {
        assert!(help.contains(expected), "`{expected}` is missing in:\n{help}");
    }
    assert!(text(&tributary(home.path(), &["get", "--help"]).stdout).contains("--sha256"));
}

#[test]
fn the_demo_is_as_fast_as_its_lines_together_and_leaves_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let output = tributary(home.path(), &["demo", "--plain"]);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}\n{}", text(&output.stderr));
    assert!(began.elapsed() < DEMO_WITHIN, "{:?}", began.elapsed());
    assert!(shown.contains("times as fast"), "{shown}");
    assert!(shown.contains("phone, 6 Mbit/s line"), "{shown}");
    let left: Vec<_> = std::fs::read_dir(home.path().join("tmp")).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

fn tributary(home: &Path, arguments: &[&str]) -> Output {
    let temporary = home.join("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    Command::new(env!("CARGO_BIN_EXE_tributary"))
        .args(arguments)
        .current_dir(home)
        .env("HOME", home)
        .env("TMPDIR", temporary)
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
