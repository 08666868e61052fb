//! The client's side of the control API.
//!
//! Files stay in the client's hands: it answers the daemon's questions by opening, renaming and removing what its own user
//! named, and nothing else ([`giver`](super::giver)).

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::download::Local;
use crate::task::Tasks;
use crate::upload::{Listed, Sources, Stop};

use super::convert::{DAEMON, STOPPED};
use super::giver::{FileGiver, Given, Giver, SourceGiver};
use super::wire::Wire;
use super::{Answer, Compared, Done, Failed, Progress, Reply, Request};

/// The daemon is on this device and has nothing to wait for before it takes a request.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// The daemon says how a download goes five times a second: silent for so long, it hangs.
const SILENT: Duration = Duration::from_secs(30);
/// What a stopped download may take to bring its bytes to the disk; a daemon goes on with that alone.
const STOP_WITHIN: Duration = Duration::from_secs(4);
/// What removing takes that was sent: some requests over lines that were busy just now.
const ABORT_WITHIN: Duration = Duration::from_secs(30);

/// Whom the system's daemon runs as.
const SYSTEM_USER: &str = "tributary";

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is none on this socket.
    #[error("no daemon is running here")]
    NoDaemon,
    /// There is one, and this user may not speak with it.
    #[error("the daemon's socket {} may not be opened by this user{}", socket.display(), needs(.group.as_deref()))]
    NotAllowed {
        /// Where it is.
        socket: PathBuf,
        /// Whose members may open it; `None`: that cannot be seen.
        group: Option<String>,
    },
    /// Somebody else has put one there.
    #[error(
        "the socket {} is not the daemon's: user {uid} listens there, who is neither root, nor `{SYSTEM_USER}`, nor you",
        socket.display()
    )]
    Foreign {
        /// Where it is.
        socket: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// The connection broke.
    #[error("the connection to the daemon broke: {0}")]
    Io(#[from] io::Error),
    /// Not our protocol.
    #[error("the daemon's answer makes no sense; is it of another version?")]
    Malformed,
}

/// A connection with one request under way.
#[derive(Debug)]
pub struct Client {
    wire: Wire,
}

impl Client {
    /// Connects to the daemon and sends the request.
    ///
    /// # Errors
    /// Where no daemon listens there, or it may not be asked.
    pub async fn ask(socket: &Path, request: &Request) -> Result<Self, ClientError> {
        let connected = tokio::time::timeout(CONNECT_WITHIN, UnixStream::connect(socket)).await;
        let stream = connected
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoDaemon,
                io::ErrorKind::PermissionDenied => ClientError::NotAllowed {
                    socket: socket.to_owned(),
                    group: group(socket),
                },
                _ => ClientError::Io(e),
            })?;
        let uid = stream.peer_cred()?.uid();
        if !is_expected(uid) {
            let socket = socket.to_owned();
            return Err(ClientError::Foreign { socket, uid });
        }
        let wire = Wire::new(stream);
        match wire.say(request).await {
            // It was turned away before: the reply says why.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
            _ => Ok(Self { wire }),
        }
    }

    /// The next reply; `None` when the daemon has hung up.
    ///
    /// # Errors
    /// Where the connection breaks or what comes is no reply.
    pub async fn reply(&mut self) -> Result<Option<Reply>, ClientError> {
        match self.wire.line().await? {
            Some(line) => line.parse().map(Some).map_err(|_| ClientError::Malformed),
            None => Ok(None),
        }
    }

    /// Answers what the daemon asked last.
    ///
    /// # Errors
    /// Where the connection breaks.
    pub async fn answer(&self, answer: Compared) -> Result<(), ClientError> {
        match self.wire.say(&answer).await {
            // It has ended meanwhile: its last reply says why.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Follows a download to its end: opens its files where `files` has them, and lets `show` see how far it is. When
    /// `stop` is cancelled the daemon stops it, resumably.
    ///
    /// # Errors
    /// What the download ended with; with [`DAEMON`] it is the daemon that failed, and the same can be done without it.
    pub async fn download(
        mut self,
        files: Local,
        tasks: &Tasks,
        stop: &CancellationToken,
        show: impl FnMut(&Progress),
    ) -> Result<Done, Failed> {
        let giver = FileGiver::new(files, tasks);
        let stop = Stop {
            stop: stop.clone(),
            ..Stop::default()
        };
        let Followed {
            end,
            last,
            stage,
            elapsed,
        } = self.follow(&giver, &stop, show).await;
        let broken = match end {
            End::Done(done) => return giver.done(*done),
            End::Failed(failed) => return Err(failed),
            End::Broken(why) => why,
        };
        match giver.published() {
            // All that was missing is the daemon's word.
            Some(path) => Ok(done_without(path, last, elapsed)),
            None => Err(stage.ended(broken)),
        }
    }

    /// Follows an upload, or the offering of a file, to its end: opens for the daemon what `sources` have, of which `listed` is the list, and lets
    /// `show` see how far it is.
    ///
    /// # Errors
    /// As with [`download`](Self::download).
    pub async fn upload(
        mut self,
        sources: Arc<dyn Sources>,
        listed: Listed,
        stop: &Stop,
        show: impl FnMut(&Progress),
    ) -> Result<Done, Failed> {
        let giver = SourceGiver::new(sources, listed);
        let Followed { end, stage, .. } = self.follow(&giver, stop, show).await;
        match end {
            End::Done(done) => Ok(*done),
            End::Failed(failed) => Err(failed),
            End::Broken(why) => Err(stage.ended(why)),
        }
    }

    /// Until the daemon says how it ended, or can say no more.
    async fn follow(&mut self, giver: &dyn Giver, stop: &Stop, mut show: impl FnMut(&Progress)) -> Followed {
        let mut answering = OptionFuture::default();
        let mut last = Progress::default();
        let (began, mut deadline, mut stage) = (Instant::now(), Instant::now() + SILENT, Stage::Going);
        let end = loop {
            tokio::select! {
                reply = self.reply() => {
                    if stage == Stage::Going {
                        deadline = Instant::now() + SILENT;
                    }
                    match reply {
                        Ok(Some(Reply::Progress(progress))) => {
                            show(&progress);
                            last = progress;
                        }
                        Ok(Some(Reply::Files(ask))) => answering = Some(giver.answer(ask)).into(),
                        Ok(Some(Reply::Done(done))) => break End::Done(Box::new(done)),
                        Ok(Some(Reply::Failed(failed))) if failed.code == DAEMON => {
                            break End::Broken(failed.message);
                        }
                        Ok(Some(Reply::Failed(failed))) => break End::Failed(failed),
                        Ok(Some(_)) => break End::Broken(ClientError::Malformed.to_string()),
                        Ok(None) => break End::Broken("the daemon hung up".to_owned()),
                        Err(error) => break End::Broken(error.to_string()),
                    }
                }
                Some(given) = &mut answering => {
                    answering = OptionFuture::default();
                    if let Err(error) = self.give(given).await {
                        break End::Broken(error.to_string());
                    }
                }
                () = stop.stop.cancelled(), if stage == Stage::Going => {
                    stage = Stage::Stopping;
                    deadline = Instant::now() + STOP_WITHIN;
                    if let Err(error) = self.wire.say(&Answer::Stop).await {
                        break End::Broken(error.to_string());
                    }
                }
                () = stop.abort.cancelled(), if stage != Stage::Aborting => {
                    stage = Stage::Aborting;
                    deadline = Instant::now() + ABORT_WITHIN;
                    if let Err(error) = self.wire.say(&Answer::Abort).await {
                        break End::Broken(error.to_string());
                    }
                }
                () = sleep_until(deadline) => {
                    break End::Broken(format!("the daemon was silent for {} s", SILENT.as_secs()));
                }
            }
        };
        if let End::Broken(_) = end {
            // A rename that is under way decides what there is to be done yet.
            answering.await;
        }
        let elapsed = began.elapsed();
        Followed {
            end,
            last,
            stage,
            elapsed,
        }
    }

    async fn give(&self, (answer, descriptors): Given) -> io::Result<()> {
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        self.wire.pass(&answer, &descriptors).await
    }
}

/// How a conversation with the daemon went.
struct Followed {
    end: End,
    last: Progress,
    stage: Stage,
    elapsed: Duration,
}

enum End {
    Done(Box<Done>),
    Failed(Failed),
    /// It said no more, or that it cannot do it; why.
    Broken(String),
}

/// What the user wants.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Going,
    Stopping,
    Aborting,
}

