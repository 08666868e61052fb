//! The command line: its words are fixed, because others script against them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::types::{ByteSize, Period, sha256_from_hex};

/// Pools a household's uplinks: one download or upload over every peer's connection.
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
  tributary put film.mkv s3://backup/film.mkv        Upload over everybody's uplinks
  tributary share film.mkv                           Offer a file to the household
  tributary shared                                   What the household offers
  tributary status                                   Who is there, and what they bring
  tributary invite                                   Let another device into this household
  tributary check-config                             Whether the configuration is right
  tributary doctor                                   What keeps this household from pooling

Exit codes:
  0   done
  1   something unexpected; from `doctor`: something is a problem
  2   the command line is wrong
  3   the origin or the server refuses, or its content keeps changing
  4   no uplink reaches the origin
  5   the content is not what --sha256 says, and no file was left; of put: the server holds something else
  6   the file cannot be written; of put: it cannot be read, or changed meanwhile
  7   no daemon answers
  8   the daemon refuses: not to this user, not for that device, not with that token or code
  9   some of the directory's files were left out; the others are there
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
    /// Upload a file, standard input or a directory over every peer's uplink
    Put(Put),
    /// Offer a file of this device to the household, by hand
    Share(Share),
    /// Show what this device and members of the household offer
    Shared(Shared),
    /// Be a peer, in the foreground: lend this device's uplinks and borrow others'
    #[command(after_help = "\
Examples:
  tributary run
  tributary run --config household.toml --state-dir /srv/tributary

SIGHUP makes it read its configuration again; SIGTERM or Ctrl-C stops it in order, within 5 s.")]
    Run,
    /// Show what pooling brings here, peers, lanes with their rates, and what is running
    Status(Status),
    /// Let a device in: make a token that it joins with
    Invite(Invite),
    /// Become a member of a household, with a token that one of its devices made
    Join(Join),
    /// Let a device in: compare a code on its screen and on this one's
    Approve(Approve),
    /// Show who is a member, who is only a neighbour, and who is blocked
    Peers(Peers),
    /// Make a member a neighbour again, here and for all members; also lifts a block
    #[command(after_help = FORGET)]
    Forget(Device),
    /// Have no link with a device any more, here and at all members
    #[command(after_help = BLOCK)]
    Block(Device),
    /// Leave the household: trust nobody, and be trusted by nobody
    Leave(Leave),
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
  tributary get shared:film.mkv                  What a member offers (see `tributary shared`)

What other members of the household have of it already, or are downloading now, comes from them. That is left out where
headers are sent, where the origin says that it is private, and where [share] says so.

