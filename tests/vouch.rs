//! Vouching as people do it, with real daemons: by token, by passphrase, by comparing a code; and putting out again.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

mod lab;

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lab::{Finished, Lab, Peer, Process, figure, installed, no_uplink, peers, uplink, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tributary::identity::DeviceKey;
use tributary::link::{Home, Lends, Link, LinkConfig, LinkEvent, Links};
use tributary::task::Tasks;
use tributary::trust::{Ends, Look, Sas, Trust, Words};
use tributary::types::{PeerId, sha256_from_hex};

/// Two members of one passphrase know that they are within this, and whoever is put out has lost its link.
const AT_ONCE: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(15);
/// What the command line gives where the daemon says no, and where there is none.
const REFUSED: Option<i32> = Some(8);
const NO_DAEMON: Option<i32> = Some(7);

/// Runs a command of the program to its end.
fn run(peer: &Peer, arguments: &[&str]) -> Finished {
    peer.run("trust", peer.tributary(arguments))
}

/// The same with something to read.
fn run_with(peer: &Peer, arguments: &[&str], input: &str) -> Finished {
    let file = peer.directory().join("input");
    fs::write(&file, input).unwrap();
    let program = peer.tributary(&[]).get_program().to_owned();
    // The lab gives its programs no input of their own.
    let mut command = peer.command("sh");
    command.args(["-c", "file=$1; shift; exec \"$@\" < \"$file\"", "sh"]);
    command.arg(&file).arg(program).args(arguments);
    peer.run("trust", command)
}

/// Everybody that a device knows of.
fn known(peer: &Peer) -> Vec<Value> {
    let Some(finished) = peer
        .start("peers", peer.tributary(&["peers", "--json"]))
        .try_wait(SOON)
    else {
        return Vec::new();
    };
    let all: Value = serde_json::from_str(&finished.stdout).unwrap_or_default();
    all["peers"].as_array().cloned().unwrap_or_default()
}

/// What one device is to another: `member`, `neighbour`, `blocked`, or nothing.
fn tier(of: &Peer, seen_by: &Peer) -> String {
    let known = known(seen_by);
    let one = known.iter().find(|known| known["name"] == of.name());
    one.map_or(String::new(), |one| one["tier"].as_str().unwrap().to_owned())
}

/// Waits until each of two is that to the other; how long it took.
#[track_caller]
fn wait_tiers(a: &Peer, b: &Peer, expected: &str, limit: Duration) -> Duration {
    let what = format!("{} and {} are {expected}", a.name(), b.name());
    wait_for(&what, limit, || tier(a, b) == expected && tier(b, a) == expected)
}

fn id(peer: &Peer) -> String {
    let status = peer.status().unwrap();
    status["device"]["id"].as_str().unwrap().to_owned()
}

/// A household of three without members, all linked.
fn three(lab: Lab) -> Lab {
    ["ann", "bob", "cat"]
        .into_iter()
        .fold(lab, |lab, name| lab.peer(name, no_uplink()))
}

#[track_caller]
fn start(lab: &Lab) -> Vec<Process> {
    let daemons = lab.peers().iter().map(|peer| peer.spawn_daemon(&[])).collect();
    for peer in lab.peers() {
        peer.wait_status("the others", SOON, |s| peers(s) == lab.peers().len() - 1);
    }
    daemons
}

/// A token of this device, without anything around it.
#[track_caller]
fn invite(peer: &Peer, options: &[&str]) -> String {
    let finished = run(peer, &[&["invite"], options].concat()).ok();
    assert!(
        finished.stderr.contains("sudo tributary join"),
        "{}",
        finished.stderr
    );
    finished.stdout.trim().to_owned()
}

#[track_caller]
fn fails(finished: &Finished, code: Option<i32>, why: &str) {
    assert_eq!(finished.status.code(), code, "{}", finished.stderr);
    assert!(
        finished.stderr.contains(why),
        "`{why}` is missing in:\n{}",
        finished.stderr
    );
    assert_eq!(finished.stdout, "", "nothing was done");
}

#[test]
fn a_token_lets_one_device_in_and_all_members_hear_of_it_and_remember_it() {
    let Some(lab) = Lab::beside() else { return };
    let lab = three(lab);
    let (ann, bob, cat) = (lab.at("ann"), lab.at("bob"), lab.at("cat"));
    for arguments in [
        &["invite"][..],
        &["join", "x"],
        &["peers"],
        &["approve", "bob"],
        &["leave", "--yes"],
    ] {
        let finished = run(ann, arguments);
        // Without a terminal a person cannot compare anything.
        let expected = if arguments[0] == "approve" {
            Some(2)
        } else {
            NO_DAEMON
        };
        assert_eq!(
            finished.status.code(),
            expected,
            "{arguments:?}: {}",
            finished.stderr
        );
    }
    let daemons = start(&lab);
    assert_eq!(tier(bob, ann), "neighbour", "nobody has vouched for it");

    let token = invite(ann, &[]);
    fails(&run(ann, &["join", &token]), REFUSED, "was made on this device");
    let mut typed: Vec<char> = token.chars().collect();
    typed.swap(0, 2);
    typed[7] = if typed[7] == '7' { '8' } else { '7' };
    fails(
        &run(bob, &["join", &typed.iter().collect::<String>()]),
        REFUSED,
        "mistyped",
    );
    fails(
        &run(bob, &["join", &token[..20]]),
        REFUSED,
        "30 letters and digits",
    );
    fails(&run_with(bob, &["join"], ""), Some(2), "tributary invite");
    // As people type: in small letters, without the dashes.
    let sloppy = token.to_lowercase().replace('-', " ") + "\n";
    let joined = run_with(bob, &["join"], &sloppy).ok();
    assert!(joined.stdout.contains("ann"), "{}", joined.stdout);
    let took = wait_tiers(ann, bob, "member", AT_ONCE);
    figure(format_args!(
        "vouch: joined by token in {:.2} s",
        joined.elapsed.as_secs_f64()
    ));
    fails(&run(cat, &["join", &token]), REFUSED, "has been used");
    assert_eq!(tier(ann, cat), "neighbour");
    let short = invite(ann, &["--valid", "1 s"]);
    thread::sleep(Duration::from_millis(1100));
    fails(&run(cat, &["join", &short]), REFUSED, "has expired");
    fails(&run(ann, &["invite", "--valid", "169h"]), REFUSED, "7 days");

    // The third one joins by the second: the first one hears of it.
    let token = invite(bob, &["--may-not-vouch"]);
    run_with(cat, &["join", "-"], &token).ok();
    let heard = wait_tiers(ann, cat, "member", AT_ONCE);
    figure(format_args!(
        "vouch: both sides know after {:.2} s, a third one after {:.2} s",
        took.as_secs_f64(),
        heard.as_secs_f64()
    ));
    let members = known(ann);
    let seen = members.iter().find(|known| known["name"] == "cat").unwrap();
    assert_eq!(seen["vouched_by"][0]["name"], "bob", "{seen}");
    assert_eq!(
        (&seen["may_vouch"], &seen["linked"]),
        (&Value::Bool(false), &Value::Bool(true))
    );
    let shown = run(ann, &["peers"]).ok().stdout;
    assert!(shown.contains("vouched for by bob; may not vouch"), "{shown}");

    // A power cut.
    drop(daemons);
    let token = token.as_str();
    let _daemons = start(&lab);
    for (a, b) in [(ann, bob), (bob, cat), (ann, cat)] {
        wait_tiers(a, b, "member", SOON);
    }
    fails(
        &run(cat, &["join", token]),
        REFUSED,
        "no device in sight knows this token",
    );
}

#[test]
fn sec_a20_two_of_one_passphrase_are_members_by_themselves_and_a_wrong_one_gets_nothing() {
    let Some(lab) = Lab::beside() else { return };
    let lab = three(lab);
    let (ann, bob, cat) = (lab.at("ann"), lab.at("bob"), lab.at("cat"));
    let file = bob.directory().join("passphrase");
    fs::write(&file, "correct horse battery staple\n").unwrap();
    ann.configure("[trust]\npassphrase = \"correct horse battery staple\"\n");
    bob.configure(&format!("[trust]\npassphrase_file = \"{}\"\n", file.display()));
    cat.configure("[trust]\npassphrase = \"a quite wrong guess\"\n");
    let (_first, third) = (ann.spawn_daemon(&[]), cat.spawn_daemon(&[]));
    ann.wait_status("the third", SOON, |s| peers(s) == 1);
    let second = bob.spawn_daemon(&[]);
    wait_tiers(ann, bob, "member", SOON);
    let took = second.elapsed();
    figure(format_args!(
        "vouch: two of one passphrase are members {:.2} s after the second one's start",
        took.as_secs_f64()
    ));
    assert!(took <= AT_ONCE, "{took:?}");
    bob.wait_status("all", SOON, |s| peers(s) == 2);
    // It is tried again with each link, and limited.
    drop(third);
    let mut wrong = 0;
    for _ in 0..5 {
        ann.wait_status("the third is gone", SOON, |s| peers(s) == 1);
        let third = cat.spawn_daemon(&[]);
        cat.wait_status("both", SOON, |s| peers(s) == 2);
        wait_for("the run's end", SOON, || {
            third.stderr().contains("not of one passphrase") || third.stderr().contains("another passphrase")
        });
        wrong += usize::from(third.stderr().contains("Closed"));
        assert_eq!([tier(cat, ann), tier(cat, bob)], ["neighbour"; 2]);
        assert_eq!([tier(ann, cat), tier(bob, cat)], ["neighbour"; 2]);
        let mut third = third;
        third.signal(Signal::SIGTERM);
        third.wait(SOON).ok();
    }
    assert!(wrong > 0, "nobody was told that it had guessed too often");
    fs::write(&file, "short\n").unwrap();
    let refused = run(bob, &["run", "--state-dir", "other"]);
    fails(
        &refused,
        Some(64),
        "passphrase:1: what stands there is not shown here",
    );
    assert!(!refused.stderr.contains("short"), "{}", refused.stderr);
}

/// `tributary approve` on a device, and the pipe into which the other's code is written.
struct Approval {
    process: Process,
    pipe: std::path::PathBuf,
}

impl Approval {
    fn begin(on: &Peer, whom: &str) -> Self {
        let pipe = on.directory().join("code");
        let _ = fs::remove_file(&pipe);
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let program = on.tributary(&[]).get_program().to_owned();
        let mut command = on.command("sh");
        command.args(["-c", "pipe=$1; shift; exec \"$@\" <> \"$pipe\"", "sh"]);
        command.arg(&pipe).arg(program);
        command.args(["approve", whom, "--yes-code"]);
        let process = on.start("approve", command);
        Self { process, pipe }
    }

    #[track_caller]
    fn code(&self) -> String {
        let shown = || {
            let text = self.process.stdout();
            text.lines()
                .map(str::trim)
                .find(|l| l.len() == 7)
                .map(str::to_owned)
        };
        wait_for("a code", SOON, || shown().is_some());
        shown().unwrap()
    }

    fn say(&self, code: &str) {
        fs::write(&self.pipe, format!("{code}\n")).unwrap();
    }
}

#[test]
fn two_people_who_compare_a_code_make_members_of_their_devices() {
    let Some(lab) = Lab::beside() else { return };
    let lab = three(lab);
    let (ann, bob, cat) = (lab.at("ann"), lab.at("bob"), lab.at("cat"));
    let _daemons = start(&lab);
    for (device, why) in [
        ("nobody", "no device here is called `nobody`"),
        ("ann", "is this device itself"),
        ("", "no device here"),
    ] {
        fails(&run(ann, &["approve", device, "--yes-code"]), REFUSED, why);
    }
    for right in [false, true] {
        let mut first = Approval::begin(ann, "bob");
        wait_for("bob is asked", SOON, || {
            known(bob).iter().any(|known| known["asks"] == true)
        });
        let listed = run(bob, &["approve"]).ok().stdout;
        assert!(listed.contains("asks to be approved"), "{listed}");
        let mut second = Approval::begin(bob, &id(ann)[..12]);
        let codes = [first.code(), second.code()];
        assert_eq!(codes[0], codes[1]);
        first.say(&codes[1]);
        second.say(if right { &codes[0] } else { "000 00x" });
        let ended = [first.process.wait(SOON), second.process.wait(SOON)];
        if right {
            let [first, second] = ended.map(Finished::ok);
            assert!(first.stdout.contains("bob") && second.stdout.contains("ann"));
            wait_tiers(ann, bob, "member", AT_ONCE);
        } else {
            assert_eq!(ended.map(|e| e.status.code()), [REFUSED; 2]);
            assert_eq!([tier(ann, bob), tier(bob, ann)], ["neighbour"; 2]);
        }
    }
    fails(
        &run(ann, &["approve", "bob", "--yes-code"]),
        REFUSED,
        "is a member already",
    );
    // Two that ask at once.
    let mut first = Approval::begin(ann, "cat");
    wait_for("cat is asked", SOON, || {
        known(cat).iter().any(|known| known["asks"] == true)
    });
    let mut other = Approval::begin(bob, "cat");
    wait_for("cat is asked twice", SOON, || {
        known(cat).iter().filter(|known| known["asks"] == true).count() == 2
    });
    fails(
        &run(cat, &["approve", "ann", "--yes-code"]),
        REFUSED,
        "another device asks at the same time",
    );
    for asking in [&mut first, &mut other] {
        asking.process.signal(Signal::SIGINT);
        asking.process.wait(SOON);
    }
    wait_for("nobody asks", SOON, || {
        known(cat).iter().all(|known| known["asks"] == false)
    });
}

#[test]
fn sec_b9_whoever_is_put_out_is_out_at_once_everywhere_and_an_old_vouch_brings_nobody_back() {
    let Some(lab) = Lab::beside() else { return };
    let lab = three(lab);
    let (ann, bob, cat) = (lab.at("ann"), lab.at("bob"), lab.at("cat"));
    let mut daemons = start(&lab);
    for (maker, joins) in [(ann, bob), (bob, cat)] {
        run(joins, &["join", &invite(maker, &[])]).ok();
    }
    wait_tiers(ann, cat, "member", SOON);

    // One is forgotten by a member, while another one is not there to hear it.
    daemons[0].signal(Signal::SIGTERM);
    daemons[0].wait(SOON).ok();
    bob.wait_status("ann is gone", SOON, |s| peers(s) == 1);
    let began = Instant::now();
    run(bob, &["forget", "cat"]).ok();
    wait_tiers(bob, cat, "neighbour", SOON);
    figure(format_args!(
        "vouch: forgotten on both sides after {:.2} s",
        began.elapsed().as_secs_f64()
    ));
    assert!(began.elapsed() <= AT_ONCE, "{:?}", began.elapsed());
    // The one that was away still has the old vouch, and says so; what it hears is later.
    daemons[0] = ann.spawn_daemon(&[]);
    wait_for("ann hears of it", SOON, || {
        tier(cat, ann) == "neighbour" && tier(bob, ann) == "member"
    });
    assert_eq!(tier(cat, bob), "neighbour", "the old vouch came back with ann");
    // Its link breaks with that, and comes again.
    wait_for("there is nothing to forget", SOON, || {
        run(ann, &["forget", "cat"]).stderr.contains("is a neighbour")
    });

    // A lost device is blocked by its id on any member.
    run(cat, &["join", &invite(ann, &[])]).ok();
    wait_tiers(bob, cat, "member", SOON);
    let stolen = id(cat);
    let began = Instant::now();
    let said = run(ann, &["block", &stolen[..16]]).ok().stdout;
    assert!(said.contains("tributary forget"), "{said}");
    wait_for("no link with it", SOON, || {
        [ann, bob]
            .iter()
            .all(|peer| peer.status().is_some_and(|s| peers(&s) == 1))
    });
    let took = began.elapsed();
    figure(format_args!(
        "vouch: blocked everywhere after {:.2} s",
        took.as_secs_f64()
    ));
    assert!(took <= AT_ONCE, "{took:?}");
    assert_eq!([tier(cat, ann), tier(cat, bob)], ["blocked"; 2]);
    fails(&run(ann, &["block", "cat"]), REFUSED, "is blocked already");
    run(ann, &["forget", &stolen[..16]]).ok();
    for peer in [ann, bob] {
        wait_for("it is a neighbour again", SOON, || tier(cat, peer) == "neighbour");
    }

    // And one leaves.
    fails(&run(bob, &["leave"]), Some(2), "--yes");
    let began = Instant::now();
    let said = run(bob, &["leave", "--yes"]).ok().stdout;
    assert!(said.contains("1 member"), "{said}");
    wait_tiers(ann, bob, "neighbour", SOON);
    let took = began.elapsed();
    figure(format_args!(
        "vouch: left on both sides after {:.2} s",
        took.as_secs_f64()
    ));
    assert!(took <= AT_ONCE, "{took:?}");
}

#[test]
fn sec_e1_sec_e2_only_the_daemons_owner_changes_who_is_trusted_and_a_strangers_socket_is_not_spoken_with() {
    if !installed("setpriv") {
        return;
    }
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("ann", uplink(20.0, 10.0));
    let ann = lab.at("ann");
    let daemon = ann.spawn_daemon(&[]);
    ann.wait_status("itself", SOON, |_| true);
    let place = tempfile::tempdir().unwrap();
    let program = place.path().join("tributary");
    fs::copy(ann.tributary(&[]).get_program(), &program).unwrap();
    open(place.path());
    // SEC-E2: what the daemon keeps is its own.
    let mode = |path: &std::path::Path| {
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions()) & 0o777
    };
    let state = ann.directory().join("state");
    assert_eq!(mode(&state), 0o700);
    for file in fs::read_dir(&state).unwrap() {
        let path = file.unwrap().path();
        let expected = if path.ends_with("control.sock") {
            0o660
        } else {
            0o600
        };
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
    drop(daemon);

    // A daemon whose group this user is in.
    let socket = place.path().join("sock");
    let arguments = ["--socket", socket.to_str().unwrap()];
    let _daemon = ann.spawn_daemon(&arguments);
    wait_for("the socket", SOON, || socket.exists());
    fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let as_nobody = |what: &[&str]| {
        let mut command = ann.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
        command.arg(&program).args(what).args(arguments);
        command
            .env("TRIBUTARY_CONFIG", "/dev/null")
            .env("HOME", "/")
            .current_dir("/");
        ann.run("nobody", command)
    };
    wait_for("an answer", SOON, || as_nobody(&["status"]).status.success());
    as_nobody(&["peers", "--json"]).ok();
    for what in [
        &["invite"][..],
        &["join", "x"],
        &["forget", "x"],
        &["block", "x"],
        &["leave", "--yes"],
        &["approve", "x", "--yes-code"],
    ] {
        fails(&as_nobody(what), REFUSED, "run it again with sudo");
    }
    // Somebody else listens where the daemon is looked for.
    let squatted = place.path().join("squatted");
    fs::create_dir(&squatted).unwrap();
    open(&squatted);
    let trap = squatted.join("sock");
    let mut squatter = ann.command("setpriv");
    squatter.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    squatter
        .arg(&program)
        .args(["run", "--socket", trap.to_str().unwrap(), "--state-dir"]);
    squatter
        .arg(squatted.join("state"))
        .env("TRIBUTARY_CONFIG", "/dev/null")
        .env("HOME", "/")
        .current_dir("/");
    let _squatter = ann.start("squatter", squatter);
    wait_for("the trap", SOON, || trap.exists());
    fails(
        &run(ann, &["invite", "--socket", trap.to_str().unwrap()]),
        NO_DAEMON,
        "is not the daemon's",
    );
}

fn open(directory: &std::path::Path) {
    fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
}

/// One half of whoever is in between.
struct Half<'a> {
    /// What it calls itself.
    name: &'a str,
    /// To whom it has a link.
    address: SocketAddr,
    /// What its id must be for a run of the passphrase to get going: who has the smaller one begins.
    fits: &'a (dyn Fn(PeerId) -> bool + Sync),
}

