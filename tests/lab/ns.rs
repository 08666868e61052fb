//! Namespaces without names: held by descriptors, so that they go when the lab does, whatever happened.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{chdir, geteuid, sethostname};

/// Set in the copy of this program that [`allow`] starts in a user namespace.
const INSIDE: &str = "TRIBUTARY_LAB_INSIDE";

/// A network namespace; for a host also its own mounts and host name.
#[derive(Debug)]
pub struct Namespace {
    net: File,
    host: Option<(File, File)>,
}

impl Namespace {
    /// A network with nothing but a loopback interface that is down.
    pub fn network() -> io::Result<Self> {
        fresh(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(Self {
                net: File::open("/proc/thread-self/ns/net")?,
                host: None,
            })
        })
    }

    /// A network of its own, a host name, and `files` (source, where it is seen) laid over the file system.
    pub fn host(name: &str, files: &[(PathBuf, &str)]) -> io::Result<Self> {
        fresh(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
            sethostname(name)?;
            let nothing = None::<&str>;
            mount(
                nothing,
                "/",
                nothing,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                nothing,
            )?;
            for (source, seen_at) in files {
                // A machine without that file (resolv.conf as a dangling link) needs none of ours.
                if Path::new(seen_at).exists() {
                    mount(Some(source), *seen_at, nothing, MsFlags::MS_BIND, nothing)?;
                }
            }
            // Shows this network's interfaces below /sys/class/net; not every user namespace may.
            let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), nothing);
            let of = |kind| File::open(format!("/proc/thread-self/ns/{kind}"));
            Ok(Self {
                net: of("net")?,
                host: Some((of("mnt")?, of("uts")?)),
            })
        })
    }

    /// Does `work` in a thread of this namespace and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        fresh(|| {
            // A thread that shares its root directory with others cannot change mounts.
            unshare(CloneFlags::CLONE_FS)?;
            self.enter()?;
            work()
        })
    }

    /// Lets `command` start in this namespace, and end with the thread that started it.
    pub fn prepare(&self, command: &mut Command) -> io::Result<()> {
        let own = Self {
            net: self.net.try_clone()?,
            host: match &self.host {
                Some((mounts, name)) => Some((mounts.try_clone()?, name.try_clone()?)),
                None => None,
            },
        };
        // By its path, as that namespace has it: a directory of this one has no name there, and musl insists on one.
        let directory = match command.get_current_dir() {
            Some(directory) => directory.to_owned(),
            None => std::env::current_dir()?,
        };
        let directory = CString::new(directory.into_os_string().into_encoded_bytes())?;
        let enter = move || {
            set_pdeathsig(Signal::SIGKILL)?;
            own.enter()?;
            Ok(chdir(directory.as_c_str())?)
        };
        #[expect(
            unsafe_code,
            reason = "std has no safe way to enter a namespace between fork and exec"
        )]
        // SAFETY: the closure makes system calls only; it neither allocates nor locks.
        unsafe {
            command.pre_exec(enter)
        };
        Ok(())
    }

    /// Moves the calling thread (alone in its file system attributes) here.
    pub fn enter(&self) -> io::Result<()> {
        setns(&self.net, CloneFlags::CLONE_NEWNET)?;
        if let Some((mounts, name)) = &self.host {
            setns(name, CloneFlags::CLONE_NEWUTS)?;
            setns(mounts, CloneFlags::CLONE_NEWNS)?;
        }
        Ok(())
    }

    /// The descriptor of the network, to move an interface there.
    pub const fn net(&self) -> &File {
        &self.net
    }

    /// The inode that identifies the network.
    pub fn id(&self) -> io::Result<u64> {
        Ok(self.net.metadata()?.ino())
    }
}

/// The processes (not threads) that are in the network with this [`Namespace::id`].
pub fn processes_in(id: u64) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let inside = |pid: &i32| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns.ino() == id);
    pids.filter(inside).collect()
}

/// Whether namespaces and TUN devices can be made here; if not, why.
///
/// Without root, and where a user namespace is allowed, this program is run once more inside one, and this process
/// ends with that one's result: a namespace for users can only be entered while there is but one thread.
pub fn allow() -> Result<(), String> {
    let refused = match Namespace::host("probe", &[]) {
        Ok(namespace) => {
            let tun = namespace.run(|| super::net::tun("probe").map(drop));
            return tun.map_err(|error| format!("no TUN device: {error}"));
        }
        Err(error) => error,
    };
    if geteuid().is_root() || std::env::var_os(INSIDE).is_some() {
        return Err(refused.to_string());
    }
    let unshare = |program: &Path| {
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--net", "--mount", "--"])
            .arg(program)
            .env(INSIDE, "1");
        command
    };
    match unshare(Path::new("true")).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => return Err(format!("{refused}, and `unshare` cannot be run: {error}")),
    }
    let again =
        std::env::current_exe().and_then(|this| unshare(&this).args(std::env::args_os().skip(1)).status());
    let status = again.map_err(|error| error.to_string())?;
    std::process::exit(status.code().unwrap_or(1));
}

fn fresh<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