impl Stage {
    /// What it is when the daemon could not say how it ended.
    fn ended(self, broken: String) -> Failed {
        let (code, message) = match self {
            Self::Going => (DAEMON, broken),
            Self::Stopping => (STOPPED, "stopped; run the same command again to continue".into()),
            Self::Aborting => (
                STOPPED,
                format!(
                    "stopped, and it is not known whether what was sent was removed ({broken}); the same command with \
                     --abort does it"
                ),
            ),
        };
        Failed { code, message }
    }
}

/// What can be said of a download whose file is complete while the daemon is gone.
fn done_without(path: PathBuf, last: Progress, elapsed: Duration) -> Done {
    Done {
        bytes: std::fs::metadata(&path).map_or(last.done, |m| m.len()),
        path,
        elapsed: elapsed.as_secs_f64(),
        rate: last.rate,
        lanes: last.lanes,
        note: Some("the daemon went away just after the file was complete".into()),
        ..Done::default()
    }
}

/// Whether a daemon of that user may be told tokens, and be believed: a socket can be put where one is looked for by
/// whoever may write there.
fn is_expected(uid: u32) -> bool {
    let system = || nix::unistd::User::from_name(SYSTEM_USER).ok().flatten();
    uid == 0
        || uid == nix::unistd::geteuid().as_raw()
        || system().is_some_and(|user| user.uid.as_raw() == uid)
}

