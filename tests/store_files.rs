//! Part files on a real file system: names, lock, links, the rename at the end.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use tempfile::TempDir;
use tributary::store::{
    Claim, Difference, FreshReason, Generation, OpenOptions, Part, Place, Resumed, StoreError, Validator,
    peek,
};

const TOTAL: u64 = 3 << 20;

/// A part in its place, in one process.
#[derive(Debug)]
struct PartFile {
    part: Part,
    place: Place,
}

impl PartFile {
    fn open(path: &Path, claim: &Claim, options: OpenOptions) -> Result<(Self, Resumed), StoreError> {
        let (place, files) = Place::open(path, claim, options)?;
        let (part, resumed) = Part::resume_or_create(files, claim)?;
        Ok((Self { part, place }, resumed))
    }

    fn finish(&self, expected: Option<[u8; 32]>) -> Result<PathBuf, StoreError> {
        self.part.seal(expected)?;
        self.place.publish()
    }
}

impl Deref for PartFile {
    type Target = Part;

    fn deref(&self) -> &Part {
        &self.part
    }
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("file.iso")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.0.path().join(format!("file.iso{suffix}"))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn open(&self, claim: &Claim) -> Result<(PartFile, Resumed), StoreError> {
        PartFile::open(&self.file(), claim, OpenOptions::default())
    }

    /// A part with its first bytes, left behind.
    fn interrupted(&self, claim: &Claim) {
        let (part, _) = self.open(claim).unwrap();
        part.write_at(0, &[1; 5000]).unwrap();
        assert_eq!(part.sync().unwrap().durable, 5000);
    }
}

fn claim(tag: &str) -> Claim {
    let validator = Some(Validator::ETag(format!("\"{tag}\"")));
    Claim::new(
        "https://origin.example/file.iso",
        Some(Generation {
            total: TOTAL,
            validator,
        }),
        None,
    )
}

fn fill(part: &PartFile) {
    part.write_at(0, &vec![1; TOTAL as usize]).unwrap();
}

fn restart() -> OpenOptions {
    OpenOptions {
        restart: true,
        ..OpenOptions::default()
    }
}

fn overwrite() -> OpenOptions {
    OpenOptions {
        overwrite: true,
        ..OpenOptions::default()
    }
}

#[test]
fn a_finished_file_has_its_name_and_nothing_lies_beside_it() {
    let folder = Folder::new();
    let (part, resumed) = folder.open(&claim("a")).unwrap();
    assert_eq!(resumed, Resumed::Fresh(FreshReason::New));
    assert_eq!(folder.names(), ["file.iso.part", "file.iso.part.journal"]);
    fill(&part);
    assert!(part.sync().unwrap().lost.is_empty());
    assert!(!folder.file().exists());
    assert_eq!(part.finish(None).unwrap(), folder.file());
    assert_eq!(folder.names(), ["file.iso"]);
    assert_eq!(fs::read(folder.file()).unwrap(), vec![1; TOTAL as usize]);
}

#[test]
fn the_same_command_resumes_and_finishes() {
    let folder = Folder::new();
    folder.interrupted(&claim("a"));
    assert_eq!(peek(&folder.file()).unwrap(), Some(claim("a")));
    let (part, resumed) = folder.open(&claim("a")).unwrap();
    assert_eq!(
        resumed,
        Resumed::From {
            bytes: 5000,
            unchecked: 0
        }
    );
    fill(&part);
    part.finish(None).unwrap();
    assert_eq!(fs::read(folder.file()).unwrap(), vec![1; TOTAL as usize]);
    assert_eq!(peek(&folder.file()).unwrap(), None);
}

#[test]
fn http_30_one_file_has_one_writer() {
    let folder = Folder::new();
    let (part, _) = folder.open(&claim("a")).unwrap();
    let error = folder.open(&claim("a")).unwrap_err();
    assert!(matches!(error, StoreError::Busy { .. }));
    assert!(
        error
            .to_string()
            .contains("another tributary is writing this file"),
        "{error}"
    );
    fill(&part);
    part.finish(None).unwrap();
    // The lock's file is gone, its descriptor is not: a new download gets a lock of its own.
    let (_again, _) = PartFile::open(&folder.file(), &claim("a"), overwrite()).unwrap();
    let error = PartFile::open(&folder.file(), &claim("a"), overwrite()).unwrap_err();
    assert!(matches!(error, StoreError::Busy { .. }));
    drop(part);
}

