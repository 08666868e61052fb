//! The shelf, across restarts and with files that do not stay what they were.

mod copies;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::time::Duration;

use proptest::prelude::*;

use crate::identity::DeviceKey;

use super::*;

/// A device's state directory, and a user's directory beside it.
struct Device {
    dir: tempfile::TempDir,
    key: DeviceKey,
}

impl Device {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            key: DeviceKey::ephemeral().unwrap(),
        }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The shelf as it is after a start.
    fn shelf_with(&self, config: Config) -> Shelf {
        // The disk that tests run on may be full.
        let shelf = Shelf::with_floor(&StateDir::open(&self.state()).unwrap(), config, |_| 0);
        shelf.look();
        shelf
    }

    fn shelf(&self) -> Shelf {
        self.shelf_with(Config::default())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of the user's, just downloaded.
    fn file(&self, name: &str, content: &[u8]) -> Keep {
        // Written again, it would be another file.
        if !fs::read(self.path(name)).is_ok_and(|there| there == content) {
            fs::write(self.path(name), content).unwrap();
        }
        let digest = *blake3::hash(content).as_bytes();
        let (total, url) = (content.len() as u64, *blake3::hash(name.as_bytes()).as_bytes());
        let subjects = vec![
            Subject::of_generation(&url, total, "\"v\""),
            Subject::of_sha256(&digest, total),
        ];
        let leaves = subjects.iter().map(|subject| {
            let mut leaves = Leaves::new(*subject, total);
            let entries: Vec<_> = (0..)
                .zip(content.chunks(PIECE as usize))
                .map(|(n, piece)| (n, *blake3::hash(piece).as_bytes()))
                .collect();
            leaves
                .add(&Leaves::sign(*subject, &entries, &self.key), &|_| false)
                .unwrap();
            leaves
        });
        Keep {
            topic: Topic {
                url: Some(url),
                sha256: Some(digest),
            },
            leaves: leaves.collect(),
            content: Content { subjects, total },
            file: Arc::new(File::open(self.path(name)).unwrap()),
            path: self.path(name),
            offer: None,
        }
    }

    fn offer(&self, name: &str, content: &[u8]) -> Keep {
        let mut keep = self.file(name, content);
        keep.topic.url = None;
        keep.content.subjects.remove(0);
        keep.offer = Some(name.into());
        keep
    }

    fn records(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.state().join("shared")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

fn caching() -> Config {
    Config {
        cache: ByteSize(1 << 20),
        ..Config::default()
    }
}

fn read(held: &Held) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; held.content().total as usize];
    held.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn subject(keep: &Keep) -> Subject {
    keep.content.subjects[0]
}

/// Other bytes of the same length and time: only a hash tells.
fn edit(path: &Path, content: &[u8], keep_time: bool) {
    let file = File::options().write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(content, 0).unwrap();
    let modified = if keep_time {
        modified
    } else {
        modified + Duration::from_nanos(1)
    };
    file.set_modified(modified).unwrap();
}

#[test]
fn what_was_kept_is_served_with_its_leaves_also_after_a_restart() {
    let device = Device::new();
    let content = vec![7; PIECE as usize + 100];
    let keep = device.file("film", &content);
    let (topic, of) = (keep.topic, keep.content.clone());
    let shelf = device.shelf();
    let changes = shelf.changes();
    shelf.keep(keep).unwrap();
    assert!(changes.has_changed().unwrap());
    drop(shelf);
    let shelf = device.shelf();
    assert_eq!(shelf.all().len(), 1);
    for subject in &of.subjects {
        let held = shelf.find(*subject).unwrap();
        assert_eq!((held.topic(), held.content()), (topic, &of));
        assert!(read(&held).unwrap() == content);
        let last = held.leaf(*subject, 1).unwrap();
        assert_eq!(last.hash, *blake3::hash(&content[PIECE as usize..]).as_bytes());
        assert_eq!(last.witness, device.key.id());
        let mut passed_on = Leaves::new(*subject, of.total);
        for signed in held.leaves(*subject).unwrap().batches() {
            passed_on.add(signed, &|_| false).unwrap();
        }
        assert_eq!(passed_on.leaf(1), Some(last));
    }
    let held = shelf.find(of.subjects[0]).unwrap();
    assert!(held.read_at(&mut [0; 2], of.total - 1).is_err(), "beyond its end");
    assert_eq!(held.leaf(of.subjects[0], 2), None);
    let mode = fs::metadata(&device.records()[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_file_that_is_moved_or_linked_is_served_on_and_one_that_is_not_at_its_path_any_more_is_forgotten_at_the_next_start()
 {
    let device = Device::new();
    let shelf = device.shelf();
    let (moved, linked) = (device.file("moved", b"one"), device.file("linked", b"two"));
    let (of_moved, of_linked) = (subject(&moved), subject(&linked));
    shelf.keep(moved).unwrap();
    shelf.keep(linked).unwrap();
    fs::rename(device.path("moved"), device.path("elsewhere")).unwrap();
    fs::hard_link(device.path("linked"), device.path("second name")).unwrap();
    shelf.look();
    assert_eq!(read(&shelf.find(of_moved).unwrap()).unwrap(), b"one");
    drop(shelf);
    let shelf = device.shelf();
    assert!(shelf.find(of_moved).is_none());
    assert_eq!(read(&shelf.find(of_linked).unwrap()).unwrap(), b"two");
    assert_eq!(device.records().len(), 1, "nothing is left of it");
    fs::remove_file(device.path("linked")).unwrap();
    shelf.look();
    assert!(shelf.find(of_linked).is_some(), "its other name holds it");
    drop(shelf);
    assert!(device.shelf().all().is_empty());
}

#[test]
fn flt_26_an_edited_file_of_the_same_size_is_let_go_of_at_once_and_at_the_next_start() {
    for running in [true, false] {
        let device = Device::new();
        let shelf = device.shelf();
        let held = shelf.keep(device.file("film", b"content")).unwrap();
        let of = held.content().subjects[0];
        if running {
            edit(&device.path("film"), b"CONTENT", false);
            assert_eq!(read(&held).unwrap_err().kind(), io::ErrorKind::NotFound);
            shelf.look();
            assert!(shelf.find(of).is_none());
        } else {
            drop((shelf, held));
            edit(&device.path("film"), b"CONTENT", false);
            assert!(device.shelf().find(of).is_none());
        }
        assert!(device.records().is_empty());
    }
}

#[test]
fn sec_e6_what_was_edited_with_its_time_set_back_is_told_by_its_leaf() {
    let device = Device::new();
    let shelf = device.shelf();
    let held = shelf.keep(device.file("film", b"content")).unwrap();
    let of = held.content().subjects[0];
    edit(&device.path("film"), b"CONTENT", true);
    let leaf = held.leaf(of, 0).unwrap().hash;
    assert_ne!(*blake3::hash(&read(&held).unwrap()).as_bytes(), leaf);
    let gone = shelf.remove(of);
    assert!(shelf.find(of).is_none(), "at once");
    shelf.forget(&gone);
    assert!(device.records().is_empty());
    assert!(device.shelf().all().is_empty());
}

#[test]
fn sec_b8_a_path_that_became_a_link_or_another_kind_of_file_is_not_opened() {
    for swap in ["link", "directory", "pipe", "other file"] {
        let device = Device::new();
        device.shelf().keep(device.file("film", b"content")).unwrap();
        let path = device.path("film");
        fs::rename(&path, device.path("real")).unwrap();
        match swap {
            "link" => symlink(device.path("real"), &path).unwrap(),
            "directory" => fs::create_dir(&path).unwrap(),
            "pipe" => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap(),
            _ => fs::write(&path, b"content").unwrap(),
        }
        assert!(device.shelf().all().is_empty(), "{swap}");
    }
}

#[test]
fn a_deleted_files_space_is_free_after_a_look() {
    let device = Device::new();
    let shelf = device.shelf();
    let keep = device.file("film", b"content");
    let file = Arc::downgrade(&keep.file);
    let held = shelf.keep(keep).unwrap();
    assert!(file.upgrade().is_some());
    fs::remove_file(device.path("film")).unwrap();
    shelf.look();
    assert!(
        file.upgrade().is_none(),
        "it is open although somebody still knows of it"
    );
    assert!(!held.is_there() && shelf.all().is_empty());
}

#[test]
fn sec_b8_what_peers_say_becomes_no_path_and_names_in_the_state_directory_are_hashes() {
    let device = Device::new();
    let shelf = device.shelf_with(caching());
    let hostile = Subject(*b"../../../../../../../../etc/shad");
    let mut keep = device.file("film", b"content");
    keep.leaves.clear();
    keep.content.subjects = vec![hostile, Subject([b'/'; 32])];
    keep.topic.url = Some([b'.'; 32]);
    let held = shelf.keep(keep).unwrap();
    shelf.copy(Arc::clone(&held), &|| false);
    assert!(held.has_copy());
    for dir in ["shared", "cache"] {
        let names: Vec<_> = fs::read_dir(device.state().join(dir))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 1);
        let name = names[0].to_str().unwrap();
        assert!(
            name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit()),
            "{name}"
        );
    }
    for name in [
        "",
        ".",
        "..",
        "a/b",
        "../x",
        "a\0b",
        "a\nb",
        &"x".repeat(MAX_NAME + 1),
    ] {
        assert!(!is_name(name), "{name:?}");
        let mut keep = device.offer("film", b"content");
        keep.offer = Some(name.into());
        assert!(matches!(shelf.keep(keep), Err(ShelfError::Name(_))));
    }
    assert!(is_name("Urlaub 2026.mkv") && is_name(".hidden") && is_name("…"));
}

#[test]
fn what_is_not_the_file_that_it_should_be_is_refused() {
    let device = Device::new();
    let shelf = device.shelf();
    let mut longer = device.file("a", b"content");
    longer.content.total += 1;
    let deleted = device.file("b", b"content");
    fs::remove_file(device.path("b")).unwrap();
    let mut directory = device.file("c", b"content");
    directory.file = Arc::new(File::open(device.dir.path()).unwrap());
    for keep in [longer, deleted, directory] {
        assert!(matches!(shelf.keep(keep), Err(ShelfError::Changed { .. })));
    }
    let mut nameless = device.file("d", b"content");
    nameless.topic = Topic::default();
    assert!(matches!(shelf.keep(nameless), Err(ShelfError::Nameless { .. })));
    let mut many = device.file("e", b"content");
    many.content.subjects = vec![Subject([0; 32]); MAX_SUBJECTS + 1];
    assert!(matches!(shelf.keep(many), Err(ShelfError::Nameless { .. })));
    assert!(shelf.all().is_empty() && device.records().is_empty());
}

#[test]
fn files_offered_by_hand_have_names_that_differ_and_stop_without_ending_what_a_download_brought() {
    let device = Device::new();
    let shelf = device.shelf();
    let downloaded = shelf.keep(device.file("film", b"content")).unwrap();
    shelf.keep(device.offer("film", b"content")).unwrap();
    let mut same_name = device.offer("other", b"other");
    same_name.offer = Some("film".into());
    assert!(matches!(shelf.keep(same_name), Err(ShelfError::Taken(_))));
    let mut renamed = device.offer("film", b"content");
    renamed.offer = Some("the film".into());
    let digest = renamed.topic.sha256.unwrap();
    shelf.keep(renamed).unwrap();
    drop(shelf);
    let shelf = device.shelf();
    let own = shelf.offered();
    assert_eq!(own.len(), 1);
    assert_eq!(
        (&own[0].name[..], own[0].sha256, own[0].total),
        ("the film", digest, 7)
    );
    assert_eq!(own[0].subject, Subject::of_sha256(&digest, 7));
    assert!(shelf.stop(&digest, "film").is_empty() && shelf.stop(&[0; 32], "the film").is_empty());
    let gone = shelf.stop(&digest, "the film");
    assert!(shelf.offered().is_empty());
    shelf.forget(&gone);
    drop(shelf);
    let shelf = device.shelf();
    assert!(shelf.offered().is_empty());
    assert!(shelf.find(downloaded.content().subjects[0]).is_some());
}

#[test]
fn what_is_put_there_again_before_it_was_forgotten_stays() {
    let device = Device::new();
    let shelf = device.shelf();
    let held = shelf.keep(device.offer("film", b"content")).unwrap();
    let gone = shelf.stop(&held.topic().sha256.unwrap(), "film");
    shelf.keep(device.offer("film", b"content")).unwrap();
    shelf.forget(&gone);
    assert_eq!(device.shelf().offered().len(), 1);
}

#[test]
fn the_shelf_is_bounded_and_what_was_used_least_recently_makes_room_before_what_was_offered_by_hand() {
    let device = Device::new();
    let shelf = device.shelf();
    let offered = shelf.keep(device.offer("offered", b"0")).unwrap();
    let first = shelf.keep(device.file("first", b"1")).unwrap();
    let second = shelf.keep(device.file("second", b"2")).unwrap();
    for n in 3..MAX_HELD {
        shelf.keep(device.file(&n.to_string(), b"content")).unwrap();
    }
    shelf.served(first.content().subjects[0], 1);
    let one_more = device.file("one more", b"content");
    shelf.keep(one_more).unwrap();
    assert_eq!(shelf.all().len(), MAX_HELD);
    assert_eq!(device.records().len(), MAX_HELD);
    for (held, there) in [(&offered, true), (&first, true), (&second, false)] {
        assert_eq!(shelf.find(held.content().subjects[0]).is_some(), there);
    }
    assert!(read(&second).is_err(), "it is closed");
    drop(shelf);
    assert_eq!(device.shelf().all().len(), MAX_HELD);
}

#[test]
fn leaves_in_memory_are_bounded() {
    let device = Device::new();
    let shelf = device.shelf();
    let half = MAX_LEAVES as u32 / 2;
    let large = |name: &str, pieces: u32| {
        let mut keep = device.offer(name, b"");
        // Sparse: it takes no space.
        let total = u64::from(pieces) * PIECE;
        File::options()
            .write(true)
            .open(&keep.path)
            .unwrap()
            .set_len(total)
            .unwrap();
        let subject = Subject::of_sha256(blake3::hash(name.as_bytes()).as_bytes(), total);
        let mut leaves = Leaves::new(subject, total);
        let entries: Vec<_> = (0..pieces).map(|n| (n, [1; 32])).collect();
        for entries in entries.chunks(256) {
            leaves
                .add(&Leaves::sign(subject, entries, &device.key), &|_| false)
                .unwrap();
        }
        keep.content = Content {
            subjects: vec![subject],
            total,
        };
        keep.leaves = vec![leaves];
        keep
    };
    for name in ["a", "b"] {
        shelf.keep(large(name, half)).unwrap();
    }
    assert_eq!(shelf.all().len(), 2);
    shelf.keep(large("c", 1)).unwrap();
    let names: Vec<_> = shelf.offered().into_iter().map(|own| own.name).collect();
    assert_eq!(names, ["b", "c"]);
    drop(shelf);
    assert_eq!(device.shelf().all().len(), 2);
}

#[test]
fn a_damaged_record_is_set_aside_and_the_others_are_there() {
    let device = Device::new();
    let shelf = device.shelf();
    let good = shelf.keep(device.file("good", b"good")).unwrap();
    let bad = shelf.keep(device.file("bad", b"bad")).unwrap();
    let record = device.state().join("shared").join(bad.id());
    let whole = fs::read(&record).unwrap();
    let of = (good.content().subjects[0], bad.content().subjects[0]);
    drop((shelf, good, bad));
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 4;
    let longer = [&whole[..], b"more"].concat();
    for damaged in [
        &whole[..whole.len() - 1],
        &whole[..3],
        b"",
        &flipped,
        &longer,
        b"garbage, and more of it",
    ] {
        fs::write(&record, damaged).unwrap();
        let shelf = device.shelf();
        assert!(shelf.find(of.0).is_some() && shelf.find(of.1).is_none());
        assert_eq!(fs::read(record.with_file_name("damaged")).unwrap(), damaged);
        assert!(!record.exists());
    }
    // Whole, but of another content: somebody renamed it.
    fs::write(record.with_file_name("0".repeat(32)), &whole).unwrap();
    fs::write(record.with_file_name("left.over.new"), b"x").unwrap();
    assert_eq!(device.shelf().all().len(), 1);
    assert_eq!(device.records().len(), 2, "the good one and the damaged one");
    fs::write(&record, &whole).unwrap();
    assert!(
        device.shelf().find(of.1).is_some(),
        "nothing was wrong with the file"
    );
}

#[test]
fn a_process_beside_the_daemon_shares_while_it_runs_and_leaves_nothing() {
    let device = Device::new();
    let daemon = StateDir::open(&device.state()).unwrap();
    let shelf = device.shelf_with(caching());
    let held = shelf.keep(device.file("film", b"content")).unwrap();
    shelf.copy(Arc::clone(&held), &|| false);
    assert!(!held.has_copy());
    shelf.look();
    shelf.finish();
    assert_eq!(read(&held).unwrap(), b"content");
    let names: Vec<_> = fs::read_dir(daemon.path("."))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["lock"]);
}

#[test]
fn a_state_directory_that_cannot_be_written_costs_only_the_next_start() {
    let device = Device::new();
    let shelf = device.shelf();
    fs::write(device.state().join("shared"), b"in the way").unwrap();
    let held = shelf.keep(device.file("film", b"content")).unwrap();
    assert_eq!(read(&held).unwrap(), b"content");
    drop((shelf, held));
    assert!(device.shelf().all().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_record_makes_the_shelf_panic(cut in 0usize..600, at in 0usize..600, with in any::<u8>(), right in any::<bool>()) {
        let device = Device::new();
        let shelf = device.shelf();
        let held = shelf.keep(device.offer("film", b"content")).unwrap();
        let record = device.state().join("shared").join(held.id());
        drop((shelf, held));
        let mut bytes = fs::read(&record).unwrap();
        bytes.truncate(bytes.len().saturating_sub(cut % 40));
        let at = 8 + at % (bytes.len() - 8);
        bytes[at] = with;
        if right {
            // What follows the checksum is then read for sure.
            let sum = crc32c::crc32c(&bytes[8..]).to_le_bytes();
            bytes[4..8].copy_from_slice(&sum);
        }
        fs::write(&record, &bytes).unwrap();
        for held in device.shelf().all() {
            prop_assert_eq!(held.content().total, 7);
        }
    }
}
