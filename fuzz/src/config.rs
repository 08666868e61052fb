//! FUZ-19: a configuration file: what is taken over is within its bounds, what is refused is refused with a place and in
//! one line that a terminal can show.

use std::path::Path;

use tributary::fuzzing::parse_config;

/// The bytes as a file.
pub fn check(data: &[u8]) {
    let path = Path::new("tributary.toml");
    let lines = data.iter().filter(|b| **b == b'\n').count() + 1;
    match parse_config(path, data) {
        Ok(config) => {
            assert_eq!(parse_config(path, data).as_ref(), Ok(&config), "the same twice");
            assert!(config.needs_restart(&config).is_empty());
            if let Some(name) = &config.device.name {
                super::frames::judge_text(name);
            }
            assert!(
                config
                    .lan
                    .peers
                    .iter()
                    .all(|p| p.0.port() != 0 && !p.0.ip().is_multicast())
            );
            assert!(config.lan.peers.len() <= 256 && config.egress.allow.len() <= 256);
            assert!(config.egress.ports.len() <= 256 && !config.egress.ports.contains(&0));
            assert!((1..=1024).contains(&config.egress.tunnels));
            assert!((1..=64).contains(&config.egress.tunnels_per_peer));
            assert!((10..=3600).contains(&config.egress.idle.0.as_secs()));
            for name in config.lan.interfaces.iter().flatten() {
                assert!(
                    (1..=15).contains(&name.len()) && !name.contains(['/', '\0']),
                    "{name:?}"
                );
            }
        }
        Err(wrongs) => {
            assert!(!wrongs.is_empty());
            for wrong in wrongs {
                assert!(
                    (1..=lines).contains(&wrong.line),
                    "line {} of {lines}",
                    wrong.line
                );
                let said = wrong.to_string();
                assert!(!said.chars().any(char::is_control), "more than a line: {said:?}");
                assert!(said.len() < 2048, "{} bytes: {said}", said.len());
            }
        }
    }
}
