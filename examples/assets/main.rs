//! Writes what packages carry beside the program and the program itself has no need of: `cargo run --example assets DIR`.
//!
//! Manual pages go to `DIR/man`, shell completions to `DIR/completions`. They are made from the command line's own
//! definition and from the documented configuration, so that they say what the program does.

#![expect(clippy::print_stderr, reason = "it is a program")]

mod keys;
mod pages;
mod roff;

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap_complete::{Shell, generate_to};

/// The configuration with every key, its default and what it does.
const CONFIGURATION: &str = include_str!("../../config/tributary.toml");

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [directory] = arguments.as_slice() else {
        eprintln!("usage: assets DIR    writes man pages and shell completions into DIR");
        return ExitCode::from(2);
    };
    match write(Path::new(directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("assets: {}: {error}", Path::new(directory).display());
            ExitCode::FAILURE
        }
    }
}

fn write(directory: &Path) -> io::Result<()> {
    let (man, completions) = (directory.join("man"), directory.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    for (name, text) in pages::all(tributary::cli::command())? {
        fs::write(man.join(name), text)?;
    }
    fs::write(man.join("tributary.toml.5"), keys::page(CONFIGURATION))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut tributary::cli::command(), "tributary", &completions)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_packages_carry_is_written() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        write(directory.path())?;
        let commands = tributary::cli::command();
        let of_commands = commands
            .get_subcommands()
            .map(|c| format!("man/tributary-{}.1", c.get_name()));
        let others = [
            "man/tributary.1",
            "man/tributary.toml.5",
            "completions/tributary.bash",
            "completions/_tributary",
            "completions/tributary.fish",
        ];
        for name in of_commands.chain(others.map(str::to_owned)) {
            assert!(fs::metadata(directory.path().join(&name))?.len() > 500, "{name}");
        }
        for command in commands.get_subcommands() {
            for name in ["tributary.bash", "_tributary", "tributary.fish"] {
                let text = fs::read_to_string(directory.path().join("completions").join(name))?;
                assert!(
                    text.contains(command.get_name()),
                    "{name}: {}",
                    command.get_name()
                );
            }
        }
        Ok(())
    }
}
