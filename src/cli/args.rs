//! The command line: its words are fixed, because others script against them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::types::sha256_from_hex;

/// Pools a household's uplinks: one download over every peer's connection.
#[derive(Debug, Parser)]
#[command(name = "tributary", version, about, propagate_version = true, after_help = EXAMPLES)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(subcommand)]
    pub(super) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  tributary demo                                     See it work, on this machine alone
  tributary run                                      Lend this device's uplinks to the household
  tributary get https://example.org/big.iso          Download over everybody's uplinks
  tributary status                                   Who is there, and what they bring
  tributary check-config                             Whether the configuration is right
  tributary doctor                                   What keeps this household from pooling

Exit codes:
  0   done
  1   something unexpected; from `doctor`: something is a problem
  2   the command line is wrong
  3   the origin refuses, or its content keeps changing
  4   no uplink reaches the origin
  5   the content is not what --sha256 says; no file was left
  6   the file cannot be written
  7   no daemon answers
  64  the configuration is wrong
  130 stopped; the same command resumes";

/// What every command takes.
#[derive(Debug, Args)]
pub(super) struct Common {
    /// Configuration file [default: /etc/tributary/tributary.toml, then ~/.config/tributary/tributary.toml on top]
    #[arg(long, global = true, value_name = "FILE", env = "TRIBUTARY_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Where the device's identity is kept
    #[arg(long, global = true, value_name = "DIR", env = "TRIBUTARY_STATE_DIR")]
    pub(super) state_dir: Option<PathBuf>,
    /// The daemon's control socket [default: control.sock in the state directory, then in /run/tributary]
    #[arg(long, global = true, value_name = "PATH", env = "TRIBUTARY_SOCKET")]
    pub(super) socket: Option<PathBuf>,
    /// Say more on standard error; twice for much more (RUST_LOG has the last word)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Download a file over every peer's uplink
    Get(Get),
    /// Be a peer, in the foreground: lend this device's uplinks and borrow others'
    #[command(after_help = "\
Examples:
  tributary run
  tributary run --config household.toml --state-dir /srv/tributary

SIGHUP makes it read its configuration again; SIGTERM or Ctrl-C stops it in order, within 5 s.")]
    Run,
    /// Show what pooling brings here, peers, lanes with their rates, and what is running
    Status(Status),
    /// Say whether the configuration is right, and if not, what to change
    CheckConfig(CheckConfig),
    /// Look for what keeps this household from pooling, and say what to do about it
    Doctor(Doctor),
    /// See it work: a household of four peers on this machine, no root and no network needed
    Demo(Demo),
}

/// `tributary get`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tributary get https://example.org/big.iso
  tributary get -o disk.img --sha256 9f86d0...0f00a08 https://example.org/big.iso
  tributary get -H 'Authorization: Bearer TOKEN' https://example.org/private.tar
  tributary get --json https://example.org/big.iso | jq .done

Stopped by Ctrl-C, a crash or a power cut, the same command goes on where it was.")]
pub(super) struct Get {
    /// What to download (https:// or http://)
    pub(super) url: String,
    /// Write to this file [default: the URL's own file name, in the current directory]
    #[arg(short, long, value_name = "FILE", conflicts_with = "directory")]
    pub(super) output: Option<PathBuf>,
    /// Write into this directory, under the URL's own file name
    #[arg(short, long, value_name = "DIR")]
    pub(super) directory: Option<PathBuf>,
    /// The content's SHA-256; what differs fails loudly and leaves no file
    #[arg(long, value_name = "HEX", value_parser = parse_sha256)]
    pub(super) sha256: Option<[u8; 32]>,
    /// Send this header with every request; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub(super) headers: Vec<String>,
    /// Use this device's own uplinks only
    #[arg(long)]
    pub(super) no_pool: bool,
    /// Download without the daemon, as a peer of its own
    #[arg(long)]
    pub(super) standalone: bool,
    /// One JSON object a line on standard output
    #[arg(long)]
    pub(super) json: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// `tributary status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tributary status
  tributary status --watch
  tributary status --watch --json | jq -r .forecast.text")]
pub(super) struct Status {
    /// One JSON object; its fields are stable (see README)
    #[arg(long)]
    pub(super) json: bool,
    /// Show it again every second until Ctrl-C; with --json one object a line
    #[arg(short, long)]
    pub(super) watch: bool,
}

/// `tributary check-config`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tributary check-config
  tributary check-config household.toml")]
pub(super) struct CheckConfig {
    /// The file to check [default: the one that --config names, else those that `tributary run` would read]
    pub(super) file: Option<PathBuf>,
}

/// `tributary doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Takes 2 to 6 seconds, needs no root, changes nothing. Exit code 0: no problems; 1: there are some.

Examples:
  tributary doctor
  tributary doctor --json | jq '.checks[] | select(.verdict != \"fine\")'
  tributary doctor --offline")]
pub(super) struct Doctor {
    /// One JSON object; its fields and the checks' names are stable (see README)
    #[arg(long)]
    pub(super) json: bool,
    /// Send nothing to the internet: uplinks, names and the time are then not tried
    #[arg(long)]
    pub(super) offline: bool,
    /// The host that is resolved, and connected to (ports 443 and 80) over each uplink
    #[arg(
        long,
        value_name = "HOST",
        default_value = "example.com",
        conflicts_with = "offline"
    )]
    pub(super) probe: String,
}

/// `tributary demo`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tributary demo
  tributary demo --plain")]
pub(super) struct Demo {
    /// Plain lines instead of bars
    #[arg(long)]
    pub(super) plain: bool,
}

fn parse_sha256(text: &str) -> Result<[u8; 32], String> {
    let wrong = || {
        format!(
            "a SHA-256 is 64 hexadecimal digits, this has {} characters",
            text.chars().count()
        )
    };
    sha256_from_hex(text.trim()).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_checksum_is_64_hexadecimal_digits() {
        assert_eq!(parse_sha256(&"aB".repeat(32)), Ok([0xab; 32]));
        for bad in ["", "ab", &"zz".repeat(32), &"é".repeat(32), &"+1".repeat(32)] {
            assert!(parse_sha256(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_and_a_directory_are_not_both_named() {
        assert!(Cli::try_parse_from(["tributary", "get", "-o", "a", "-d", "b", "https://x"]).is_err());
        assert!(Cli::try_parse_from(["tributary", "get", "-o", "a", "https://x", "-H", "A: b"]).is_ok());
    }
}
