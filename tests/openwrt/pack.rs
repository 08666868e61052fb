//! Packing with the project's own scripts, and looking into what they packed with this machine's tar.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::root::text;

/// The target whose package this machine can install: that of its own processor.
const TARGET: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-musl"
} else {
    "x86_64-unknown-linux-musl"
};
/// An arbitrary day.
const EPOCH: &str = "1767225600";

/// The dev-built binary without what only a debugger reads.
pub(crate) fn stripped() -> &'static Path {
    static STRIPPED: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = STRIPPED.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tributary");
        let built = env!("CARGO_BIN_EXE_tributary");
        let done = Command::new("strip").arg("-o").arg(&path).arg(built).status();
        if !done.is_ok_and(|status| status.success()) {
            fs::copy(built, &path).unwrap();
        }
        (directory, path)
    });
    path
}

/// The package, packed once for all tests.
pub(crate) fn ipk() -> &'static Path {
    static PACKED: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = PACKED.get_or_init(|| {
        let dist = tempfile::tempdir().unwrap();
        let path = pack("ipk", dist.path(), stripped());
        (dist, path)
    });
    path
}

/// The self-installing archive, packed once for all tests.
pub(crate) fn archive() -> &'static Path {
    static PACKED: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = PACKED.get_or_init(|| {
        let dist = tempfile::tempdir().unwrap();
        let path = pack("tar", dist.path(), stripped());
        (dist, path)
    });
    path
}

/// The same package with a higher version.
pub(crate) fn newer() -> &'static Path {
    static PACKED: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    const PACK: &str = "cd \"$1\" && tar -xzf \"$2\" && mkdir c && tar -xzf control.tar.gz -C c && \
                        sed -i 's/^\\(Version: .*\\)-1$/\\1-2/' c/control && tar -czf control.tar.gz -C c . && \
                        tar -czf newer.ipk ./debian-binary ./data.tar.gz ./control.tar.gz";
    let (_, path) = PACKED.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let done = Command::new("sh")
            .args(["-c", PACK, "sh"])
            .arg(directory.path())
            .arg(ipk())
            .status();
        assert!(done.unwrap().success());
        let path = directory.path().join("newer.ipk");
        (directory, path)
    });
    path
}

/// Runs `cross/ipk` or `cross/tar` on a binary; the package.
pub(crate) fn pack(what: &str, dist: &Path, binary: &Path) -> PathBuf {
    pack_for(TARGET, what, dist, binary)
}

/// Packs for another target than this machine's.
pub(crate) fn pack_for(target: &str, what: &str, dist: &Path, binary: &Path) -> PathBuf {
    static LICENCES: OnceLock<()> = OnceLock::new();
    LICENCES.get_or_init(|| {
        cross("licences", &[], dist, binary);
    });
    let said = cross(what, &[target], dist, binary);
    PathBuf::from(said.split(": ").next().unwrap())
}

fn cross(script: &str, arguments: &[&str], dist: &Path, binary: &Path) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cross").join(script);
    let output = Command::new(path)
        .args(arguments)
        .env("TRIBUTARY_DIST", dist)
        .env("TRIBUTARY_BINARY", binary)
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "cross/{script}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) mode: String,
    pub(crate) owner: String,
}

/// What `tar` lists of an archive.
pub(crate) fn members(archive: &[u8], how: &[&str]) -> Vec<Member> {
    let listed = tar(
        archive,
        &[how, &["--list", "--verbose", "--numeric-owner"]].concat(),
    );
    text(&listed)
        .lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let (mode, owner) = (words.next().unwrap(), words.next().unwrap());
            Member {
                name: words.last().unwrap().to_owned(),
                mode: mode.to_owned(),
                owner: owner.to_owned(),
            }
        })
        .collect()
}

/// The bytes of one member.
pub(crate) fn content(archive: &[u8], member: &str) -> Vec<u8> {
    tar(archive, &["-z", "--extract", "--to-stdout", member])
}

/// Unpacked.
pub(crate) fn gunzip(bytes: &[u8]) -> Vec<u8> {
    through("gzip", &["-dc"], bytes)
}

fn tar(archive: &[u8], arguments: &[&str]) -> Vec<u8> {
    through("tar", arguments, archive)
}

fn through(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, input).unwrap();
    let output = Command::new(program)
        .args(arguments)
        .stdin(fs::File::open(&file).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{program}: {}", text(&output.stderr));
    output.stdout
}