Stopped by Ctrl-C, a crash or a power cut, the same command goes on where it was.")]
pub(super) struct Get {
    /// What to download: https://, http://, or what the household offers as shared:NAME or shared:SHA256
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

/// `tributary put`.
#[derive(Debug, Args)]
#[command(after_help = "\
TARGET is one of
  s3://BUCKET/KEY                S3 and what speaks like it (R2, B2, MinIO, Garage: name the service with --endpoint)
  tus+https://HOST/PATH          where a tus 1.0 server makes uploads
  https://HOST/PATH              PUT, as WebDAV servers take it; a directory goes to one that ends in `/` only
Where it ends in `/`, a file keeps its own name there. tus+http:// and http:// are allowed too, and not encrypted.

S3 credentials come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, else from a profile in
~/.aws/credentials or ~/.aws/config. They go to the daemon, which signs with them, and into no log.

Examples:
  tributary put film.mkv s3://backup/films/
  tributary put --endpoint https://s3.example.org --region eu-1 disk.img s3://backup/disk.img
  tributary put film.mkv tus+https://example.org/files/
  tributary put -H 'Authorization: Bearer TOKEN' photos/ https://dav.example.org/photos/
  tar c photos | tributary put - s3://backup/photos.tar
  tributary put --abort film.mkv s3://backup/films/  Remove what an unfinished upload left there

Stopped by Ctrl-C, a crash or a power cut, the same command goes on where it was (but not from standard input). A second
Ctrl-C within 3 s also removes what was sent.")]
pub(super) struct Put {
    /// What to upload: a file, a directory, or `-` for standard input
    pub(super) source: PathBuf,
    /// Where to: s3://BUCKET/KEY, tus+https://HOST/PATH or https://HOST/PATH
    pub(super) target: String,
    /// The S3 service's URL [default: AWS_ENDPOINT_URL, else the profile's, else AWS in the region]
    #[arg(long, value_name = "URL")]
    pub(super) endpoint: Option<String>,
    /// The S3 region [default: AWS_REGION, else the profile's, else what the endpoint's name says]
    #[arg(long, value_name = "REGION")]
    pub(super) region: Option<String>,
    /// The profile with the S3 credentials [default: AWS_PROFILE, else `default`]
    #[arg(long, value_name = "NAME")]
    pub(super) profile: Option<String>,
    /// Send parts of exactly this size, such as 64MiB (S3 and tus) [default: as suits the lanes and the server]
    #[arg(long, value_name = "SIZE")]
    pub(super) part_size: Option<ByteSize>,
    /// Send this header with every request (not S3); may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub(super) headers: Vec<String>,
    /// Most of standard input that is put into a temporary file, in TMPDIR or else in the current directory; 5 % of the
    /// disk stay free in any case [default: 8GiB]
    #[arg(long, value_name = "SIZE")]
    pub(super) spool_limit: Option<ByteSize>,
    /// Send nothing: remove what an unfinished upload of the same SOURCE left at TARGET
    #[arg(long)]
    pub(super) abort: bool,
    /// Use this device's own uplinks only
    #[arg(long)]
    pub(super) no_pool: bool,
    /// Upload without the daemon, as a peer of its own
    #[arg(long)]
    pub(super) standalone: bool,
    /// One JSON object a line on standard output
    #[arg(long)]
    pub(super) json: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// `tributary share`.
#[derive(Debug, Args)]
#[command(after_help = "\
Members see its name, its size and its SHA-256, and can get it; nobody else hears of it. The file stays where it is: when it
is changed, moved or removed, it is offered no more. What was downloaded is shared by itself, without a name.

Examples:
  tributary share film.mkv
  tributary share --name holiday.mkv ~/videos/VID_20260704.mkv
  tributary share --stop holiday.mkv")]
pub(super) struct Share {
    /// The file
    #[arg(required_unless_present = "stop")]
    pub(super) file: Option<PathBuf>,
    /// Offer it under this name [default: the file's own]
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Offer this one no more; the file stays
    #[arg(long, value_name = "NAME|SHA256", conflicts_with_all = ["file", "name"])]
    pub(super) stop: Option<String>,
    /// One JSON object a line on standard output
    #[arg(long, conflicts_with = "stop")]
    pub(super) json: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// `tributary shared`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tributary shared
  tributary shared --json | jq -r '.files[] | select(.own | not) | .name'
  tributary get shared:film.mkv")]
pub(super) struct Shared {
    /// One JSON object; its fields are stable (see README)
    #[arg(long)]
    pub(super) json: bool,
}

/// `tributary status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tributary status
  tributary status --watch
  tributary status --watch --json | jq -r .forecast.text
  tributary status --savings")]
pub(super) struct Status {
    /// One JSON object; its fields are stable (see README)
    #[arg(long)]
    pub(super) json: bool,
    /// Show it again every second until Ctrl-C; with --json one object a line
    #[arg(short, long)]
    pub(super) watch: bool,
    /// Only what the household brought: how much came from members instead of the internet
    #[arg(long, conflicts_with = "watch")]
    pub(super) savings: bool,
}

/// `tributary invite`.
#[derive(Debug, Args)]
#[command(after_help = "\
The token is printed alone on standard output. It lets one device in, once; a restart of the daemon ends it.
Only root and the user that the daemon runs as may do this.

Examples:
  tributary invite
  tributary invite --valid '10 min' --may-not-vouch
  TOKEN=$(tributary invite --valid 168h)")]
pub(super) struct Invite {
    /// How long the token is good for: up to 168h, with a unit (s, min, h)
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub(super) valid: Period,
    /// Whoever joins with it may neither let others in nor put them out
    #[arg(long)]
    pub(super) may_not_vouch: bool,
}

/// `tributary join`.
#[derive(Debug, Args)]
#[command(after_help = "\
Both devices must be on, in the same network. Case, spaces and dashes do not count, nor does O for 0 or I for 1.
Only root and the user that the daemon runs as may do this.

Examples:
  tributary join
  tributary join < token.txt")]
pub(super) struct Join {
    /// What `tributary invite` printed [default: read from standard input, as also with `-`: other users of this device can
    /// see the arguments of a command]
    pub(super) token: Option<String>,
}

/// `tributary approve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Run it on both devices within two minutes. Each shows a code: where both are the same, nobody is in between, and each
vouches for the other once both people said so. Only root and the user that the daemon runs as may do this.

Examples:
  tributary approve                              Who is here, and who asks
  tributary approve kitchen-pi
  read_code_of_kitchen_pi | tributary approve kitchen-pi --yes-code")]
pub(super) struct Approve {
    /// Its name, or the beginning of its id [default: list those who can be approved]
    pub(super) device: Option<String>,
    /// For scripts: instead of asking, read the other device's code from standard input, and say yes if it is the same
    #[arg(long, requires = "device")]
    pub(super) yes_code: bool,
}

/// `tributary peers`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tributary peers
  tributary peers --json | jq -r '.peers[] | select(.tier == \"member\") | .name'")]
pub(super) struct Peers {
    /// One JSON object; its fields are stable (see README)
    #[arg(long)]
    pub(super) json: bool,
}

/// `tributary forget` and `tributary block`.
#[derive(Debug, Args)]
pub(super) struct Device {
    /// Its name, or the beginning of its id, as `tributary peers` shows them
    pub(super) device: String,
}

const FORGET: &str = "\
Those whom it vouched for stay. Only root and the user that the daemon runs as may do this.

Examples:
  tributary forget old-laptop
  tributary forget 3fa2";

const BLOCK: &str = "\
For a device that was lost or stolen, or does not belong here. Those whom only it vouched for become neighbours again.
Only root and the user that the daemon runs as may do this; `tributary forget` undoes it.

Examples:
  tributary block stolen-phone
  tributary block 3fa2";

/// `tributary leave`.
#[derive(Debug, Args)]
#[command(after_help = "\
Only root and the user that the daemon runs as may do this.

Examples:
  tributary leave
  tributary leave --yes")]
pub(super) struct Leave {
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
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
    fn a_put_has_a_source_a_target_and_sizes_with_units() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["tributary", "put"], args].concat());
        let Ok(Cli {
            command: Command::Put(put),
            ..
        }) = parse(&[
            "-",
            "s3://b/k",
            "--part-size",
            "64MiB",
            "--spool-limit",
            "1 GB",
            "-H",
            "A: b",
        ])
        else {
            panic!("not a put");
        };
        assert_eq!(put.part_size, Some(ByteSize(64 << 20)));
        assert_eq!(put.spool_limit, Some(ByteSize(1_000_000_000)));
        assert!(parse(&["x"]).is_err() && parse(&["x", "s3://b/k", "--part-size", "64"]).is_err());
    }

    #[test]
    fn a_file_is_offered_or_no_more_and_not_both() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["tributary", "share"], args].concat());
        assert!(parse(&["a", "--name", "b"]).is_ok() && parse(&["--stop", "b"]).is_ok());
        for wrong in [
            &[][..],
            &["a", "--stop", "b"],
            &["--stop", "a", "--name", "b"],
            &["a", "b"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_file_and_a_directory_are_not_both_named() {
        assert!(Cli::try_parse_from(["tributary", "get", "-o", "a", "-d", "b", "https://x"]).is_err());
        assert!(Cli::try_parse_from(["tributary", "get", "-o", "a", "https://x", "-H", "A: b"]).is_ok());
    }
}
