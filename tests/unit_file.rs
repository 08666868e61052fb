//! What is installed beside the program: the systemd unit is as hard as it claims, the OpenWrt script is one, and both
//! name what exists.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// systemd's exposure of 1.5, which counts to 10.
const MOST_EXPOSURE: &str = "--threshold=15";

#[test]
fn the_unit_exposes_no_more_than_one_and_a_half() {
    let Some(output) = systemd_analyze(&[
        "security",
        "--offline=true",
        MOST_EXPOSURE,
        unit().to_str().unwrap(),
    ]) else {
        return;
    };
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}\n{}", text(&output.stderr));
    let exposure = shown
        .lines()
        .find(|line| line.contains("Overall exposure level"))
        .unwrap();
    say(exposure);
}

#[test]
fn a_unit_without_its_system_call_filter_would_be_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let weaker: String = fs::read_to_string(unit())
        .unwrap()
        .lines()
        .filter(|line| !line.starts_with("SystemCallFilter="))
        .map(|line| format!("{line}\n"))
        .collect();
    let path = directory.path().join("tributary.service");
    fs::write(&path, weaker).unwrap();
    let checked = systemd_analyze(&[
        "security",
        "--offline=true",
        MOST_EXPOSURE,
        path.to_str().unwrap(),
    ]);
    assert!(checked.is_none_or(|output| !output.status.success()));
}

#[test]
fn systemd_has_nothing_to_say_about_the_unit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tributary.service");
    let installed = fs::read_to_string(unit())
        .unwrap()
        .replace("/usr/bin/tributary", env!("CARGO_BIN_EXE_tributary"));
    fs::write(&path, installed).unwrap();
    let Some(output) = systemd_analyze(&["verify", "--man=no", path.to_str().unwrap()]) else {
        return;
    };
    let said = text(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn the_unit_says_what_the_program_does() {
    let unit = fs::read_to_string(unit()).unwrap();
    for line in [
        "Type=notify",
        "ExecReload=/bin/sh -c 'kill -HUP $MAINPID'",
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
        "NoNewPrivileges=yes",
        "PrivateUsers=yes",
        "RuntimeDirectoryMode=0755",
        "RestartPreventExitStatus=64",
    ] {
        assert!(unit.lines().any(|l| l == line), "`{line}` is missing");
    }
    started_as_in(&unit, "ExecStart=/usr/bin/tributary ");
}

#[test]
fn the_openwrt_script_is_one_and_names_what_exists() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/openwrt/tributary.init");
    let script = fs::read_to_string(&path).unwrap();
    assert!(script.starts_with("#!/bin/sh /etc/rc.common\n"));
    for shell in [["sh", "-n"].as_slice(), &["busybox", "ash", "-n"]] {
        match Command::new(shell[0]).args(&shell[1..]).arg(&path).output() {
            Ok(output) => assert!(output.status.success(), "{shell:?}: {}", text(&output.stderr)),
            Err(error) => say(&format!("skipped: {}: {error}", shell[0])),
        }
    }
    started_as_in(&script, "procd_set_param command \"$PROG\" ");
    assert_eq!(script.matches("\"$PROG\" check-config").count(), 2);
    // What it starts is what it names, when procd's words are played: the arguments end up as written.
    let play = format!(
        "chown() {{ :; }}; procd_open_instance() {{ :; }}; procd_close_instance() {{ :; }}\n\
         procd_set_param() {{ echo \"$@\"; }}\n. '{}'\nPROG={} STATE=$1/state RUNTIME=$1/run\nstart_service",
        path.display(),
        env!("CARGO_BIN_EXE_tributary"),
    );
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        .args(["-c", &play, "sh"])
        .arg(directory.path())
        .env("HOME", directory.path())
        .env_remove("TRIBUTARY_CONFIG")
        .env_remove("XDG_CONFIG_HOME")
        .output()
        .unwrap();
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}\n{}", text(&output.stderr));
    let state = directory.path().join("state");
    for expected in [
        format!(
            "command {} run --state-dir {}",
            env!("CARGO_BIN_EXE_tributary"),
            state.display()
        ),
        "user tributary".into(),
        "no_new_privs 1".into(),
        "term_timeout 10".into(),
    ] {
        assert!(
            shown.lines().any(|line| line == expected),
            "`{expected}` is missing in:\n{shown}"
        );
    }
    assert!(state.is_dir());
}

/// The command that a file starts is one that the program understands.
fn started_as_in(file: &str, before: &str) {
    let line = file
        .lines()
        .find_map(|line| line.trim().strip_prefix(before))
        .unwrap();
    let arguments = line
        .split_whitespace()
        .map(|word| word.trim_matches('"').replace("$STATE", "/tmp"));
    let output = Command::new(env!("CARGO_BIN_EXE_tributary"))
        .args(arguments)
        .arg("--help")
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}: {}", text(&output.stderr));
}

fn unit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/tributary.service")
}

fn systemd_analyze(arguments: &[&str]) -> Option<Output> {
    match Command::new("systemd-analyze").args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) => {
            say(&format!("skipped: systemd-analyze: {error}"));
            None
        }
    }
}

/// Past the test harness, which hides what tests print.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