#[test]
fn an_existing_file_is_only_replaced_when_asked() {
    let folder = Folder::new();
    fs::write(folder.file(), "precious").unwrap();
    assert!(matches!(folder.open(&claim("a")), Err(StoreError::Exists { .. })));
    assert_eq!(folder.names(), ["file.iso"]);
    let (part, _) = PartFile::open(&folder.file(), &claim("a"), overwrite()).unwrap();
    fill(&part);
    assert_eq!(fs::read(folder.file()).unwrap(), b"precious");
    part.finish(None).unwrap();
    assert_eq!(fs::metadata(folder.file()).unwrap().len(), TOTAL);
}

#[test]
fn a_file_that_appears_meanwhile_is_not_replaced_and_the_part_stays() {
    let folder = Folder::new();
    let (part, _) = folder.open(&claim("a")).unwrap();
    fill(&part);
    fs::write(folder.file(), "precious").unwrap();
    assert!(matches!(part.finish(None), Err(StoreError::Exists { .. })));
    drop(part);
    assert_eq!(fs::read(folder.file()).unwrap(), b"precious");
    let (part, resumed) = PartFile::open(&folder.file(), &claim("a"), overwrite()).unwrap();
    assert_eq!(
        resumed,
        Resumed::From {
            bytes: TOTAL,
            unchecked: 0
        }
    );
    part.finish(None).unwrap();
    assert_eq!(folder.names(), ["file.iso"]);
}

#[test]
fn http_8_a_restart_keeps_the_old_part_until_the_new_one_is_complete() {
    let folder = Folder::new();
    folder.interrupted(&claim("old"));
    let Err(StoreError::Foreign { difference, .. }) = folder.open(&claim("new")) else {
        panic!("continued another generation");
    };
    assert_eq!(difference, Difference::Validator);
    let (part, resumed) = PartFile::open(&folder.file(), &claim("new"), restart()).unwrap();
    assert_eq!(resumed, Resumed::Fresh(FreshReason::New));
    part.write_at(0, &[2; 100]).unwrap();
    assert_eq!(part.sync().unwrap().durable, 100);
    assert!(matches!(folder.open(&claim("old")), Err(StoreError::Busy { .. })));
    drop(part);
    assert_eq!(peek(&folder.file()).unwrap(), Some(claim("new")));

    // Either can be continued, whichever the server has then.
    let (part, resumed) = folder.open(&claim("old")).unwrap();
    assert_eq!(
        resumed,
        Resumed::From {
            bytes: 5000,
            unchecked: 0
        }
    );
    drop(part);
    let (part, resumed) = folder.open(&claim("new")).unwrap();
    assert_eq!(
        resumed,
        Resumed::From {
            bytes: 100,
            unchecked: 0
        }
    );
    drop(part);

    // A third generation takes the second one's place, not the first one's.
    let (part, resumed) = PartFile::open(&folder.file(), &claim("newer"), restart()).unwrap();
    assert_eq!(resumed, Resumed::Fresh(FreshReason::New));
    assert_eq!(fs::metadata(folder.beside(".part")).unwrap().len(), 5000);
    fill(&part);
    part.finish(None).unwrap();
    assert_eq!(folder.names(), ["file.iso"]);
    assert_eq!(fs::read(folder.file()).unwrap(), vec![1; TOTAL as usize]);
}

#[test]
fn a_wrong_checksum_is_told_and_the_part_can_be_discarded() {
    let folder = Folder::new();
    let (part, _) = folder.open(&claim("a")).unwrap();
    fill(&part);
    let error = part.finish(Some([0xab; 32])).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("expected SHA-256 {}", "ab".repeat(32))),
        "{error}"
    );
    assert!(!folder.file().exists());
    part.place.discard();
    assert!(folder.names().is_empty(), "{:?}", folder.names());
}

#[test]
fn an_unfinished_file_is_not_published() {
    let folder = Folder::new();
    let (part, _) = folder.open(&claim("a")).unwrap();
    part.write_at(0, &[1; 10]).unwrap();
    assert!(matches!(part.finish(None), Err(StoreError::Incomplete { missing }) if missing == TOTAL - 10));
    assert!(!folder.file().exists());
    fill(&part);
    part.finish(None).unwrap();
}

