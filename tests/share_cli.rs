//! `tributary share`, `shared` and `get shared:NAME` as people and scripts meet them: two members, and a neighbour who sees
//! nothing of it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod lab;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use lab::{Finished, Lab, Peer, Process, SOON, Uplink, no_uplink, peers, uplink, wait_for};
use nix::sys::signal::Signal;
use ring::digest::{SHA256, digest};
use serde_json::Value;
use tributary::types::hex;

const LIMIT: Duration = Duration::from_secs(60);
/// Several pieces, the last one not whole.
const SIZE: usize = (7 << 19) + 321;

#[test]
fn what_cannot_be_offered_is_refused_with_what_to_do_instead() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("file"), "x").unwrap();
    fs::create_dir(home.path().join("dir")).unwrap();
    for (args, code, expected) in [
        (&["share"][..], 2, "<FILE>"),
        (&["share", "file", "--stop", "x"], 2, "--stop"),
        (&["share", "missing"], 6, "`missing`"),
        (&["share", "dir"], 2, "one file is offered at a time"),
        (&["share", "file"], 7, "start one with `tributary run`"),
        (&["share", "--stop", "x"], 7, "start one with `tributary run`"),
        (&["shared"], 7, "start one with `tributary run`"),
        (&["status", "--savings"], 7, "start one with `tributary run`"),
        (&["status", "--savings", "--watch"], 2, "--watch"),
    ] {
        let output = tributary(home.path(), args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
    }
}

#[test]
fn members_get_what_one_of_them_offers_and_a_neighbour_sees_nothing_of_it() {
    let Some(house) = House::new() else { return };
    let [ann, bob, eve] = ["ann", "bob", "eve"].map(|name| house.lab.at(name));
    let film = house.write("ann", "film.mkv", 1);
    let shared = run(ann, &["share", "film.mkv", "--json"]).ok();
    let done = shared.report("done").unwrap();
    assert_eq!(done["shared"]["name"], "film.mkv");
    assert_eq!(done["shared"]["sha256"], sha256(&film));
    assert_eq!(done["bytes"], SIZE);
    assert_eq!(
        done["path"],
        ann.directory().join("film.mkv").display().to_string()
    );

    let own = &files(ann)[0];
    assert_eq!(
        (&own["own"], &own["owner"]),
        (&true.into(), &"this device".into())
    );
    let seen = &files(bob)[0];
    assert_eq!((&seen["own"], &seen["owner"]), (&false.into(), &"ann".into()));
    for (field, value) in [
        ("name", "film.mkv".into()),
        ("sha256", sha256(&film).into()),
        ("bytes", SIZE.into()),
    ] {
        let value: Value = value;
        assert_eq!((&own[field], &seen[field]), (&value, &value));
    }
    let text = run(bob, &["shared"]).ok().stdout;
    assert!(text.contains("film.mkv\n  3.5 MiB, of ann\n  SHA-256 "), "{text}");
    assert!(
        run(eve, &["shared"])
            .ok()
            .stdout
            .contains("Nobody of the household")
    );
    fails(
        &run(eve, &["get", "shared:film.mkv"]),
        3,
        "nobody of the household offers `film.mkv`",
    );
    assert!(files(eve).is_empty());

    // By its name, by its digest, and by a peer that is there only for that.
    let got = run(bob, &["get", "shared:film.mkv", "--json"]).ok();
    assert!(fs::read(bob.directory().join("film.mkv")).unwrap() == film);
    let done = got.report("done").unwrap();
    assert_eq!(
        (&done["members"][0]["owner"], &done["members"][0]["bytes"]),
        (&"ann".into(), &SIZE.into())
    );
    assert_eq!((&done["saved"], &done["attested"]), (&0.into(), &Value::Null));
    let by_digest = format!("shared:{}", sha256(&film).to_uppercase());
    let told = run(bob, &["get", &by_digest, "-o", "again.mkv"]).ok();
    assert!(told.stdout.contains("3.5 MiB from ann"), "{}", told.stdout);
    assert!(fs::read(bob.directory().join("again.mkv")).unwrap() == film);

    fails(&run(ann, &["get", "shared:film.mkv"]), 3, "this device's own");
    fails(&run(bob, &["get", "shared:film"]), 3, "`tributary shared`");
    fails(
        &run(bob, &["get", "shared:film.mkv", "--no-pool"]),
        2,
        "--no-pool",
    );
    let other = "00".repeat(32);
    fails(
        &run(bob, &["get", "shared:film.mkv", "--sha256", &other]),
        5,
        &sha256(&film),
    );
}

