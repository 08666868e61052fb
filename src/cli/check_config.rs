//! `tributary check-config`: whether the configuration is right, without starting anything.

use std::process::ExitCode;

use crate::config::{Config, ConfigError};

use super::BAD_CONFIG;
use super::args::{CheckConfig, Common};

pub(super) fn run(common: &Common, options: &CheckConfig) -> ExitCode {
    let named = options.file.as_deref().or(common.config.as_deref());
    match Config::load(named) {
        Ok((_, files)) => {
            for file in &files {
                println!("{} is valid", file.display());
            }
            if files.is_empty() {
                println!("there is no configuration file: the defaults hold, which is valid");
            }
            ExitCode::SUCCESS
        }
        Err(error) => refuse(&error),
    }
}

/// Says everything that is wrong, a line each.
pub(super) fn refuse(error: &ConfigError) -> ExitCode {
    for line in error.to_string().lines() {
        eprintln!("tributary: {line}");
    }
    ExitCode::from(BAD_CONFIG)
}