#[test]
fn sec_c1_links_are_not_followed() {
    let target = Folder::new();
    let victim = target.0.path().join("victim");
    for suffix in [".part", ".part.journal"] {
        let folder = Folder::new();
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, folder.beside(suffix)).unwrap();
        let error = folder.open(&claim("a")).unwrap_err();
        assert!(
            matches!(error, StoreError::Unsafe { .. } | StoreError::Foreign { .. }),
            "{error}"
        );
        fs::remove_file(folder.beside(suffix)).unwrap();

        fs::hard_link(&victim, folder.beside(".part.journal")).unwrap();
        let error = folder.open(&claim("a")).unwrap_err();
        assert!(matches!(error, StoreError::Unsafe { .. }), "{error}");
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }
    let folder = Folder::new();
    fs::write(folder.beside(".part.journal"), "").unwrap();
    symlink(&victim, folder.beside(".part")).unwrap();
    assert!(matches!(folder.open(&claim("a")), Err(StoreError::Unsafe { .. })));
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
}

#[test]
fn another_programs_part_is_left_alone() {
    let folder = Folder::new();
    fs::write(folder.beside(".part"), "a browser's").unwrap();
    for options in [OpenOptions::default(), restart()] {
        let Err(StoreError::Foreign { difference, .. }) =
            PartFile::open(&folder.file(), &claim("a"), options)
        else {
            panic!("took over a file of another program");
        };
        assert_eq!(difference, Difference::NotOurs);
        assert_eq!(folder.names(), ["file.iso.part"]);
        assert_eq!(fs::read(folder.beside(".part")).unwrap(), b"a browser's");
    }
}

#[test]
fn http_25_space_is_reserved_without_changing_the_length() {
    let folder = Folder::new();
    let (_part, _) = folder.open(&claim("a")).unwrap();
    let metadata = fs::metadata(folder.beside(".part")).unwrap();
    assert_eq!(metadata.len(), 0);
    let held = metadata.blocks() * 512;
    assert!(held == 0 || held >= TOTAL, "reserved {held}");
}

#[test]
fn a_bare_file_name_and_a_missing_folder_are_understood() {
    let folder = Folder::new();
    let missing = folder.0.path().join("missing/file.iso");
    let error = PartFile::open(&missing, &claim("a"), OpenOptions::default()).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(PartFile::open(Path::new("/"), &claim("a"), OpenOptions::default()).is_err());
    assert_eq!(peek(Path::new("surely-not-there.iso")).unwrap(), None);
}

#[test]
fn bytes_of_unknown_length_become_a_file() {
    let folder = Folder::new();
    let (part, _) = folder.open(&Claim::new("u", None, None)).unwrap();
    part.write_at(0, b"hello ").unwrap();
    part.write_at(6, b"world").unwrap();
    part.finish(None).unwrap();
    assert_eq!(fs::read(folder.file()).unwrap(), b"hello world");
}

/// How fast the store takes bytes from several connections. Run it by hand:
/// `cargo test --release --test store_files -- --ignored --nocapture`.
#[test]
#[ignore = "measures; nothing to assert"]
fn throughput() {
    const SIZE: u64 = 1 << 30;
    const WRITE: u64 = 64 << 10;
    const CONNECTIONS: u64 = 4;
    for digest in [false, true] {
        let folder = Folder::new();
        let generation = Generation {
            total: SIZE,
            validator: Some(Validator::ETag("\"a\"".to_owned())),
        };
        let (part, _) = folder.open(&Claim::new("u", Some(generation), None)).unwrap();
        let part = Arc::new(part);
        let start = Instant::now();
        let cpu = cpu_time();
        let writers: Vec<_> = (0..CONNECTIONS)
            .map(|n| {
                let part = Arc::clone(&part);
                thread::spawn(move || {
                    let block = vec![n as u8; WRITE as usize];
                    let share = SIZE / CONNECTIONS;
                    for at in (n * share..(n + 1) * share).step_by(WRITE as usize) {
                        part.write_at(at, &block).unwrap();
                        if n == 0 && part.sync_due(Instant::now()) {
                            assert!(part.sync().unwrap().lost.is_empty());
                            if digest {
                                part.advance_digest().unwrap();
                            }
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        let wrong = digest.then_some([0; 32]);
        assert_eq!(part.finish(wrong).is_err(), digest);
        let wall = start.elapsed().as_secs_f64();
        let cpu = cpu_time() - cpu;
        let mib = (SIZE >> 20) as f64;
        println!(
            "sha256 {digest}: {:.0} MiB/s, {:.2} CPU s/GiB = {:.0} MiB/s on one core",
            mib / wall,
            cpu,
            mib / cpu
        );
    }
}

/// User and system time of this process, in seconds.
fn cpu_time() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}
