//! Programs started inside the lab: watched, signalled, measured, and gone when their handle is.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::figure;

/// How often a process is looked at while it is waited for: the error of [`Finished::elapsed`].
const GLANCE: Duration = Duration::from_millis(2);
/// Lines of each output shown when a test fails.
const SHOWN_LINES: usize = 80;
/// The unit of CPU time in /proc, the same on every Linux.
const TICKS_PER_SECOND: u64 = 100;

/// A program that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// From just before its start to its end.
    pub elapsed: Duration,
    /// How it ended.
    pub status: ExitStatus,
    /// Everything it wrote to standard output.
    pub stdout: String,
    /// Everything it wrote to standard error.
    pub stderr: String,
    /// CPU time it used (user and system).
    pub cpu: Duration,
    /// The most memory it had resident, in bytes; looked at every 20 ms, 0 where it was too short-lived.
    pub peak_memory: u64,
}

impl Finished {
    /// Itself, where it ended well; else fails the test with what it said.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(
            self.status.success(),
            "{}\nstdout: {}\nstderr: {}",
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }
}

/// A running program. Dropping it kills it; where a test is failing, it also shows its output.
#[derive(Debug)]
pub struct Process {
    label: String,
    child: Child,
    started: Instant,
    stdout: PathBuf,
    stderr: PathBuf,
    last: Usage,
    finished: Option<Finished>,
}

/// What a process had used when it was last looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    cpu: Duration,
    peak_memory: u64,
}

impl Process {
    /// Starts `command` with its outputs in files in `directory`.
    pub fn start(
        label: &str,
        mut command: Command,
        directory: &std::path::Path,
        nanny: &Nanny,
    ) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| directory.join(format!("{label}-{number}.{kind}"));
        let (stdout, stderr) = (file("out"), file("err"));
        command
            .stdin(Stdio::null())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?);
        let started = Instant::now();
        let child = nanny.start(command)?;
        let (last, finished) = (Usage::default(), None);
        Ok(Self {
            label: label.to_owned(),
            child,
            started,
            stdout,
            stderr,
            last,
            finished,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Since its start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Sends a signal. Nothing happens where it has ended.
    pub fn signal(&self, signal: Signal) {
        if self.finished.is_none() {
            // The child is not reaped yet, so the number is still its own.
            let _ = nix::sys::signal::kill(Pid::from_raw(self.pid().cast_signed()), signal);
        }
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.poll_until(Instant::now() + Duration::from_secs(5));
    }

    /// Whether it still runs.
    pub fn running(&mut self) -> bool {
        self.poll_until(Instant::now()).is_none()
    }

    /// Waits for its end; after `limit` it is killed and the test fails.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> Finished {
        self.try_wait(limit)
            .unwrap_or_else(|| panic!("{} had not ended after {limit:?}", self.label))
    }

    /// Waits for its end; after `limit` it is killed, and there is no result.
    pub fn try_wait(&mut self, limit: Duration) -> Option<Finished> {
        let finished = self.poll_until(Instant::now() + limit);
        if finished.is_none() {
            self.kill();
        }
        finished
    }

    /// Waits for its end until `deadline`; it may go on after that.
    pub fn wait_until(&mut self, deadline: Instant) -> Option<Finished> {
        self.poll_until(deadline)
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Resident memory now and at most, in bytes.
    pub fn memory(&self) -> Memory {
        memory(self.pid()).unwrap_or_default()
    }

    /// CPU time used so far.
    pub fn cpu(&self) -> Duration {
        cpu(self.pid()).unwrap_or(self.last.cpu)
    }

    fn poll_until(&mut self, deadline: Instant) -> Option<Finished> {
        let mut glances = 0_u32;
        while self.finished.is_none() {
            if glances.is_multiple_of(10) {
                self.look();
            }
            glances += 1;
            match self.child.try_wait() {
                Ok(Some(status)) => self.finished = Some(self.finish(status)),
                _ if Instant::now() >= deadline => return None,
                _ => thread::sleep(GLANCE),
            }
        }
        self.finished.clone()
    }

    fn look(&mut self) {
        self.last.cpu = cpu(self.pid()).unwrap_or(self.last.cpu);
        self.last.peak_memory = memory(self.pid()).map_or(self.last.peak_memory, |m| m.peak);
    }

    fn finish(&self, status: ExitStatus) -> Finished {
        Finished {
            elapsed: self.started.elapsed(),
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
            cpu: self.last.cpu,
            peak_memory: self.last.peak_memory,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking()
            || self
                .finished
                .as_ref()
                .is_some_and(|finished| crashed(finished.status))
        {
            for (kind, text) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
                let lines: Vec<_> = text.lines().collect();
                let tail = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
                figure(format_args!("--- {} {kind}:\n{}", self.label, tail.join("\n")));
            }
        }
    }
}

/// Whether it ended by a fault of its own: a panic of Rust's, or a signal that nobody sends.
fn crashed(status: ExitStatus) -> bool {
    let faults = [Signal::SIGSEGV, Signal::SIGABRT, Signal::SIGBUS, Signal::SIGILL];
    let fault = |signal| faults.iter().any(|fault| *fault as i32 == signal);
    status.code() == Some(101) || status.signal().is_some_and(fault)
}

/// The thread that starts a lab's processes: they die with it (`PR_SET_PDEATHSIG` is about threads), not with whichever
/// of a test's threads happened to start them.
#[derive(Clone, Debug)]
pub struct Nanny {
    starts: Sender<(Command, SyncSender<io::Result<Child>>)>,
}

impl Nanny {
    /// Starts the thread; it ends when every handle is gone.
    pub fn hire() -> io::Result<(Self, JoinHandle<()>)> {
        let (starts, inbox) = mpsc::channel::<(Command, SyncSender<io::Result<Child>>)>();
        let thread = thread::Builder::new().name("nanny".into()).spawn(move || {
            while let Ok((mut command, reply)) = inbox.recv() {
                let _ = reply.send(command.spawn());
            }
        })?;
        Ok((Self { starts }, thread))
    }

    /// A handle of no thread.
    pub fn dismissed() -> Self {
        Self {
            starts: mpsc::channel().0,
        }
    }

    fn start(&self, command: Command) -> io::Result<Child> {
        let program = command.get_program().to_owned();
        let (reply, answer) = mpsc::sync_channel(1);
        self.starts.send((command, reply)).map_err(io::Error::other)?;
        let started = answer.recv().map_err(io::Error::other)?;
        started.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))
    }
}

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Now (`VmRSS`).
    pub now: u64,
    /// At most so far (`VmHWM`).
    pub peak: u64,
}

/// Resident memory of a process; `None` where there is none of that number.
pub fn memory(pid: u32) -> Option<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some(Memory {
        now: field("VmRSS:")? * 1024,
        peak: field("VmHWM:")? * 1024,
    })
}

/// CPU time (user and system, all threads) of a process; `None` where there is none of that number.
pub fn cpu(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields counted here come after it.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |place: usize| fields.get(place)?.parse::<u64>().ok();
    Some(ticks(field(11)? + field(12)?))
}

/// CPU time the whole machine has spent on anything but idling since it started.
pub fn machine_cpu() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let numbers: Vec<u64> = stat
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .flat_map(str::parse)
        .collect();
    // user, nice, system, idle, iowait, irq, softirq
    let busy = [0, 1, 2, 5, 6]
        .iter()
        .filter_map(|place| numbers.get(*place))
        .sum();
    Some(ticks(busy))
}

fn ticks(count: u64) -> Duration {
    Duration::from_millis(count * 1000 / TICKS_PER_SECOND)
}

fn read(path: &PathBuf) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}
