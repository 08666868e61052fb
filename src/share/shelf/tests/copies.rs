//! Copies that are served when the user's own file is gone.

use super::*;

#[test]
fn a_copy_is_served_when_the_users_file_is_gone_also_after_a_restart() {
    for gone_while_running in [true, false] {
        let device = Device::new();
        let shelf = device.shelf_with(caching());
        let held = shelf.keep(device.file("film", b"content")).unwrap();
        let of = held.content().subjects[0];
        shelf.copy(Arc::clone(&held), &|| false);
        assert!(held.has_copy());
        shelf.copy(Arc::clone(&held), &|| false);
        assert!(held.has_copy(), "there is one");
        if gone_while_running {
            fs::remove_file(device.path("film")).unwrap();
            assert_eq!(read(&held).unwrap(), b"content");
            shelf.look();
        }
        drop((shelf, held));
        // Gone or edited: both are the copy's case.
        if !gone_while_running {
            edit(&device.path("film"), b"CONTENT", false);
        }
        let shelf = device.shelf_with(caching());
        assert_eq!(read(&shelf.find(of).unwrap()).unwrap(), b"content");
        // The owner wants none any more.
        shelf.configure(Config::default());
        shelf.look();
        assert!(shelf.find(of).is_none() && device.records().is_empty());
        assert_eq!(fs::read_dir(device.state().join("cache")).unwrap().count(), 0);
    }
}

#[test]
fn sec_e5_copies_are_made_only_where_the_owner_says_so_and_the_least_recently_served_one_goes() {
    let device = Device::new();
    let shelf = device.shelf();
    let kept = |name: &str, shelf: &Shelf| shelf.keep(device.file(name, &[1; 400 << 10])).unwrap();
    let held = kept("a", &shelf);
    shelf.copy(Arc::clone(&held), &|| false);
    assert!(!held.has_copy() && !device.state().join("cache").exists());
    drop(shelf);
    let shelf = device.shelf_with(caching());
    let all = ["a", "b", "c"].map(|name| kept(name, &shelf));
    let copies = || all.each_ref().map(|held| held.has_copy());
    let offered = shelf.keep(device.offer("offered", b"content")).unwrap();
    shelf.copy(Arc::clone(&offered), &|| false);
    assert!(!offered.has_copy(), "that is its owner's to keep");
    for (held, days) in all[..2].iter().zip([10, 9]) {
        shelf.copy(Arc::clone(held), &|| false);
        let copy = File::open(device.state().join("cache").join(held.id())).unwrap();
        copy.set_modified(SystemTime::now() - Duration::from_secs(days * 24 * 3600))
            .unwrap();
    }
    assert_eq!(copies(), [true, true, false]);
    shelf.served(all[0].content().subjects[0], 5);
    shelf.look();
    shelf.copy(Arc::clone(&all[2]), &|| false);
    assert!(all[2].has_copy());
    assert_eq!(copies(), [true, false, true], "the first was served since");
    assert_eq!(
        read(&all[1]).unwrap().len(),
        400 << 10,
        "the user's is still there"
    );
    assert_eq!(shelf.savings().totals().served, 5);
    shelf.configure(Config {
        cache_age: Duration::ZERO,
        ..caching()
    });
    let copy = File::open(device.state().join("cache").join(all[2].id())).unwrap();
    copy.set_modified(SystemTime::now() - Duration::from_secs(3600))
        .unwrap();
    shelf.look();
    assert!(!all[2].has_copy());
}

#[test]
fn sec_e6_a_damaged_copy_is_not_opened_when_its_length_is_wrong_and_goes_with_its_content() {
    let device = Device::new();
    let shelf = device.shelf_with(caching());
    let held = shelf.keep(device.file("film", b"content")).unwrap();
    let of = held.content().subjects[0];
    shelf.copy(Arc::clone(&held), &|| false);
    assert!(held.has_copy());
    let copy = device.state().join("cache").join(held.id());
    fs::remove_file(device.path("film")).unwrap();
    fs::write(&copy, b"conTent").unwrap();
    let leaf = held.leaf(of, 0).unwrap().hash;
    assert_ne!(
        *blake3::hash(&read(&held).unwrap()).as_bytes(),
        leaf,
        "a reader sees it"
    );
    let gone = shelf.remove(of);
    shelf.forget(&gone);
    assert!(!copy.exists());
    let held = shelf.keep(device.file("film", b"content")).unwrap();
    shelf.copy(Arc::clone(&held), &|| false);
    assert!(held.has_copy());
    fs::remove_file(device.path("film")).unwrap();
    fs::write(&copy, b"cont").unwrap();
    assert!(read(&held).is_err());
}

#[test]
fn sec_e5_no_copy_is_made_that_would_fill_the_disk() {
    let device = Device::new();
    let state = StateDir::open(&device.state()).unwrap();
    let shelf = Shelf::with_floor(&state, caching(), |_| u64::MAX);
    let held = shelf.keep(device.file("film", b"content")).unwrap();
    shelf.copy(Arc::clone(&held), &|| false);
    assert!(!held.has_copy());
    assert_eq!(fs::read_dir(device.state().join("cache")).unwrap().count(), 0);
    assert_eq!(read(&held).unwrap(), b"content");
}
