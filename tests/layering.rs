//! Fails where a module imports one of its own layer or above, or a file outgrows its budget.
//!
//! It reads text, so it does not see `super::super::` or macros; a reviewer must.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Lowest layer first: a file may name modules only of layers before its own. DESIGN's table, with its reasons.
const LAYERS: &[&[&str]] = &[
    &["types", "task", "clock"],
    &["stripe", "identity", "uplink", "store"],
    &["trust"],
    &["discovery", "link"],
    &["lane", "relay"],
    &["transfer"],
    &["share"],
    &["download", "upload"],
    &["proxy", "api"],
    &["config"],
    &["node"],
    &["demo", "doctor"],
    &["cli"],
    &["fuzzing"],
    &["main", "lib"],
];
const MAX_CODE_LINES: usize = 600;
const MAX_MAIN_LINES: usize = 50;

#[test]
fn modules_only_depend_downwards() {
    each_source(|own, file, text| {
        for used in text.split("crate::").skip(1) {
            assert!(
                !used.starts_with('{'),
                "{file}: write one `use crate::x` per module"
            );
            let used: String = used
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            assert!(
                own != "stripe" || ["stripe", "types"].contains(&used.as_str()),
                "{file}: stripe is pure"
            );
            assert!(
                used == own || layer(&used) < layer(own),
                "{file}: `{own}` must not use `{used}`"
            );
        }
    });
}

#[test]
fn no_file_outgrows_its_budget() {
    each_source(|own, file, text| {
        let code = text.lines().take_while(|l| l.trim() != "#[cfg(test)]").count();
        let limit = if own == "main" {
            MAX_MAIN_LINES
        } else {
            MAX_CODE_LINES
        };
        assert!(
            code <= limit,
            "{file}: {code} lines of code, {limit} allowed: split it by what it does"
        );
    });
}

#[test]
fn every_file_says_what_it_is() {
    each_source(|_, file, text| {
        let head = text.lines().find(|l| !l.starts_with("#!["));
        assert!(
            head.is_some_and(|l| l.starts_with("//!")),
            "{file}: open with `//!`: what it is and why"
        );
    });
}

#[test]
fn only_task_spawns() {
    each_source(|own, file, text| {
        let code: String = text
            .lines()
            .take_while(|l| l.trim() != "#[cfg(test)]")
            .collect::<Vec<_>>()
            .join("\n");
        for spawn in ["tokio::spawn", "tokio::task::spawn", "thread::spawn"] {
            assert!(
                own == "task" || !code.contains(spawn),
                "{file}: `{spawn}`: use `task::Tasks`"
            );
        }
    });
}

/// Signatures that are waved through have been the hole in many a custom TLS verifier (SEC-A3).
#[test]
fn no_signature_is_asserted_instead_of_verified() {
    each_source(|_, file, text| {
        let waved = text.contains("HandshakeSignatureValid::assertion");
        assert!(
            !waved,
            "{file}: verify the handshake's signature, never assert it"
        );
    });
}

fn each_source(check: impl Fn(&str, &str, &str)) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = rust_files(&root);
    assert!(
        files.len() > 3,
        "found almost no source files below {}",
        root.display()
    );
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let own = relative
            .iter()
            .next()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs");
        check(
            own,
            &relative.display().to_string(),
            &fs::read_to_string(&file).unwrap(),
        );
    }
}

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|l| l.contains(&module))
        .unwrap_or_else(|| panic!("module `{module}` has no layer"))
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}
