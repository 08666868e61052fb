//! `tributary invite`, `join`, `forget`, `block` and `leave`: who is of the household. The daemon does it; this asks, and
//! says what follows.
//!
//! Invariant: a token goes to standard output and comes from standard input, where other users of the device see neither.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::api::convert::{DAEMON, STOPPED, USAGE};
use crate::api::{Change, Changed, Client, ClientError, Invited, Named, Reply, Request};
use crate::task::Tasks;
use crate::types::Period;

use super::args::{self, Common};
use super::daemon;

/// No line that is typed or pasted here is longer.
const MAX_INPUT: u64 = 4096;

pub(super) async fn invite(common: &Common, options: &args::Invite, stop: CancellationToken) -> ExitCode {
    let change = Change::Invite {
        valid: options.valid.0.as_secs(),
        may_vouch: !options.may_not_vouch,
    };
    match ask(common, &Request::Change(change), stop).await {
        Ok(Reply::Invited(invited)) => {
            eprint!("{}", invitation(&invited));
            println!("{}", invited.token);
            ExitCode::SUCCESS
        }
        other => refused(other),
    }
}

fn invitation(invited: &Invited) -> String {
    let valid = Period(std::time::Duration::from_secs(invited.valid));
    format!(
        "On the device that is to join, within {valid} and before this one's daemon is restarted:\n\n  \
         sudo tributary join\n\nand, when it asks for it, this token. It lets one device in, once:\n\n"
    )
}

pub(super) async fn join(common: &Common, options: args::Join, stop: CancellationToken) -> ExitCode {
    let token = match options.token.filter(|token| token != "-") {
        Some(token) => token,
        None => match typed("Token: ", &stop).await {
            Some(token) => token,
            None => return ExitCode::from(STOPPED),
        },
    };
    if token.trim().is_empty() {
        eprintln!("tributary: there is no token: `tributary invite` on a device of the household makes one");
        return ExitCode::from(USAGE);
    }
    done(ask(common, &Request::Change(Change::Join { token }), stop).await)
}

pub(super) async fn forget(common: &Common, device: String, stop: CancellationToken) -> ExitCode {
    done(ask(common, &Request::Change(Change::Forget { device }), stop).await)
}

pub(super) async fn block(common: &Common, device: String, stop: CancellationToken) -> ExitCode {
    done(ask(common, &Request::Change(Change::Block { device }), stop).await)
}

pub(super) async fn leave(common: &Common, options: &args::Leave, stop: CancellationToken) -> ExitCode {
    if !options.yes {
        if !io::stdin().is_terminal() {
            eprintln!(
                "tributary: this asks on a terminal whether you are sure; in a script say `tributary leave --yes`"
            );
            return ExitCode::from(USAGE);
        }
        let question =
            "This device will trust nobody any more, and its household will not trust it. Leave? [y/N] ";
        match typed(question, &stop).await {
            Some(answer) if is_yes(&answer) => {}
            Some(_) => return ExitCode::SUCCESS,
            None => return ExitCode::from(STOPPED),
        }
    }
    done(ask(common, &Request::Change(Change::Leave), stop).await)
}

/// The first reply to a request.
pub(super) async fn ask(
    common: &Common,
    request: &Request,
    stop: CancellationToken,
) -> Result<Reply, Refused> {
    let answer = async {
        let mut client: Client = daemon::ask(common, request).await?;
        client.reply().await?.ok_or(ClientError::Malformed)
    };
    match stop.run_until_cancelled(answer).await {
        None => Err(Refused::Stopped),
        Some(Ok(Reply::Failed(failed))) => Err(Refused::Daemon(failed.code, failed.message)),
        Some(Ok(reply)) => Ok(reply),
        Some(Err(error)) => Err(Refused::of(common, &error)),
    }
}

/// Why there is no reply.
#[derive(Debug)]
pub(super) enum Refused {
    Stopped,
    Daemon(u8, String),
}

impl Refused {
    pub(super) fn of(common: &Common, error: &ClientError) -> Self {
        let what_to_do = match error {
            ClientError::NotAllowed { .. } => "run it again with sudo",
            ClientError::Foreign { .. } => "remove it, or name the daemon's own with --socket",
            _ => "start one with `tributary run`",
        };
        let places = daemon::places(common);
        Self::Daemon(DAEMON, format!("{error} (looked at {places}); {what_to_do}"))
    }

