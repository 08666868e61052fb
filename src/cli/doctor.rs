//! `tributary doctor`: what keeps this household from pooling, and what to do about it.
//!
//! Exit code 0 where nothing is a problem (notes are none), 1 where something is.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::api::convert::STOPPED;
use crate::config::Config;
use crate::doctor::{Check, Options, Report, Verdict, examine};
use crate::task::Tasks;

use super::args::{self, Common};
use super::{daemon, fail, host_name, state_path};

/// A terminal's usual width; text is broken before it.
const WIDTH: usize = 80;
/// A mark, a space, the longest name of a check and two more.
const INDENT: usize = 13;
/// For a guest's farewell, so that peers do not wait for it.
const FAREWELL: Duration = Duration::from_secs(1);

pub(super) async fn run(
    common: &Common,
    config: Config,
    options: args::Doctor,
    stop: CancellationToken,
) -> ExitCode {
    let state = state_path(common);
    let asked = Options {
        name: config.device.name.clone().unwrap_or_else(host_name),
        config,
        sockets: daemon::sockets_of(common),
        state,
        probe: (!options.offline).then_some(options.probe),
    };
    let tasks = Tasks::new();
    let report = tokio::select! {
        report = examine(&asked, &tasks) => Some(report),
        () = stop.cancelled() => None,
    };
    tasks.stop(FAREWELL).await;
    let Some(report) = report else {
        return ExitCode::from(STOPPED);
    };
    if let Err(error) = print(&report, options.json) {
        return fail(&error);
    }
    if report.problems == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn print(report: &Report, json: bool) -> serde_json::Result<()> {
    if json {
        println!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    let look = Look {
        unicode: speaks_utf8(|name| std::env::var_os(name)),
        colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
    };
    print!("{}", text(report, look));
    Ok(())
}

/// What the terminal can show.
#[derive(Clone, Copy, Debug)]
struct Look {
    unicode: bool,
    colour: bool,
}

impl Look {
    fn mark(self, verdict: Verdict) -> String {
        let (sign, plain, colour) = match verdict {
            Verdict::Fine => ("\u{2713}", "+", 32),
            Verdict::Note => ("!", "!", 33),
            Verdict::Problem => ("\u{2717}", "x", 31),
        };
        let sign = if self.unicode { sign } else { plain };
        if self.colour {
            format!("\x1b[{colour}m{sign}\x1b[0m")
        } else {
            sign.to_owned()
        }
    }

    const fn step(self) -> &'static str {
        if self.unicode { "\u{2192} " } else { "-> " }
    }

    /// Names of devices may hold what this terminal cannot show.
    fn shown(self, text: &str) -> String {
        let visible = |c: char| if self.unicode || c.is_ascii() { c } else { '?' };
        text.chars().filter(|c| !c.is_control()).map(visible).collect()
    }
}

fn text(report: &Report, look: Look) -> String {
    let mut out = String::new();
    for check in &report.checks {
        out += &one(check, look);
    }
    let fine = report.checks.len() - report.problems - report.notes;
    let number = |n: usize, what: &str| match n {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    };
    out += &format!(
        "\n{}, {}, {fine} of {} fine.\n",
        number(report.problems, "problem"),
        number(report.notes, "note"),
        report.checks.len()
    );
    out
}

fn one(check: &Check, look: Look) -> String {
    let mark = look.mark(check.verdict);
    let first = format!("{mark} {:<width$}", check.name, width = INDENT - 2);
    let mut out = first + &paragraph(&look.shown(&check.found), "", "");
    let indent = " ".repeat(INDENT);
    if let Some(means) = &check.means {
        out += &indent;
        out += &paragraph(&look.shown(means), "", "");
    }
    for step in &check.advice {
        let hang = " ".repeat(look.step().chars().count());
        out += &indent;
        out += &paragraph(&look.shown(step), look.step(), &hang);
    }
    out
}

/// Lines that end before [`WIDTH`], the first one already indented; a word that is longer than a line is broken.
fn paragraph(text: &str, first: &str, hang: &str) -> String {
    let room = WIDTH - INDENT - first.chars().count();
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut rest: Vec<char> = word.chars().collect();
        while !rest.is_empty() {
            let used = lines.last().map_or(0, |l| l.chars().count());
            let gap = usize::from(used > 0);
            if used + gap + rest.len() > room && used > 0 {
                lines.push(String::new());
                continue;
            }
            let part: String = rest.drain(..rest.len().min(room)).collect();
            if let Some(line) = lines.last_mut() {
                if gap == 1 {
                    line.push(' ');
                }
                line.push_str(&part);
            }
        }
    }
    let between = format!("\n{}{hang}", " ".repeat(INDENT));
    format!("{first}{}\n", lines.join(&between))
}

