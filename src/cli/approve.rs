//! `tributary approve`: shows a code, and asks whether the other device shows the same.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use futures_util::future::OptionFuture;
use tokio_util::sync::CancellationToken;

use crate::api::convert::{DAEMON, REFUSED, USAGE};
use crate::api::{ApproveRequest, Client, ClientError, Compare, Compared, Named, Reply, Request};

use super::args::{self, Common};
use super::daemon;
use super::peers;
use super::trust::{Refused, ask, is_yes, said, typed};

pub(super) async fn run(common: &Common, options: args::Approve, stop: CancellationToken) -> ExitCode {
    let Some(device) = options.device else {
        return list(common, stop).await;
    };
    if !options.yes_code && !io::stdin().is_terminal() {
        eprintln!(
            "tributary: a person must compare a code, on a terminal; a script that has read it on the other device pipes it \
             into `tributary approve {device} --yes-code`"
        );
        return ExitCode::from(USAGE);
    }
    let request = Request::Approve(ApproveRequest { device });
    let client = match daemon::ask(common, &request).await {
        Ok(client) => client,
        Err(error) => return Refused::of(common, &error).code(),
    };
    match follow(client, options.yes_code, &stop).await {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(refused) => refused.code(),
    }
}

/// Those who could be approved.
async fn list(common: &Common, stop: CancellationToken) -> ExitCode {
    match ask(common, &Request::Peers, stop).await {
        Ok(Reply::Peers(household)) => {
            print!("{}", peers::candidates(&household));
            ExitCode::SUCCESS
        }
        Ok(_) => Refused::Daemon(DAEMON, ClientError::Malformed.to_string()).code(),
        Err(refused) => refused.code(),
    }
}

/// Follows an approval to its end.
async fn follow(mut client: Client, reads: bool, stop: &CancellationToken) -> Result<String, Refused> {
    let mut answering = OptionFuture::default();
    let broke = |error: ClientError| Refused::Daemon(DAEMON, error.to_string());
    loop {
        tokio::select! {
            () = stop.cancelled() => return Err(Refused::Stopped),
            reply = client.reply() => match reply.map_err(broke)? {
                Some(Reply::Compare(Compare::Waiting(device))) => {
                    eprintln!("Waiting for {device}: run `tributary approve` there too, within two minutes.");
                }
                Some(Reply::Compare(Compare::Code { device, code })) => {
                    println!("\n    {}\n", grouped(&code));
                    let answer = compare(device, code, reads, stop);
                    answering = Some(Box::pin(answer)).into();
                }
                Some(Reply::Changed(changed)) => return Ok(said(&changed)),
                Some(Reply::Failed(failed)) => return Err(Refused::Daemon(failed.code, failed.message)),
                Some(_) => return Err(broke(ClientError::Malformed)),
                None => return Err(Refused::Daemon(DAEMON, "the daemon hung up".into())),
            },
            Some(answer) = &mut answering => {
                answering = OptionFuture::default();
                let same = answer.ok_or(Refused::Stopped)?;
                client.answer(Compared { same }).await.map_err(broke)?;
                if same {
                    eprintln!("Waiting for the same answer there.");
                } else {
                    return Err(differs());
                }
            }
        }
    }
}

/// What the person says, or whether what is `read` from standard input is the code; `None`: to stop.
async fn compare(device: Named, code: String, read: bool, stop: &CancellationToken) -> Option<bool> {
    let question = match read {
        true => format!("The code that is shown on {device}: "),
        false => format!("Is the same code shown on {device}? [y/N] "),
    };
    let answer = typed(&question, stop).await?;
    Some(if read {
        digits(&answer) == digits(&code)
    } else {
        is_yes(&answer)
    })
}

fn differs() -> Refused {
    Refused::Daemon(
        REFUSED,
        "the codes are not the same: nobody was approved. Somebody may be in between; try again, or use a cable".into(),
    )
}

/// In groups that are easy to read out: `123 456`.
fn grouped(code: &str) -> String {
    let (first, second) = code.split_at_checked(3).unwrap_or((code, ""));
    format!("{first} {second}")
}

fn digits(code: &str) -> String {
    code.chars().filter(char::is_ascii_digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_shown_in_groups_and_read_with_or_without_them() {
        assert_eq!(grouped("012345"), "012 345");
        assert_eq!(digits("012 345"), digits("012345"));
        assert_ne!(digits("012 346"), digits("012345"));
    }
}
