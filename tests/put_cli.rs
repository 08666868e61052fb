//! `tributary put` as a user or a script meets it: what is refused, what is told, exit codes. Against a real server in the
//! lab, with a daemon and without.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod lab;
mod put_server;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use lab::{Lab, Process, SOON, lanes, uplink, wait_for};
use nix::sys::signal::Signal;
use put_server::Server;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn what_cannot_be_uploaded_is_refused_with_what_to_write_instead() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("file"), "x").unwrap();
    fs::create_dir(home.path().join("dir")).unwrap();
    let out = |args: &[&str]| tributary(home.path(), &[&["put"], args].concat());
    for (args, code, expected) in [
        (vec!["file", "nowhere"], 2, "s3://BUCKET/KEY"),
        (vec!["file", "ftp://h/x"], 2, "tus+https://HOST/PATH"),
        (
            vec!["dir", "https://h/x"],
            2,
            "an https URL that ends in `/` only",
        ),
        (vec!["dir", "s3://b/x/"], 2, "an https URL that ends in `/` only"),
        (vec!["-", "https://h/x/"], 2, "standard input has no name"),
        (vec!["missing", "https://h/x"], 6, "`missing`"),
        (
            vec!["file", "https://h/x", "--region", "r"],
            2,
            "s3://BUCKET/KEY only",
        ),
        (
            vec!["file", "https://h/x", "--part-size", "8MiB"],
            2,
            "--part-size is for",
        ),
        (vec!["file", "https://h/x", "--part-size", "many"], 2, "64 MiB"),
        (vec!["file", "https://h/x", "-H", "no colon"], 2, "'Name: value'"),
        (
            vec!["file", "https://h/x", "--spool-limit", "1MB"],
            2,
            "SOURCE is `-`",
        ),
        (vec!["file", "s3://b/k", "-H", "A: b"], 2, "-H is not for s3://"),
        (vec!["file"], 2, "TARGET"),
    ] {
        let output = out(&args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    let output = out(&["file", "nowhere", "--json"]);
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["failed"]["code"], 2);
    assert!(!home.path().join("state").exists(), "nothing was begun");
}

/// A daemon that signs gets the key; nobody else sees it, not even in a log that says everything.
#[test]
fn sec_b11_a_secret_key_is_in_no_output_and_no_log() {
    let Some(house) = House::new() else { return };
    let device = house.lab.at("device");
    let mut run = device.tributary(&["run"]);
    run.env("RUST_LOG", "trace");
    let daemon = device.start("daemon", run);
    device.wait_status("the lane", SOON, |status| lanes(status) == 1);
    fs::write(house.dir().join("big"), house.big()).unwrap();
    let endpoint = house.server.url("");
    let args = [
        "put",
        "--json",
        "-vv",
        "big",
        "s3://refused/x",
        "--endpoint",
        &endpoint,
    ];
    let mut put = device.tributary(&args);
    put.env("AWS_ACCESS_KEY_ID", "AKhunter1")
        .env("AWS_SECRET_ACCESS_KEY", "hunter2");
    put.env("AWS_SESSION_TOKEN", "hunter3")
        .env("AWS_REGION", "nowhere-1");
    let finished = device.start("put", put).wait(LIMIT);
    assert_eq!(finished.status.code(), Some(3), "{}", finished.stderr);
    assert!(finished.report("failed").is_some(), "{}", finished.stdout);
    let all = [
        &finished.stdout,
        &finished.stderr,
        &daemon.stdout(),
        &daemon.stderr(),
    ];
    assert!(daemon.stderr().contains("DEBUG"), "the log says everything");
    for text in all {
        assert!(!text.contains("hunter2") && !text.contains("hunter3"), "{text}");
    }
}