/// Sits between two devices that do not see each other: has a link with each, as itself and under the other's name, and
/// passes on what they say to each other. Gives how much that was.
async fn in_between(ends: [Half<'_>; 2], stop: CancellationToken) -> usize {
    let tasks = Tasks::new();
    let mut halves = Vec::new();
    for Half { name, address, fits } in ends {
        let mut keys = std::iter::repeat_with(|| DeviceKey::ephemeral().unwrap());
        let key = keys.find(|key| fits(key.id())).unwrap();
        let config = LinkConfig {
            port: 0,
            name: name.to_owned(),
            offers: watch::channel(Lends::default()).1,
            home: watch::channel(Home::default()).1,
            gate: Arc::new(|_| true),
            trust: Trust::none(&key),
        };
        let (links, mut events, tunnels) = Links::start(config, &key, &tasks).unwrap();
        links.dial(&[address]).await.unwrap();
        let Some(LinkEvent::Up(link)) = events.recv().await else {
            panic!("{address} has no link with who wants to be in between");
        };
        halves.push((link, events, (key.id(), links, tunnels)));
    }
    let (mut second, mut first) = (halves.pop().unwrap(), halves.pop().unwrap());
    let mut passed = 0;
    loop {
        let (event, from, to) = tokio::select! {
            () = stop.cancelled() => break,
            Some(event) = first.1.recv() => (event, &first, &second.0),
            Some(event) = second.1.recv() => (event, &second, &first.0),
        };
        let LinkEvent::Ceremony { words, .. } = event else {
            continue;
        };
        let Some(Words::Approve(look)) = Words::read(&words) else {
            passed += usize::from(to.say(words));
            continue;
        };
        for answer in with_a_code_of_its_own(&from.0, from.2.0, look) {
            from.0.say(Words::Approve(answer).bytes());
        }
    }
    tasks.stop(SOON).await;
    passed
}

/// A reveal that is passed on fits no commitment: so it takes part with each of the two for itself.
fn with_a_code_of_its_own(link: &Link, me: PeerId, look: Look) -> Vec<Look> {
    let ends = Ends {
        me,
        peer: link.peer(),
        channel: link.exporter(b"EXPORTER-tributary-1-vouching").unwrap(),
    };
    let nonce = [7; 32];
    match look {
        Look::Commit(_) => vec![
            Look::Commit(Sas::new(nonce, ends).commitment()),
            Look::Reveal(nonce),
        ],
        Look::Reveal(_) | Look::Yes => vec![Look::Yes],
        Look::No => Vec::new(),
    }
}

#[test]
fn sec_a2_whoever_is_in_between_for_real_gets_nothing_in_any_way_of_vouching() {
    let Some(lab) = Lab::beside() else { return };
    let lab = three(lab);
    let (ann, bob, cat) = (lab.at("ann"), lab.at("bob"), lab.at("cat"));
    // They hear of each other only by whoever is in between.
    lab.lan_multicast(false);
    for peer in [ann, bob] {
        peer.configure("[trust]\npassphrase = \"correct horse battery staple\"\n");
    }
    let daemons = [ann.spawn_daemon(&[]), bob.spawn_daemon(&[])];
    let address = |peer: &Peer| {
        peer.wait_status("itself", SOON, |_| true);
        SocketAddr::from((peer.lan_address(), tributary::link::DEFAULT_PORT))
    };
    let addresses = [address(ann), address(bob)];
    let [first, second] = [ann, bob].map(|peer| PeerId(sha256_from_hex(&id(peer)).unwrap()));
    let (above, below) = (move |id| id > first, move |id| id < second);
    let stop = CancellationToken::new();
    let passed = thread::scope(|scope| {
        let stopped = stop.clone();
        let relay = scope.spawn(move || {
            cat.inside(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                let half = |name, address, fits| Half { name, address, fits };
                let ends = [
                    half("bob", addresses[0], &above),
                    half("ann", addresses[1], &below),
                ];
                Ok(runtime.block_on(in_between(ends, stopped)))
            })
        });
        // Also where this fails, it ends.
        let _stop = stop.clone().drop_guard();
        // The passphrase goes by itself.
        for (peer, daemon) in [ann, bob].into_iter().zip(&daemons) {
            peer.wait_status("who is in between", SOON, |s| peers(s) == 1);
            let tried = || {
                daemon.stderr().contains("another passphrase")
                    || daemon.stderr().contains("not of one passphrase")
            };
            wait_for("a run's end", SOON, tried);
        }
        let joined = run(bob, &["join", &invite(ann, &[])]);
        fails(&joined, REFUSED, "somebody may be in between");
        let mut approvals = [Approval::begin(ann, "bob"), Approval::begin(bob, "ann")];
        let codes = [approvals[0].code(), approvals[1].code()];
        figure(format_args!(
            "vouch: with somebody in between the codes are {} and {}",
            codes[0], codes[1]
        ));
        assert_ne!(codes[0], codes[1]);
        for (approval, other) in approvals.iter_mut().zip(codes.iter().rev()) {
            approval.say(other);
            assert_eq!(approval.process.wait(SOON).status.code(), REFUSED);
        }
        for peer in [ann, bob] {
            let tiers: Vec<Value> = known(peer).iter().map(|known| known["tier"].clone()).collect();
            assert_eq!(tiers, ["neighbour"], "{}", peer.name());
        }
        stop.cancel();
        relay.join().unwrap()
    });
    figure(format_args!(
        "vouch: {passed} steps were passed on from one to the other"
    ));
    assert!(passed >= 4, "{passed} steps were passed on: that was no attack");
}
