//! What is passed on with the binaries about the software of others: the bill of materials and the licences.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const TARGET: &str = "aarch64-unknown-linux-musl";

#[test]
fn the_bill_has_what_cyclonedx_asks_and_every_reference_leads_somewhere() {
    let (_, bill) = bill(TARGET);
    assert_eq!(bill["bomFormat"], "CycloneDX");
    assert_eq!(bill["specVersion"], "1.5");
    assert_eq!(bill["version"], 1);
    let serial = bill["serialNumber"]
        .as_str()
        .unwrap()
        .strip_prefix("urn:uuid:")
        .unwrap();
    let groups: Vec<usize> = serial.split('-').map(str::len).collect();
    assert_eq!(groups, [8, 4, 4, 4, 12], "{serial}");
    assert_eq!(bill["metadata"]["timestamp"], "2026-01-01T00:00:00Z");
    assert_eq!(bill["metadata"]["component"]["type"], "application");
    assert_eq!(
        bill["metadata"]["component"]["version"],
        env!("CARGO_PKG_VERSION")
    );

    let mut known = BTreeSet::from([text(&bill["metadata"]["component"]["bom-ref"])]);
    for component in list(&bill["components"]) {
        for field in ["name", "version", "purl"] {
            assert!(!text(&component[field]).is_empty(), "{field} of {component}");
        }
        assert_eq!(component["type"], "library");
        assert!(
            !text(&component["licenses"][0]["expression"]).contains('/'),
            "{component}"
        );
        assert_eq!(component["hashes"][0]["alg"], "SHA-256");
        let sum = text(&component["hashes"][0]["content"]);
        assert!(
            sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{component}"
        );
        assert!(
            known.insert(text(&component["bom-ref"])),
            "{component} is there twice"
        );
    }
    let mut about = BTreeSet::new();
    for dependency in list(&bill["dependencies"]) {
        about.insert(text(&dependency["ref"]));
        for on in list(&dependency["dependsOn"]) {
            assert!(known.contains(on.as_str().unwrap()), "{on} is not listed");
        }
    }
    assert_eq!(about, known);
}

#[test]
fn the_bill_lists_what_is_linked_in_and_neither_tests_nor_macros_nor_other_systems() {
    let (_, bill) = bill(TARGET);
    let names: BTreeSet<String> = list(&bill["components"])
        .iter()
        .map(|one| text(&one["name"]))
        .collect();
    for linked in ["tokio", "quinn", "ring", "mdns-sd", "rustls"] {
        assert!(names.contains(linked), "{linked} is missing");
    }
    for other in [
        "criterion",
        "proptest",
        "tempfile",
        "cc",
        "syn",
        "serde_derive",
        "windows-sys",
    ] {
        assert!(!names.contains(other), "{other} is not in the binary");
    }
    let locked = fs::read_to_string(Path::new(ROOT).join("Cargo.lock")).unwrap();
    for component in list(&bill["components"]) {
        let sum = text(&component["hashes"][0]["content"]);
        assert!(locked.contains(&sum), "{component}");
    }
}

#[test]
fn made_again_it_is_the_same_to_the_byte_and_its_number_follows_what_it_says() {
    let (first, one) = bill(TARGET);
    assert_eq!(first, bill(TARGET).0);
    let (_, other) = bill("x86_64-unknown-linux-musl");
    assert_ne!(one["serialNumber"], other["serialNumber"]);
}

#[test]
fn a_target_that_is_none_is_named_with_those_that_are() {
    let directory = tempfile::tempdir().unwrap();
    let output = cross("sbom", &["riscv64gc-unknown-linux-musl"], directory.path());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(
        said.contains("`riscv64gc-unknown-linux-musl`") && said.contains(TARGET),
        "{said}"
    );
}

#[test]
fn every_crate_of_the_bill_has_its_licence_in_the_notices() {
    let directory = tempfile::tempdir().unwrap();
    let output = cross("licences", &[], directory.path());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let notices = fs::read_to_string(Path::new(ROOT).join("target/cross/THIRD-PARTY.txt")).unwrap();
    // Who has a text of its own or shares one: "Of a 1.0, b 2.0:".
    let mut texts: BTreeMap<&str, usize> = BTreeMap::new();
    for holders in notices
        .lines()
        .filter_map(|line| line.strip_prefix("Of ")?.strip_suffix(':'))
    {
        for holder in holders.split(", ") {
            *texts.entry(holder).or_default() += 1;
        }
    }
    for component in list(&bill(TARGET).1["components"]) {
        let name = format!("{} {}", text(&component["name"]), text(&component["version"]));
        assert!(
            texts.contains_key(name.as_str()) || notices.contains(&format!("  {name}, ")),
            "{name} has neither a text nor a place among those without"
        );
        assert!(notices.contains(&format!("  {name}: ")), "{name} is not listed");
    }
    for runtime in ["musl", "Rust's standard library", "libunwind and compiler-rt"] {
        assert!(texts.contains_key(runtime), "{runtime}");
    }
    assert!(notices.contains("END OF TERMS AND CONDITIONS"));
}

fn bill(target: &str) -> (Vec<u8>, Value) {
    let directory = tempfile::tempdir().unwrap();
    let output = cross("sbom", &[target], directory.path());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let name = format!("tributary-{}-{target}.cdx.json", env!("CARGO_PKG_VERSION"));
    let bytes = fs::read(directory.path().join(name)).unwrap();
    let value = serde_json::from_slice(&bytes).unwrap();
    (bytes, value)
}

fn cross(script: &str, arguments: &[&str], dist: &Path) -> Output {
    Command::new(PathBuf::from(ROOT).join("cross").join(script))
        .args(arguments)
        .env("TRIBUTARY_DIST", dist)
        .env("SOURCE_DATE_EPOCH", "1767225600")
        .output()
        .unwrap()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