#[test]
fn standard_input_beyond_the_limit_is_refused_and_nothing_of_it_is_left() {
    let home = tempfile::tempdir().unwrap();
    let spools = home.path().join("spools");
    fs::create_dir(&spools).unwrap();
    let mut shell = program(home.path(), "sh");
    let command = "head -c 2000001 /dev/zero | \"$0\" put - https://h/x --spool-limit 2MB";
    shell
        .args(["-c", command, env!("CARGO_BIN_EXE_tributary")])
        .env("TMPDIR", &spools);
    let output = shell.output().unwrap();
    assert_eq!(output.status.code(), Some(6), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("longer than 1.9 MiB"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(fs::read_dir(&spools).unwrap().count(), 0);
}

#[test]
fn files_directories_and_standard_input_arrive_with_a_daemon_and_without() {
    let Some(house) = House::new() else { return };
    for how in ["--standalone", "--json"] {
        let daemon = (how == "--json").then(|| house.start());
        let place = |name: &str| format!("/{}/{name}", how.trim_start_matches('-'));
        let put = |args: &[&str]| house.put(&[args, &[how]].concat()).wait(LIMIT);
        for (file, content) in [("big", house.big()), ("empty", Vec::new()), ("one", vec![7])] {
            fs::write(house.dir().join(file), &content).unwrap();
            let finished = put(&[file, &house.server.url(&place(""))]).ok();
            assert_eq!(
                house.server.at(&place(file)),
                Some(content),
                "{file}: {}",
                finished.stderr
            );
            let done = finished.report("done").unwrap();
            assert_eq!(done["path"], json!(house.dir().join(file)));
            assert!(done["target"].as_str().unwrap().ends_with(&place(file)), "{done}");
            assert_eq!(done["files"], Value::Null);
            if file == "big" {
                assert_eq!(done["bytes"], house.big().len());
                let carried: u64 = done["lanes"].as_array().unwrap().iter().map(bytes).sum();
                assert!(carried >= house.big().len() as u64, "{done}");
                assert_eq!(finished.report("progress").unwrap()["upload"], true);
            }
            assert!(!finished.stderr.contains("without it"), "{}", finished.stderr);
        }
        let piped = house
            .piped(&[&house.server.url(&place("piped")), how])
            .wait(LIMIT)
            .ok();
        assert_eq!(house.server.at(&place("piped")), Some(house.big()));
        assert_eq!(piped.report("done").unwrap()["path"], "-");
        house.tree();
        let all = put(&["tree", &house.server.url(&place("tree/"))]);
        assert_eq!(all.status.code(), Some(9), "{}", all.stderr);
        let files = &all.report("done").unwrap()["files"];
        assert_eq!(
            (&files["sent"], &files["left_out"]),
            (&json!(3), &json!(1)),
            "{files}"
        );
        assert_eq!(files["reasons"][0]["name"], "link");
        assert_eq!(
            house.server.at(&place("tree/a%20b/c")),
            Some(b"two".to_vec()),
            "{:?}",
            house.server.paths()
        );
        drop(daemon);
    }
}

#[test]
fn what_the_server_refuses_is_told() {
    let Some(house) = House::new() else { return };
    fs::write(house.dir().join("file"), "x").unwrap();
    let finished = house
        .put(&["file", &house.server.url("/refused/x"), "--standalone"])
        .wait(LIMIT);
    assert_eq!(finished.status.code(), Some(3), "{}", finished.stderr);
    assert_eq!(finished.report("failed").unwrap()["code"], 3);
    assert!(
        finished.stderr.contains("files.lab refuses"),
        "{}",
        finished.stderr
    );
}

#[test]
fn an_upload_is_shown_while_it_runs_stopped_by_the_first_signal_and_teaches_no_rates() {
    let Some(house) = House::new() else { return };
    let _daemon = house.start();
    fs::write(house.dir().join("big"), house.big()).unwrap();
    for signals in [
        &[Signal::SIGINT][..],
        &[Signal::SIGINT, Signal::SIGINT],
        &[Signal::SIGTERM],
    ] {
        let mut put = house.put(&["big", &house.server.url("/hold/x")]);
        wait_for("it is being sent", SOON, || house.server.was_asked("PUT /hold/x"));
        house.lab.at("device").wait_status("it is shown", SOON, |status| {
            status["transfers"][0]["upload"] == true && status["transfers"][0]["name"] == "big"
        });
        signals.iter().for_each(|signal| put.signal(*signal));
        let finished = put.wait(Duration::from_secs(20));
        assert_eq!(finished.status.code(), Some(130), "{}", finished.stderr);
        assert!(finished.stderr.contains("stopped"), "{}", finished.stderr);
        house.lab.at("device").wait_status("it is over", SOON, |status| {
            status["transfers"].as_array().unwrap().is_empty()
        });
    }
    house.put(&["big", &house.server.url("/big")]).wait(LIMIT).ok();
    let status = house.lab.at("device").status().unwrap();
    assert_eq!(
        status["lanes"][0]["rate"],
        Value::Null,
        "an upload says nothing of downloads"
    );
    assert_eq!(status["forecast"]["expected"], Value::Null);
}

/// A device with a line, and a server.
struct House {
    lab: Lab,
    server: Server,
}

impl House {
    fn new() -> Option<Self> {
        let lab = Lab::beside()?.peer("device", uplink(80.0, 40.0).delay_ms(5));
        let server = Server::start(&lab, "files.lab");
        Some(Self { lab, server })
    }

    fn start(&self) -> Process {
        let device = self.lab.at("device");
        let daemon = device.spawn_daemon(&[]);
        device.wait_status("the lane", SOON, |status| lanes(status) == 1);
        daemon
    }

    /// Starts `put --json`.
    fn put(&self, args: &[&str]) -> Process {
        let device = self.lab.at("device");
        let more: Vec<&str> = args.iter().copied().filter(|arg| *arg != "--json").collect();
        device.start("put", device.tributary(&[&["put", "--json"], &more[..]].concat()))
    }

    /// The same from standard input, with [`House::big`] in it.
    fn piped(&self, args: &[&str]) -> Process {
        let device = self.lab.at("device");
        let args: Vec<&str> = args.iter().copied().filter(|arg| *arg != "--json").collect();
        let mut shell = device.command("sh");
        let command = "cat big | exec \"$0\" put --json - \"$@\"";
        shell
            .args(["-c", command, env!("CARGO_BIN_EXE_tributary")])
            .args(args);
        device.start("put", shell)
    }

    fn tree(&self) {
        let tree = self.dir().join("tree");
        fs::create_dir_all(tree.join("a b")).unwrap();
        for (name, content) in [("one", "one"), ("a b/c", "two"), ("a b/empty", "")] {
            fs::write(tree.join(name), content).unwrap();
        }
        let _ = std::os::unix::fs::symlink("/etc/passwd", tree.join("link"));
    }

    fn big(&self) -> Vec<u8> {
        (0..2_000_000_u32).map(|n| (n ^ (n >> 9)) as u8).collect()
    }

    fn dir(&self) -> &Path {
        self.lab.at("device").directory()
    }
}

fn bytes(lane: &Value) -> u64 {
    lane["bytes"].as_u64().unwrap_or_default()
}

fn tributary(home: &Path, args: &[&str]) -> Output {
    let mut command = program(home, env!("CARGO_BIN_EXE_tributary"));
    command.args(args).output().unwrap()
}

fn program(home: &Path, name: &str) -> Command {
    let mut command = Command::new(name);
    command.current_dir(home).env("HOME", home);
    command.env("TRIBUTARY_STATE_DIR", home.join("state"));
    for unset in [
        "TRIBUTARY_CONFIG",
        "TRIBUTARY_SOCKET",
        "RUNTIME_DIRECTORY",
        "TMPDIR",
    ] {
        command.env_remove(unset);
    }
    command.stdin(std::process::Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
