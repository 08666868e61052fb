//! A holder that fails: the file is right, and what it would have brought comes from elsewhere at once.

use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

use super::lab::{Lab, figure, wait_for};
use super::*;

/// What a holder's failing may cost before the lines bring the rest.
const TAKEN_OVER: Duration = Duration::from_secs(4);

/// Ann has it on her disk; bob gets it from there, over a LAN slow enough that something can happen meanwhile,
/// and faster than the lines.
fn reading(what: &str, happens: impl Fn(&Lab, &mut [Process])) {
    reading_from(what, MEMBER, happens);
}

/// The same with a holder of that configuration.
fn reading_from(what: &str, holder: &str, happens: impl Fn(&Lab, &mut [Process])) {
    let Some(lab) = Lab::new() else { return };
    let lab = household(lab, &["ann", "bob"], 20.0);
    lab.at("ann").configure(holder);
    let slow = lab.limit_lan_ports(60);
    let origin = lab.origin("origin.lab");
    let mut daemons = members(&lab, &["ann", "bob"]);
    let (ann, bob) = (lab.at("ann"), lab.at("bob"));
    right(
        ann,
        &origin,
        "48MiB",
        "file",
        &mut get(ann, &origin, "48MiB", "file"),
    );
    let mut reader = get(bob, &origin, "48MiB", "file");
    if slow {
        wait_for("a part of it", SOON, || {
            reader
                .report("progress")
                .is_some_and(|p| p["done"].as_u64() > Some(8 * MIB))
        });
    }
    let before = lab.carried().down;
    let since = Instant::now();
    happens(&lab, &mut daemons);
    wait_for("bytes over a line", Duration::from_secs(20), || {
        lab.carried().down - before > MIB / 4 || !reader.running()
    });
    let took = since.elapsed();
    let done = right(bob, &origin, "48MiB", "file", &mut reader);
    figure(format_args!(
        "household: {what}: the lines took over {:.1} s later; {:.1} of 48 MiB came from the member",
        took.as_secs_f64(),
        from_members(&done) as f64 / MIB as f64
    ));
    assert!(took <= TAKEN_OVER, "{took:?}");
}

#[test]
fn a_holder_that_is_killed_is_replaced_by_the_lines() {
    reading("a holder killed", |_, daemons| daemons[0].kill());
}

#[test]
fn a_holder_that_is_stopped_is_replaced_by_the_lines() {
    reading("a holder stopped", |_, daemons| {
        daemons[0].signal(Signal::SIGSTOP)
    });
}

#[test]
fn flt_26_a_file_that_is_edited_under_its_holder_is_not_served_any_more() {
    reading("a file edited in its holder", |lab, _| {
        let path = lab.at("ann").directory().join("file");
        let mut bytes = fs::read(&path).unwrap();
        for at in (0..bytes.len()).step_by(100_000) {
            bytes[at] ^= 1;
        }
        fs::write(&path, bytes).unwrap();
    });
}

#[test]
fn a_copy_that_is_evicted_while_somebody_reads_it_is_replaced_by_the_lines() {
    let keeps_copies = format!("{MEMBER}[share]\ncache = \"1 GiB\"\n");
    reading_from("a copy evicted under its reader", &keeps_copies, |lab, _| {
        let ann = lab.at("ann").directory();
        let copies = || {
            let files = fs::read_dir(ann.join("state/cache")).into_iter().flatten();
            let files = files.flatten().map(|entry| entry.path());
            files
                .filter(|path| path.extension().is_none())
                .collect::<Vec<_>>()
        };
        wait_for("a copy", SOON, || !copies().is_empty());
        fs::remove_file(ann.join("file")).unwrap();
        for copy in copies() {
            fs::remove_file(copy).unwrap();
        }
    });
}

/// What `tributary get` ends with where the file cannot be written.
const CANNOT_WRITE: i32 = 6;

#[test]
fn a_holder_whose_disk_is_full_serves_what_it_has_and_begins_nothing_that_does_not_fit() {
    let Some(lab) = Lab::new() else { return };
    let lab = household(lab, &["ann", "bob"], 20.0);
    let origin = lab.origin("origin.lab");
    let _daemons = members(&lab, &["ann", "bob"]);
    let (ann, bob) = (lab.at("ann"), lab.at("bob"));
    let small = ann.directory().join("small");
    fs::create_dir(&small).unwrap();
    // Seen by Ann's programs alone.
    ann.inside(|| {
        let (tmpfs, size) = (Some("tmpfs"), Some("size=40m"));
        Ok(mount(tmpfs, &small, tmpfs, MsFlags::empty(), size)?)
    });
    get(ann, &origin, "32MiB", "small/file").wait(LIMIT).ok();
    let filled = ann.inside(|| {
        let mut filler = fs::File::create(small.join("filler"))?;
        let mut filled = 0;
        loop {
            match filler.write(&[1; 4096]) {
                Ok(n) => filled += n as u64,
                Err(full) if full.kind() == ErrorKind::StorageFull => return Ok(filled),
                Err(other) => return Err(other),
            }
        }
    });
    assert!(filled > 0 && filled < 9 * MIB, "{filled}");

    let before = lab.carried().down;
    let done = right(
        bob,
        &origin,
        "32MiB",
        "file",
        &mut get(bob, &origin, "32MiB", "file"),
    );
    let over_lines = lab.carried().down - before;
    assert!(from_members(&done) > 31 * MIB, "{done}");
    assert!(over_lines < 2 * MIB, "{over_lines}");

    let mut other = get(bob, &origin, "48MiB", "other");
    let refused = get(ann, &origin, "48MiB", "small/other").wait(LIMIT);
    assert_eq!(refused.status.code(), Some(CANNOT_WRITE), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("no space left on the disk"),
        "{}",
        refused.stderr
    );
    let took = right(bob, &origin, "48MiB", "other", &mut other)["elapsed"].as_f64();
    figure(format_args!(
        "household: a full disk: {:.1} of 32 MiB came from it, {:.2} MiB over the lines; 48 MiB beside who had no room took {:.1} s",
        from_members(&done) as f64 / MIB as f64,
        over_lines as f64 / MIB as f64,
        took.unwrap()
    ));
    // Both lines carry it in 10.7 s, one in 21 s: who was refused still lends.
    assert!(took.unwrap() < 18.0, "{took:?}");
}