#[test]
fn a_peer_without_a_daemon_gets_what_a_member_offers() {
    let Some(mut house) = House::new() else { return };
    let [ann, bob] = ["ann", "bob"].map(|name| house.lab.at(name));
    let film = house.write("ann", "film.mkv", 1);
    run(ann, &["share", "film.mkv"]).ok();
    house.daemons[1].signal(Signal::SIGTERM);
    // Until it has ended, it is the device.
    house.daemons[1].wait(SOON).ok();
    run(bob, &["get", "shared:film.mkv"]).ok();
    assert!(fs::read(bob.directory().join("film.mkv")).unwrap() == film);
}

#[test]
fn names_are_ones_own_choice_end_on_demand_and_outlast_a_restart() {
    let Some(mut house) = House::new() else { return };
    let (first, second) = (house.write("ann", "a.bin", 1), house.write("bob", "b.bin", 2));
    {
        let [ann, bob] = ["ann", "bob"].map(|name| house.lab.at(name));
        run(ann, &["share", "a.bin", "--name", "my film.mkv"]).ok();
        let told = run(bob, &["share", "b.bin", "--name", "my film.mkv"]).ok();
        assert!(
            told.stdout.contains("tributary get shared:'my film.mkv'"),
            "{}",
            told.stdout
        );
        fails(&run(bob, &["share", "b.bin", "--name", "x/y"]), 2, "--name 'y'");
        // The same name, and not the same content.
        let refused = run(bob, &["get", "shared:my film.mkv"]);
        fails(&refused, 8, &sha256(&first));
        fails(&refused, 8, &sha256(&second));
        fails(
            &run(ann, &["share", "--stop", "b.bin"]),
            8,
            "does not offer `b.bin`",
        );
        let ended = run(bob, &["share", "--stop", &sha256(&second)]).ok();
        assert!(
            ended.stdout.contains("my film.mkv is not offered any more"),
            "{}",
            ended.stdout
        );
        run(bob, &["get", "shared:my film.mkv"]).ok();
        assert!(fs::read(bob.directory().join("my film.mkv")).unwrap() == first);
    }
    house.restart(0);
    let [ann, bob] = ["ann", "bob"].map(|name| house.lab.at(name));
    wait_for("the offer after a restart", SOON, || files(bob).len() == 1);
    run(ann, &["share", "--stop", "my film.mkv"]).ok();
    assert!(files(bob).is_empty() && files(ann).is_empty());
    fails(
        &run(bob, &["get", "shared:my film.mkv", "-o", "c"]),
        3,
        "nobody of the household",
    );
}

#[test]
fn what_members_brought_is_said_and_totalled_and_sharing_can_be_switched_off() {
    let Some(house) = House::with(|| uplink(40.0, 10.0)) else {
        return;
    };
    let [ann, bob] = ["ann", "bob"].map(|name| house.lab.at(name));
    let origin = house.lab.origin("origin.lab");
    let get = |peer: &Peer, file: &str| run(peer, &["get", &origin.url("6MiB"), "-o", file]).ok().stdout;
    let first = get(ann, "first");
    assert!(!first.contains("WAN"), "{first}");
    let second = get(bob, "second");
    assert!(
        second.contains(" MiB from ann") && second.contains(" of WAN saved"),
        "{second}"
    );
    assert!(second.contains("as ann has it: members vouch for it"), "{second}");
    assert!(
        fs::read(ann.directory().join("first")).unwrap() == fs::read(bob.directory().join("second")).unwrap()
    );

    let told = run(bob, &["status", "--savings", "--json"]).ok().stdout;
    let savings: Value = serde_json::from_str(&told).unwrap();
    let saved = savings["from_members"].as_u64().unwrap();
    assert!(
        saved > 5 << 20 && savings["over_uplinks"].as_u64().unwrap() < 1 << 20,
        "{told}"
    );
    let text = run(ann, &["status", "--savings"]).ok().stdout;
    assert!(
        text.contains("To members: ") && !text.contains("To members: 0 B"),
        "{text}"
    );
    // What nobody asked to be listed is not.
    assert!(files(bob).is_empty() && files(ann).is_empty());

    house.write("ann", "film.mkv", 1);
    run(ann, &["share", "film.mkv"]).ok();
    ann.configure(&format!("{}[share]\nenabled = false\n", member()));
    house.daemons[0].signal(Signal::SIGHUP);
    wait_for("nothing is offered", SOON, || files(bob).is_empty());
    fails(&run(ann, &["share", "film.mkv"]), 8, "[share] enabled = false");
    ann.configure(&member());
    house.daemons[0].signal(Signal::SIGHUP);
    wait_for("it is offered again", SOON, || files(bob).len() == 1);
}