/// Whether the environment's locale is one of UTF-8; the first variable that is set decides.
fn speaks_utf8(read: impl Fn(&str) -> Option<OsString>) -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| read(name).filter(|v| !v.is_empty()));
    let text = set.as_deref().map(OsStr::to_string_lossy).unwrap_or_default();
    let text = text.to_ascii_lowercase();
    text.contains("utf-8") || text.contains("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Look = Look {
        unicode: false,
        colour: false,
    };
    const RICH: Look = Look {
        unicode: true,
        colour: true,
    };

    fn check(verdict: Verdict) -> Check {
        let long = "10.77.0.2 is there and was not heard within 2 s; ".repeat(4);
        Check {
            name: "multicast",
            verdict,
            found: format!("Stra\u{df}e: {long}"),
            means: Some(long.clone()),
            advice: vec![format!("Type: {}", "x".repeat(200)), long],
        }
    }

    #[test]
    fn every_line_fits_and_without_utf8_all_is_ascii() {
        for verdict in [Verdict::Fine, Verdict::Note, Verdict::Problem] {
            let shown = one(&check(verdict), PLAIN);
            assert!(shown.is_ascii(), "{shown}");
            assert!(shown.lines().count() > 10);
            for line in shown.lines() {
                assert!(line.len() <= WIDTH, "{} columns: {line}", line.len());
            }
            let shown = one(
                &check(verdict),
                Look {
                    unicode: true,
                    ..PLAIN
                },
            );
            assert!(shown.contains("Stra\u{df}e") && shown.lines().all(|l| l.chars().count() <= WIDTH));
        }
    }

    #[test]
    fn nothing_is_lost_by_breaking_lines() {
        let shown = one(&check(Verdict::Note), PLAIN);
        let letters = |text: &str| text.chars().filter(|c| *c == 'x').count();
        assert_eq!(letters(&shown), 200);
        assert_eq!(shown.matches("10.77.0.2").count(), 12);
    }

    #[test]
    fn each_verdict_has_its_mark_and_colours_only_where_they_are_wanted() {
        for (verdict, plain, rich) in [
            (Verdict::Fine, "+ multicast", "\x1b[32m\u{2713}\x1b[0m multicast"),
            (Verdict::Note, "! multicast", "\x1b[33m!\x1b[0m multicast"),
            (
                Verdict::Problem,
                "x multicast",
                "\x1b[31m\u{2717}\x1b[0m multicast",
            ),
        ] {
            assert!(one(&check(verdict), PLAIN).starts_with(plain));
            assert!(one(&check(verdict), RICH).starts_with(rich));
        }
    }

    #[test]
    fn a_peers_name_cannot_move_the_cursor() {
        let mut evil = check(Verdict::Fine);
        evil.found = "a\x1b[2Jb\u{202e}".into();
        assert!(!one(&evil, PLAIN).contains('\x1b'));
    }

    #[test]
    fn the_first_variable_that_is_set_decides_about_utf8() {
        let of = |set: &'static [(&str, &str)]| {
            speaks_utf8(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).into()))
        };
        assert!(of(&[("LANG", "de_DE.UTF-8")]));
        assert!(of(&[("LC_ALL", ""), ("LC_CTYPE", "C.utf8"), ("LANG", "C")]));
        assert!(!of(&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]));
        assert!(!of(&[]));
    }
}
