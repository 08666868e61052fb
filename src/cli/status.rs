//! `tributary status`: who is there, what to expect of them, what is running; once, or again and again.
//!
//! Watching redraws in place on a terminal and prints blocks elsewhere; a daemon that is restarted is waited for.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use console::Term;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::api::convert::DAEMON;
use crate::api::{ClientError, Reply, Request, Status};

use super::args::{self, Common};
use super::overview::{USUAL_WIDTH, savings, text};
use super::{clock, daemon};

/// Between two looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// A daemon that takes a question and does not answer is being stopped or stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Cursor home; clear to the end of the line; clear to the end of the screen.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

pub(super) async fn run(common: &Common, options: &args::Status, stop: CancellationToken) -> ExitCode {
    if options.watch {
        return match stop.run_until_cancelled(watch(common, options.json)).await {
            // Whoever asked to watch has seen enough, or reads no more.
            None | Some(Ok(())) => ExitCode::SUCCESS,
            Some(Err(error)) => refused(&error, common),
        };
    }
    match ask(common).await {
        Ok(status) => match say(&once(&status, options)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => super::fail(&error),
        },
        Err(error) => refused(&error, common),
    }
}

/// What is shown where it is shown once.
fn once(status: &Status, options: &args::Status) -> String {
    match (options.savings, options.json) {
        (false, json) => shown(status, json, None),
        // Plain data without maps that could fail.
        (true, true) => serde_json::to_string(&status.savings).unwrap_or_default() + "\n",
        (true, false) => savings(&status.savings),
    }
}

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the daemon hung up without an answer")]
    HungUp,
    #[error("the daemon does not answer")]
    Silent,
}

async fn ask(common: &Common) -> Result<Status, AskError> {
    let answer = async {
        let mut client = daemon::ask(common, &Request::Status).await?;
        match client.reply().await? {
            Some(Reply::Status(status)) => Ok(status),
            _ => Err(AskError::HungUp),
        }
    };
    let answered = tokio::time::timeout(ANSWER_WITHIN, answer).await;
    answered.unwrap_or(Err(AskError::Silent))
}

fn refused(error: &AskError, common: &Common) -> ExitCode {
    eprintln!(
        "tributary: {error} (looked at {}); start one with `tributary run`",
        daemon::places(common)
    );
    ExitCode::from(DAEMON)
}

/// Shows the status until nobody reads it any more.
async fn watch(common: &Common, json: bool) -> Result<(), AskError> {
    let mut every = tokio::time::interval(WATCH_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shows = Shows::new(json);
    loop {
        every.tick().await;
        let written = match ask(common).await {
            Ok(status) => shows.status(&status),
            // Neither passes by waiting.
            Err(error @ AskError::Client(ClientError::NotAllowed { .. } | ClientError::Malformed)) => {
                return Err(error);
            }
            Err(_) => shows.waiting(),
        };
        if written.is_err() {
            return Ok(());
        }
    }
}

/// Where watching writes to.
struct Shows {
    json: bool,
    screen: bool,
    begun: bool,
    waiting: bool,
}

impl Shows {
    fn new(json: bool) -> Self {
        Self {
            json,
            screen: !json && io::stdout().is_terminal(),
            begun: false,
            waiting: false,
        }
    }

    fn status(&mut self, status: &Status) -> io::Result<()> {
        self.waiting = false;
        let size = Term::stdout().size_checked().filter(|_| self.screen);
        let text = shown(status, self.json, size.map(|(_, columns)| usize::from(columns)));
        self.show(&text, size.map(|(rows, _)| usize::from(rows)))
    }

    /// The daemon is away: said once, or where the status was.
    fn waiting(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.waiting, true) && !self.screen {
            return Ok(());
        }
        if self.json {
            eprintln!("tributary: waiting for the daemon");
            return Ok(());
        }
        let rows = Term::stdout().size_checked().map(|(rows, _)| usize::from(rows));
        self.show("waiting for the daemon\n", rows.filter(|_| self.screen))
    }

    fn show(&mut self, text: &str, rows: Option<usize>) -> io::Result<()> {
        let begun = std::mem::replace(&mut self.begun, true);
        if self.screen {
            // The first one goes on an empty screen, and what stood there before into the scrollback.
            let room = if begun {
                String::new()
            } else {
                "\n".repeat(rows.unwrap_or_default())
            };
            say(&(room + &frame(text, rows)))
        } else if self.json || !begun {
            say(text)
        } else {
            say(&format!("\n{text}"))
        }
    }
}

/// One picture drawn over the last one, in one write so that nothing flickers; what the window has no room for is cut.
fn frame(text: &str, rows: Option<usize>) -> String {
    // The last row stays free: a line's end there would scroll.
    let room = rows.map_or(usize::MAX, |rows| rows.saturating_sub(1).max(1));
    let lines = text
        .lines()
        .take(room)
        .map(|line| format!("{line}{CLEAR_LINE}\n"));
    format!("{HOME}{}{CLEAR_BELOW}", lines.collect::<String>())
}

fn shown(status: &Status, json: bool, width: Option<usize>) -> String {
    if json {
        // Plain data without maps that could fail.
        return serde_json::to_string(status).unwrap_or_default() + "\n";
    }
    // Wider lines than usual are no easier to read.
    let width = width.map_or(USUAL_WIDTH, |width| width.min(USUAL_WIDTH));
    text(status, width, clock::in_so_long)
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_drawn_over_the_last_one_and_cut_to_the_window() {
        let text = "one\ntwo\nthree\n";
        assert_eq!(
            frame(text, None),
            "\x1b[Hone\x1b[K\ntwo\x1b[K\nthree\x1b[K\n\x1b[J"
        );
        assert_eq!(frame(text, Some(3)), "\x1b[Hone\x1b[K\ntwo\x1b[K\n\x1b[J");
        assert_eq!(frame(text, Some(0)), "\x1b[Hone\x1b[K\n\x1b[J");
    }
}