/// The name of the group that the socket is for.
fn group(socket: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let gid = std::fs::metadata(socket).ok()?.gid();
    let group = nix::unistd::Group::from_gid(gid.into()).ok().flatten();
    Some(group.map_or_else(|| gid.to_string(), |g| g.name))
}

fn needs(group: Option<&str>) -> String {
    group.map_or_else(String::new, |group| format!(" (it needs the group `{group}`)"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::net::UnixListener;

    use super::*;
    use crate::api::{Ask, GetRequest};
    use crate::download::Destination;
    use crate::store::{Claim, Generation, Validator};

    #[test]
    fn sec_e1_a_socket_of_another_user_is_not_the_daemons() {
        assert!(is_expected(0) && is_expected(nix::unistd::geteuid().as_raw()));
        // Nobody's own number in any system's range of users.
        assert!(!is_expected(u32::MAX - 7));
    }

    fn claim() -> Claim {
        let validator = Some(Validator::ETag("\"v1\"".into()));
        let generation = Generation { total: 10, validator };
        Claim::new("https://origin.example/x", Some(generation), None)
    }

    /// What a client makes of a daemon that says these things, waiting for an answer to each question.
    async fn served(directory: &Path, sayings: Vec<Reply>) -> (Result<Done, Failed>, Vec<Answer>) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let request = GetRequest {
            url: "https://origin.example/x".into(),
            headers: Vec::new(),
            sha256: None,
            pool: true,
        };
        let tasks = Tasks::new();
        let client = Client::ask(&socket, &Request::Get(request)).await.unwrap();
        let files = Local::new(Destination::Directory(directory.to_owned()), &tasks);
        let stop = CancellationToken::new();
        let daemon = async {
            let mut wire = Wire::new(listener.accept().await.unwrap().0);
            let mut answers = Vec::new();
            wire.line().await.unwrap();
            for saying in sayings {
                if wire.say(&saying).await.is_ok()
                    && matches!(saying, Reply::Files(_))
                    && let Ok(Some(line)) = wire.line().await
                {
                    answers.push(line.parse().unwrap());
                }
            }
            answers
        };
        tokio::join!(client.download(files, &tasks, &stop, |_| {}), daemon)
    }

    fn done() -> Done {
        done_without("/etc/passwd".into(), Progress::default(), Duration::from_secs(1))
    }

    fn open(name: &str) -> Reply {
        let (name, claim) = (name.to_owned(), claim());
        Reply::Files(Ask::Open { name, claim })
    }

    #[tokio::test]
    async fn sec_c1_a_daemon_that_lies_gets_no_file_but_in_the_directory_and_few_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let names = ["../out", "/etc/out", "a/../../out", ".out", ".."];
        let (result, answers) = served(&inner, names.map(open).into()).await;
        assert_eq!(result.unwrap_err().code, DAEMON);
        assert!(answers.iter().all(|a| matches!(a, Answer::Opened { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let (_, answers) = served(&inner, (0..100).map(|n| open(&n.to_string())).collect()).await;
        let opened = answers.iter().filter(|a| matches!(a, Answer::Opened { .. }));
        assert_eq!(opened.count(), 64);
        assert!(matches!(answers.last(), Some(Answer::Failed(why)) if why.contains("too many")));
    }

    #[tokio::test]
    async fn a_download_is_done_only_when_this_side_gave_the_file_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let (result, _) = served(folder.path(), vec![open("x"), Reply::Done(done())]).await;
        assert_eq!(result.unwrap_err().code, DAEMON);
        assert!(!folder.path().join("x").exists());
        let (result, answers) = served(folder.path(), vec![Reply::Files(Ask::Publish)]).await;
        assert_eq!(result.unwrap_err().code, DAEMON);
        assert!(matches!(&answers[..], [Answer::Failed(_)]), "{answers:?}");
        let publish = Reply::Files(Ask::Publish);
        // The path is ours, whatever the daemon calls it; nor need it live to tell.
        for last in [vec![Reply::Done(done())], Vec::new()] {
            let sayings = [vec![open("x"), publish.clone()], last].concat();
            let (result, _) = served(folder.path(), sayings).await;
            assert_eq!(result.unwrap().path, folder.path().join("x"));
            fs::remove_file(folder.path().join("x")).unwrap();
        }
    }
}