#[test]
fn a_file_that_is_edited_is_had_by_nobody_any_more() {
    let Some(house) = House::new() else { return };
    let [ann, bob] = ["ann", "bob"].map(|name| house.lab.at(name));
    let mut film = house.write("ann", "film.mkv", 1);
    run(ann, &["share", "film.mkv"]).ok();
    film[SIZE / 2] ^= 1;
    fs::write(ann.directory().join("film.mkv"), &film).unwrap();
    let mut get = bob.start("get", bob.tributary(&["get", "shared:film.mkv"]));
    wait_for("it is not offered any more", SOON, || files(bob).is_empty());
    // Another member could have it still: that is waited for.
    get.signal(Signal::SIGINT);
    assert_eq!(get.wait(SOON).status.code(), Some(130));
    assert!(!bob.directory().join("film.mkv").exists());
    run(ann, &["share", "film.mkv"]).ok();
    run(bob, &["get", "shared:film.mkv"]).ok();
    assert!(fs::read(bob.directory().join("film.mkv")).unwrap() == film);
}

#[test]
fn what_is_stopped_while_it_is_read_is_not_offered() {
    let Some(house) = House::new() else { return };
    let ann = house.lab.at("ann");
    // Sparse: reading it all would take a minute.
    let big = fs::File::create(ann.directory().join("big")).unwrap();
    big.set_len(60 << 30).unwrap();
    let mut share = ann.start("share", ann.tributary(&["share", "big", "--json"]));
    let total = format!("\"total\":{}", 60_u64 << 30);
    wait_for("progress", SOON, || share.stdout().contains(&total));
    share.signal(Signal::SIGINT);
    let finished = share.wait(SOON);
    assert_eq!(finished.status.code(), Some(130), "{}", finished.stderr);
    assert!(files(ann).is_empty());
}

/// Two members, and a neighbour of theirs.
struct House {
    lab: Lab,
    daemons: Vec<Process>,
}

impl House {
    #[track_caller]
    fn new() -> Option<Self> {
        Self::with(no_uplink)
    }

    #[track_caller]
    fn with<U: Into<Vec<Uplink>>>(uplinks: impl Fn() -> U) -> Option<Self> {
        let lab = Lab::beside()?;
        let lab = ["ann", "bob", "eve"]
            .into_iter()
            .fold(lab, |lab, name| lab.peer(name, uplinks()));
        for name in ["ann", "bob"] {
            lab.at(name).configure(&member());
        }
        let daemons = lab.peers().iter().map(|peer| peer.spawn_daemon(&[])).collect();
        let house = Self { lab, daemons };
        house.meet();
        Some(house)
    }

    #[track_caller]
    fn meet(&self) {
        let member = |status: &Value, name: &str| {
            let peers = status["peers"].as_array().cloned().unwrap_or_default();
            peers.iter().any(|p| p["name"] == name && p["tier"] == "member")
        };
        for (of, other) in [("ann", "bob"), ("bob", "ann")] {
            let met = |status: &Value| peers(status) == 2 && member(status, other);
            self.lab.at(of).wait_status("the other member", SOON, met);
        }
    }

    /// A daemon ends in order and comes back.
    #[track_caller]
    fn restart(&mut self, number: usize) {
        self.daemons[number].signal(Signal::SIGTERM);
        self.daemons[number].wait(SOON).ok();
        self.daemons[number] = self.lab.peers()[number].spawn_daemon(&[]);
        self.meet();
    }

    /// A file of that device's; what is in it.
    #[track_caller]
    fn write(&self, of: &str, name: &str, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        };
        let bytes: Vec<u8> = (0..SIZE).map(next).collect();
        fs::write(self.lab.at(of).directory().join(name), &bytes).unwrap();
        bytes
    }
}

/// A member's configuration.
fn member() -> String {
    "[trust]\npassphrase = \"correct horse battery staple\"\n[egress]\nallow = [\"203.0.113.0/24\"]\n".into()
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// What a device says that is offered.
#[track_caller]
fn files(peer: &Peer) -> Vec<Value> {
    let told = run(peer, &["shared", "--json"]).ok();
    let all: Value = serde_json::from_str(&told.stdout).unwrap();
    all["files"].as_array().unwrap().clone()
}

#[track_caller]
fn run(peer: &Peer, arguments: &[&str]) -> Finished {
    peer.start("share", peer.tributary(arguments)).wait(LIMIT)
}

#[track_caller]
fn fails(finished: &Finished, code: i32, why: &str) {
    assert_eq!(finished.status.code(), Some(code), "{}", finished.stderr);
    assert!(
        finished.stderr.contains(why),
        "`{why}` is missing in:\n{}",
        finished.stderr
    );
}

fn tributary(home: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tributary"));
    command.args(args).current_dir(home).env("HOME", home);
    command
        .env("TRIBUTARY_STATE_DIR", home.join("state"))
        .env("XDG_CONFIG_HOME", home)
        .env_remove("TRIBUTARY_SOCKET");
    command.output().unwrap()
}
