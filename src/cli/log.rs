//! The log, on standard error. What a line's level promises, in every module:
//!
//! | level | what it says |
//! | --- | --- |
//! | ERROR | the owner must do something: a configuration that is wrong, a disk that refuses |
//! | WARN | something works less well than it could, and goes on |
//! | INFO | this device's changes of state, and peers that come and go |
//! | DEBUG | what runs: hosts, addresses of origins, file names, tunnels. Private: nothing of it stands above |
//! | TRACE | each step |
//!
//! Names that come from peers are cleaned before they are shown (`link::wire::clean`) and written with quotes. What peers
//! or the network can cause again and again passes a [`Seldom`](crate::task::Seldom) first, and says with `more` how many
//! lines it stands for.
//!
//! Where systemd's journal reads standard error, lines begin with their priority (`<6>`) and have neither time nor colour,
//! which the journal knows better.

use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::args::{Cli, Command};

/// Starts the log. `RUST_LOG` has the last word; else the daemon tells its news and the others only what is wrong.
pub(super) fn to_stderr(cli: &Cli) {
    let usual = match (cli.common.verbose, &cli.command) {
        (0, Command::Run) => "tributary=info,warn",
        (0, _) => "error",
        (1, Command::Run) | (2, _) => "tributary=debug,info",
        (1, _) => "tributary=info,warn",
        _ => "tributary=trace,debug",
    };
    let asked = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    // Levels by target and nothing else: what could also match fields by patterns is half a megabyte of code.
    let filter = asked.as_deref().map(str::parse::<Targets>);
    let wrong = filter.as_ref().is_some_and(Result::is_err);
    let filter = filter.and_then(Result::ok);
    let filter = filter.unwrap_or_else(|| usual.parse().unwrap_or_default());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    if is_journal() {
        let lines = lines.with_ansi(false).event_format(ForJournal::new());
        registry.with(lines.with_filter(filter)).init();
    } else {
        let colour =
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        registry.with(lines.with_ansi(colour).with_filter(filter)).init();
    }
    if wrong {
        tracing::warn!(
            "RUST_LOG is no list of targets and levels, such as `warn,tributary=debug`: it is left out"
        );
    }
}

/// Whether standard error is the very pipe that systemd says leads to its journal: what a terminal of a session inherits
/// from the service it was started by is not.
fn is_journal() -> bool {
    let Some(named) = std::env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    nix::sys::stat::fstat(std::io::stderr())
        .is_ok_and(|stat| named == *format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Lines as `sd-daemon(3)` wants them.
struct ForJournal(Format<Full, ()>);

impl ForJournal {
    fn new() -> Self {
        Self(
            Format::default()
                .without_time()
                .with_level(false)
                .with_ansi(false),
        )
    }
}

impl<S, N> FormatEvent<S, N> for ForJournal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}
