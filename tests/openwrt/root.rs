//! A root directory such as OpenWrt has, as small as a package's scripts need it: busybox, the programs a test brings with
//! the libraries they are linked with, and stand-ins for what is OpenWrt's own.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::unistd::geteuid;
use tempfile::TempDir;

/// What of the base system is there before anything is installed.
const DIRECTORIES: &str = "bin dev etc/rc.d etc/init.d lib/upgrade/keep.d lib/functions proc tmp usr/bin usr/lib/opkg/info \
                           usr/lib/opkg/lists var/lock var/run";

pub(crate) struct Root {
    directory: TempDir,
}

impl Root {
    /// `None`, said on standard error, where busybox is missing or where the user may not change the root; a failure
    /// instead where `TRIBUTARY_LAB=required`.
    pub(crate) fn new() -> Option<Self> {
        let root = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let Some(busybox) = program("busybox") else {
            return missing("busybox is not installed");
        };
        for directory in DIRECTORIES.split_whitespace() {
            fs::create_dir_all(root.path(directory)).unwrap();
        }
        fs::set_permissions(root.directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        root.bring(&busybox, "bin/busybox");
        // Where `sh` is looked for before busybox's own words are there.
        symlink("busybox", root.path("bin/sh")).unwrap();
        root.write("etc/openwrt_release", "DISTRIB_ID='OpenWrt'\n");
        root.write(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/ash\nftp:*:55:55:ftp:/home/ftp:/bin/false\n",
        );
        root.write("etc/group", "root:x:0:\nftp:x:55:\n");
        root.write("etc/shadow", "root:::0:99999:7:::\n");
        root.write(
            "etc/opkg.conf",
            "dest root /\nlists_dir ext /usr/lib/opkg/lists\narch all 1\narch noarch 1\n",
        );
        for file in ["lib/functions.sh", "etc/rc.common"] {
            fs::copy(ours(file), root.path(file)).unwrap();
        }
        root.bring_opkg();
        // A device of its own, so that redirections to it are none to a file.
        let _ = Command::new("mknod")
            .args([root.path("dev/null").to_str().unwrap(), "c", "1", "3"])
            .status();
        let installed = root.run("/bin/busybox --install -s /bin");
        if !installed.status.success() {
            return missing(&format!(
                "the root cannot be changed: {}",
                text(&installed.stderr).trim()
            ));
        }
        Some(root)
    }

    fn bring_opkg(&self) {
        match program("opkg") {
            Some(opkg) => self.bring(&opkg, "usr/bin/opkg"),
            None => {
                fs::copy(ours("opkg"), self.path("usr/bin/opkg")).unwrap();
            }
        }
    }

    /// Copies a program of this machine to where it shall be, and the libraries it needs to where it looks for them.
    pub(crate) fn bring(&self, program: &Path, to: &str) {
        fs::copy(program, self.path(to)).unwrap();
        self.bring_libraries(program);
    }

    pub(crate) fn bring_libraries(&self, program: &Path) {
        let shown = Command::new("ldd").arg(program).output().unwrap();
        for library in text(&shown.stdout)
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            let place = self.path(library.trim_start_matches('/'));
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::copy(library, place).unwrap();
        }
    }

    /// Where a path of the root is.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.directory.path().join(inside.trim_start_matches('/'))
    }

    pub(crate) fn write(&self, inside: &str, content: &str) {
        fs::write(self.path(inside), content).unwrap();
    }

    pub(crate) fn read(&self, inside: &str) -> String {
        fs::read_to_string(self.path(inside)).unwrap_or_default()
    }

    pub(crate) fn has(&self, inside: &str) -> bool {
        self.path(inside).symlink_metadata().is_ok()
    }

    /// Runs a line of busybox's shell with this as the root.
    pub(crate) fn run(&self, line: &str) -> Output {
        let mut command = if geteuid().is_root() {
            let mut command = Command::new("chroot");
            command.arg(self.directory.path());
            command
        } else {
            let mut command = Command::new("unshare");
            command.arg("--map-root-user");
            command.arg(format!("--root={}", self.directory.path().display()));
            command
        };
        command
            .args(["/bin/busybox", "ash", "-c", line])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .output()
            .unwrap()
    }

    /// As [`run`](Self::run), which must succeed; what was said, on both streams.
    pub(crate) fn done(&self, line: &str) -> String {
        let output = self.run(line);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "`{line}`: {}\n{said}", output.status);
        said
    }

    /// What procd was told since it was last asked for.
    pub(crate) fn told(&self) -> Vec<String> {
        let told = self.read("tmp/procd").lines().map(str::to_owned).collect();
        let _ = fs::remove_file(self.path("tmp/procd"));
        told
    }
}

/// Where a program of this machine is, for links what they point to.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    places
        .map(|place| place.join(name))
        .find(|path| path.is_file())?
        .canonicalize()
        .ok()
}

fn ours(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/openwrt/files")
        .join(file)
}

fn missing<T>(why: &str) -> Option<T> {
    let required = std::env::var("TRIBUTARY_LAB").is_ok_and(|value| value == "required");
    assert!(!required, "TRIBUTARY_LAB=required, but {why}");
    say(&format!("skipped: {why}"));
    None
}

/// Past the test harness, which hides what tests print.
pub(crate) fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
