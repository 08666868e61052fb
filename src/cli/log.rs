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
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

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
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if is_journal() {
        builder.with_ansi(false).event_format(ForJournal::new()).init();
    } else {
        let colour =
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        builder.with_ansi(colour).init();
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