    pub(super) fn code(self) -> ExitCode {
        match self {
            Self::Stopped => ExitCode::from(STOPPED),
            Self::Daemon(code, message) => {
                eprintln!("tributary: {message}");
                ExitCode::from(code)
            }
        }
    }
}

fn refused(answer: Result<Reply, Refused>) -> ExitCode {
    let nonsense = || Refused::Daemon(DAEMON, ClientError::Malformed.to_string());
    answer.err().unwrap_or_else(nonsense).code()
}

fn done(answer: Result<Reply, Refused>) -> ExitCode {
    match answer {
        Ok(Reply::Changed(changed)) => {
            println!("{}", said(&changed));
            ExitCode::SUCCESS
        }
        other => refused(other),
    }
}

/// What has changed, what follows from it, and how to undo it.
pub(super) fn said(changed: &Changed) -> String {
    match changed {
        Changed::Vouched(device) => format!(
            "{device} and this device are of one household now. All its members know it as soon as they are linked."
        ),
        Changed::Forgotten(device) => format!(
            "{device} is a neighbour again, here and for all members. It stays one, also where it knows the household's \
             passphrase, until somebody vouches for it: `tributary approve` or `tributary invite`."
        ),
        Changed::Blocked { device, fell } => {
            let mut text =
                format!("{device} is blocked: it has no link any more, here and with all members.");
            if !fell.is_empty() {
                let names: Vec<String> = fell.iter().map(Named::to_string).collect();
                text += &format!(
                    " Neighbours again, because nobody else had vouched for them: {}.",
                    names.join(", ")
                );
            }
            text + &format!(" To undo it: `tributary forget {}`.", device.short())
        }
        Changed::Left { members, passphrase } => {
            let mut text = match members {
                0 => "This device was of no household; now it says so.".to_owned(),
                1 => "This device has left the household: it and 1 member do not trust each other any more."
                    .to_owned(),
                n => format!(
                    "This device has left the household: it and {n} members do not trust each other any more."
                ),
            };
            if *passphrase {
                text +=
                    " Remove the passphrase from its configuration: else it joins again at the next start.";
            }
            text
        }
    }
}

/// A line that is typed here, or piped; `None`: the user wants to stop.
pub(super) async fn typed(question: &str, stop: &CancellationToken) -> Option<String> {
    if io::stdin().is_terminal() {
        eprint!("{question}");
        // Without a terminal to write to there is one to read from: nothing is lost but the question.
        let _ = io::stderr().flush();
    }
    let read = Tasks::new().blocking(|| {
        let mut line = String::new();
        let read = io::stdin().lock().take(MAX_INPUT).read_line(&mut line);
        read.map(|_| line).unwrap_or_default()
    });
    stop.run_until_cancelled(read).await?.ok()
}

pub(super) fn is_yes(answer: &str) -> bool {
    ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Named {
        Named {
            name: name.into(),
            id: "0123456789abcdef".into(),
        }
    }

    #[test]
    fn what_follows_is_said_with_how_to_undo_it() {
        let blocked = |fell| {
            said(&Changed::Blocked {
                device: named("kitchen"),
                fell,
            })
        };
        assert!(blocked(vec![]).contains("`tributary forget 01234567`"));
        assert!(!blocked(vec![]).contains("Neighbours again"));
        assert!(blocked(vec![named("phone"), named("")]).contains("phone (01234567), 01234567."));
        assert!(said(&Changed::Forgotten(named("kitchen"))).contains("`tributary approve`"));
        let left = |members, passphrase| said(&Changed::Left { members, passphrase });
        assert!(left(3, true).contains("3 members") && left(3, true).contains("Remove the passphrase"));
        assert!(!left(1, false).contains("passphrase"));
    }

    #[test]
    fn an_invitation_has_the_command_and_how_long_it_is_good_for() {
        let text = invitation(&Invited {
            token: "T".into(),
            valid: 3600,
        });
        assert!(
            text.contains("tributary join\n") && text.contains("within 1 h"),
            "{text}"
        );
    }

    #[test]
    fn only_a_yes_is_one() {
        assert!(is_yes("y\n") && is_yes(" YES "));
        assert!(!is_yes("") && !is_yes("no") && !is_yes("yep"));
    }
}
