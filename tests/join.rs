//! How peers come together: at once, without configuration, also in mid-download and where multicast is blocked.

mod lab;

use std::fs;
use std::thread;
use std::time::Duration;

use lab::{Lab, Process, figure, installed, lanes, measured, no_uplink, peers, uplink, wait_for};
use nix::sys::signal::Signal;

/// A new peer carries its first bytes within this after its start.
const JOINS_WITHIN: Duration = Duration::from_secs(2);
/// On its wire, these are content, and no longer a handshake.
const FIRST_BYTES: u64 = 20_000;
const SOON: Duration = Duration::from_secs(15);

#[test]
fn a_peer_started_in_mid_download_carries_bytes_within_two_seconds() {
    for daemon in [true, false] {
        let Some(lab) = Lab::beside() else { return };
        let lab = lab
            .peer("borrower", uplink(20.0, 10.0).delay_ms(15))
            .peer("late", uplink(20.0, 10.0).delay_ms(15));
        let origin = lab.origin("origin.lab");
        let borrower = lab.at("borrower");
        let running = daemon.then(|| borrower.spawn_daemon(&[]));
        if daemon {
            borrower.wait_status("its lane", SOON, |status| lanes(status) == 1);
        }
        let sha256 = origin.sha256("24MiB");
        let mut get = borrower.spawn_get(&origin.url("24MiB"), &["-o", "file", "--sha256", &sha256]);
        wait_for("a good part", SOON, || {
            borrower.wire(0).carried().down > 4_000_000
        });
        let late = lab.at("late").spawn_daemon(&[]);
        wait_for("the late one's first bytes", SOON, || {
            lab.at("late").wire(0).carried().down > FIRST_BYTES
        });
        let took = late.elapsed();
        let finished = get.wait(Duration::from_secs(60)).ok();
        figure(format_args!(
            "join: in mid-download ({}): first bytes {:.2} s after its start, {:.1} MiB in the end, all done after {:.1} s",
            if daemon { "daemon" } else { "standalone" },
            took.as_secs_f64(),
            lab.at("late").wire(0).carried().down as f64 / 1_048_576.0,
            finished.elapsed.as_secs_f64()
        ));
        drop((running, late));
        assert!(took <= JOINS_WITHIN, "{took:?}");
    }
}

#[test]
fn fresh_devices_see_each_other_without_configuration() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("ann", uplink(20.0, 10.0))
        .peer("bob", uplink(20.0, 10.0));
    let (ann, bob) = (lab.at("ann"), lab.at("bob"));
    for round in ["both at once", "the second one later"] {
        for peer in [ann, bob] {
            let _ = fs::remove_dir_all(peer.directory().join("state"));
            // Not even egress: seeing each other needs nothing.
            peer.configure("");
        }
        let first = ann.spawn_daemon(&[]);
        if round != "both at once" {
            ann.wait_status("itself", SOON, |_| true);
        }
        let second = bob.spawn_daemon(&[]);
        for peer in [ann, bob] {
            peer.wait_status("the other", SOON, |s| peers(s) == 1 && lanes(s) == 2);
        }
        let took = second.elapsed();
        figure(format_args!(
            "join: {round}: both see each other {:.2} s after the second one's start",
            took.as_secs_f64()
        ));
        assert!(took <= JOINS_WITHIN, "{took:?}");
        drop((first, second));
    }
}

#[test]
fn without_multicast_named_and_last_known_peers_are_found() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("ann", uplink(20.0, 10.0))
        .peer("bob", uplink(20.0, 10.0));
    let (ann, bob) = (lab.at("ann"), lab.at("bob"));
    lab.lan_multicast(false);
    let (mut first, mut second) = (ann.spawn_daemon(&[]), bob.spawn_daemon(&[]));
    ann.wait_status("itself", SOON, |_| true);
    thread::sleep(Duration::from_secs(2));
    let met = peers(&ann.status().unwrap());
    assert_eq!(met, 0, "multicast is blocked, nobody was named");
    end(&mut first);
    end(&mut second);
    // One of them names the other.
    let named = format!(
        "[lan]\npeers = [\"{}\"]\n[egress]\nallow = [\"203.0.113.0/24\"]\n",
        bob.lan_address()
    );
    let before = fs::read_to_string(ann.directory().join("config.toml")).unwrap();
    ann.configure(&named);
    let mut second = bob.spawn_daemon(&[]);
    bob.wait_status("itself", SOON, |_| true);
    let mut first = ann.spawn_daemon(&[]);
    for peer in [ann, bob] {
        peer.wait_status("the other", SOON, |s| peers(s) == 1 && lanes(s) == 2);
    }
    figure(format_args!(
        "join: a peer named by hand is seen {:.2} s after the start",
        first.elapsed().as_secs_f64()
    ));
    end(&mut first);
    end(&mut second);
    // They have met: nobody needs to be named any more.
    ann.configure(&before);
    let second = bob.spawn_daemon(&[]);
    bob.wait_status("itself", SOON, |_| true);
    let first = ann.spawn_daemon(&[]);
    for peer in [ann, bob] {
        peer.wait_status("the other", SOON, |s| peers(s) == 1 && lanes(s) == 2);
    }
    figure(format_args!(
        "join: a peer met before is seen {:.2} s after the restart",
        first.elapsed().as_secs_f64()
    ));
    drop((first, second));
}

#[test]
fn a_device_alone_uses_both_uplinks_of_its_own() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer(
        "alone",
        [uplink(20.0, 10.0).delay_ms(10), uplink(20.0, 10.0).delay_ms(20)],
    );
    let origin = lab.origin("origin.lab");
    let alone = lab.at("alone");
    let sha256 = origin.sha256("16MiB");
    let fetch = || {
        let before = [0, 1].map(|n| alone.wire(n).carried().down);
        let _ = fs::remove_file(alone.directory().join("file"));
        let file = ["-o", "file", "--sha256", &sha256];
        let finished = alone.get(&origin.url("16MiB"), &file).ok();
        let carried = [0, 1].map(|n| alone.wire(n).carried().down - before[n]);
        let shares = carried.map(|bytes| bytes as f64 / (16.0 * 1_048_576.0));
        let share = 16.0 * 1_048_576.0 * 8.0 / finished.elapsed.as_secs_f64() / 40e6;
        figure(format_args!(
            "join: two uplinks of its own: {:.2} and {:.2} of the file, {share:.2} of both rates' sum",
            shares[0], shares[1]
        ));
        (shares, share)
    };
    measured(
        "both lines at work, more than 0.75 of their sum",
        fetch,
        |(shares, share)| shares.iter().all(|share| *share > 0.35) && *share > 0.75,
    );
}

#[test]
fn a_real_mdns_client_sees_the_service() {
    if !["avahi-browse", "avahi-daemon", "dbus-daemon", "unshare"]
        .into_iter()
        .all(installed)
    {
        return;
    }
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("lender", uplink(20.0, 10.0)).peer("looker", no_uplink());
    let lender = lab.at("lender");
    let _daemon = lender.spawn_daemon(&[]);
    lender.wait_status("itself", SOON, |status| lanes(status) == 1);
    let port = lender.status().unwrap()["device"]["port"].to_string();
    // avahi wants a bus of its own, and /run without the machine's.
    let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/dbus || exit 1
        dbus-daemon --system --fork --print-pid > /run/dbus.pid || exit 1
        avahi-daemon -D --no-chroot || exit 1
        for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
            timeout 3 avahi-browse -rpt _tributary._udp > /run/seen
            grep -q '^=' /run/seen && break
            sleep 0.3
        done
        cat /run/seen
        avahi-daemon -k; kill $(cat /run/dbus.pid)
        test -s /run/seen";
    let looker = lab.at("looker");
    let mut browse = looker.command("unshare");
    browse.args(["-m", "--propagation", "private", "sh", "-c", script]);
    let finished = looker.run("avahi", browse).ok();
    let resolved: Vec<_> = finished
        .stdout
        .lines()
        .filter(|line| line.starts_with("=;lan0;"))
        .collect();
    let address = lender.lan_address().to_string();
    let found = resolved.iter().find(|line| {
        let fields: Vec<_> = line.split(';').collect();
        fields.get(7) == Some(&address.as_str()) && fields.get(8) == Some(&port.as_str())
    });
    figure(format_args!(
        "join: avahi-browse: {}",
        found.copied().unwrap_or("nothing")
    ));
    assert!(found.is_some(), "{}\n{}", finished.stdout, finished.stderr);
}

/// Tells a daemon to end, as systemd does, and waits.
fn end(daemon: &mut Process) {
    daemon.signal(Signal::SIGTERM);
    daemon.wait(Duration::from_secs(6)).ok();
}
