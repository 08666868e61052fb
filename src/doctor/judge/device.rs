//! What is about this device alone: its daemon, state, kernel, clock and limits.

use std::time::{Duration, SystemTime};

use crate::clock::{date, is_set};
use crate::types::ByteSize;

use super::super::Check;
use super::super::facts::{Clock, Daemon, Kernel, Limits, State};
use super::{count, list};

/// Since then a socket may be bound to an interface without a privilege.
const KERNEL: (u32, u32) = (5, 7);
/// Certificates are made out from an hour or so before they are issued.
const OFF_A_BIT: Duration = Duration::from_secs(3600);
/// With a day, some certificates are not valid yet, or not any more.
const OFF_TOO_MUCH: Duration = Duration::from_secs(86_400);
/// An installation that seems to lie ahead: time zones of file systems (FAT) alone make up to 14 hours.
const FUTURE: Duration = Duration::from_secs(2 * 86_400);
/// The key, the peers' addresses, and room to write each anew beside the old one.
const ROOM: u64 = 1 << 20;
/// systemd's own default; with less, some dozens of transfers' connections run out.
const FILES: u64 = 1024;
/// A few are lost when a socket is opened under load; this many slow transfers down.
const DROPPED: u64 = 100;

pub(super) fn daemon(daemon: &Daemon) -> Check {
    let name = "daemon";
    let ours = env!("CARGO_PKG_VERSION");
    match daemon {
        Daemon::Answers { version, port } if version == ours => {
            Check::fine(name, format!("runs, version {version}, UDP port {port}"))
        }
        Daemon::Answers { version, port } => Check::note(
            name,
            format!("runs with version {version} on UDP port {port}; this program is version {ours}"),
            "The daemon was not restarted after an update, or there are two installations.",
        )
        .advise("Restart it: sudo systemctl restart tributary")
        .advise("See which program you call: command -v tributary"),
        Daemon::NotAllowed { socket, group } => {
            let group = group.as_deref().unwrap_or("tributary");
            Check::note(
                name,
                format!("one runs, but this user may not open {}", socket.display()),
                "`status` cannot be shown, and downloads join the pool beside the daemon instead of using it. What follows was \
                 looked at without it.",
            )
            .advise(format!(
                "Join its group, then log in anew: sudo usermod -aG {group} \"$USER\""
            ))
            .advise("Or ask as root: sudo tributary doctor")
        }
        Daemon::Broken { socket, why } => Check::problem(
            name,
            format!("something listens at {}, but: {why}", socket.display()),
            "The daemon hangs, or is of a version that this program does not understand.",
        )
        .advise("Restart it: sudo systemctl restart tributary")
        .advise("See what it says: journalctl -u tributary -n 50"),
        Daemon::None => Check::note(
            name,
            "none runs here",
            "This device lends its uplinks to nobody; a download joins the pool for as long as it takes.",
        )
        .advise("Start it now and at every boot: sudo systemctl enable --now tributary")
        .advise("Or in the foreground: tributary run"),
    }
}

pub(super) fn state(state: &State, daemon: &Daemon) -> Check {
    let name = "state";
    let path = state.path.display();
    let owner = state.owner.as_deref().unwrap_or("unknown");
    let free = state.free.map(|free| format!(", {} free", ByteSize(free)));
    let free = free.unwrap_or_default();
    let found = if state.exists {
        format!("{path}, owner {owner}{free}")
    } else {
        format!("{path} is not there yet; it will be made{free}")
    };
    let elsewhere = matches!(daemon, Daemon::Answers { .. } | Daemon::NotAllowed { .. });
    match state.writable {
        None => Check::problem(
            name,
            format!("the file system of {path} does not answer"),
            "It is on a network or a disk that is gone; a daemon would hang, too.",
        )
        .advise("Choose a directory on this device: tributary --state-dir DIR run"),
        Some(false) if !elsewhere => Check::problem(
            name,
            format!("{found}; user {} may not write to it", state.user),
            "Without it this device has no identity of its own to keep: neither a daemon nor a download starts.",
        )
        .advise(format!("If it should be this user's: sudo chown {} {path}", state.user))
        .advise("Or choose another: tributary --state-dir DIR run"),
        _ if state.free.is_some_and(|free| free < ROOM) => Check::problem(
            name,
            found,
            "Too little room to keep the device's key and its peers' addresses.",
        )
        .advise(format!("See what fills it: df -h {path}")),
        _ => Check::fine(name, found),
    }
}

pub(super) fn kernel(kernel: &Kernel) -> Check {
    let name = "kernel";
    let release = kernel.release.as_deref();
    let linux = format!("Linux {}", release.unwrap_or("of an unknown version"));
    let old = release.and_then(version).is_some_and(|version| version < KERNEL);
    let failed = || {
        kernel
            .binds
            .iter()
            .filter_map(|b| Some((&b.uplink, b.failure.as_ref()?)))
    };
    if failed().next().is_none() {
        let bound = match kernel.binds.as_slice() {
            [] => String::new(),
            binds => format!(
                "; sockets can be bound to {}",
                list(binds.iter().map(|b| &b.uplink))
            ),
        };
        return Check::fine(name, linux + &bound);
    }
    let reasons = list(failed().map(|(uplink, failure)| format!("{uplink} ({})", failure.text)));
    let found = format!("{linux}; sockets cannot be bound to {reasons}");
    let means = "Only source addresses decide by which uplink bytes leave, which is right where routes are set up by \
                 source, and else sends everything out of the first uplink.";
    if !failed().any(|(_, failure)| failure.denied) {
        let gone = "The interface went away while this was tried, or the system forbids it.";
        return Check::problem(name, found, gone).advise("Run this again; see the interfaces: ip link");
    }
    let check = Check::problem(name, found, means);
    let check = if old {
        check.advise(format!(
            "Update the kernel: since Linux {}.{} this needs no privilege",
            KERNEL.0, KERNEL.1
        ))
    } else {
        check.advise("A sandbox may forbid it: see what runs it (a container, a service with filters)")
    };
    check.advise("Or give it the privilege: sudo setcap cap_net_raw+ep \"$(command -v tributary)\"")
}

/// The first two numbers of `5.15.0-91-generic`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

pub(super) fn clock(clock: &Clock) -> Check {
    let name = "clock";
    let now = clock
        .now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let shown = utc(now);
    let means = "Certificates seem not to be valid yet, or not any more: every download over https fails. Links between \
                 peers do not care.";
    let set = |check: Check| {
        check
            .advise("Let the network set it: sudo timedatectl set-ntp true")
            .advise("On OpenWrt: /etc/init.d/sysntpd enable && /etc/init.d/sysntpd restart")
    };
    if let Some((server, host)) = &clock.server {
        let (off, way) = match clock.now.duration_since(*server) {
            Ok(ahead) => (ahead, "ahead of"),
            Err(behind) => (behind.duration(), "behind"),
        };
        let found = format!("{shown}: {} {way} what {host} says", about(off));
        return match off {
            off if off >= OFF_TOO_MUCH => set(Check::problem(name, found, means)),
            off if off >= OFF_A_BIT => set(Check::note(
                name,
                found,
                "Certificates that were made out within this time seem not to be valid yet.",
            )),
            _ => Check::fine(name, format!("{shown}, as {host} has it")),
        };
    }
    let installed = clock
        .installed
        .and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
    if !is_set(clock.now) {
        return set(Check::problem(
            name,
            format!("{shown}, which is before this program existed"),
            means,
        ));
    }
    match installed.filter(|t| *t > now + FUTURE) {
        Some(installed) => set(Check::problem(
            name,
            format!("{shown}, but this program was installed on {}", utc(installed)),
            means,
        )),
        None => Check::fine(name, format!("{shown}; there was nothing to compare it with")),
    }
}

/// The day and minute, in UTC.
fn utc(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    let day = date(SystemTime::UNIX_EPOCH + since_epoch);
    format!("{day} {hour:02}:{minute:02} UTC")
}

fn about(time: Duration) -> String {
    let seconds = time.as_secs();
    let (number, what) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    count(usize::try_from(number).unwrap_or(usize::MAX), what)
}

pub(super) fn limits(limits: &Limits) -> Check {
    let name = "limits";
    let files = match limits.files {
        Some(u64::MAX) => "any number of open files".to_owned(),
        Some(files) => format!("{files} open files"),
        None => "open files unknown".to_owned(),
    };
    let buffer = limits.buffer.map(|got| {
        let (got, wanted) = (ByteSize(got), ByteSize(limits.wanted));
        format!("; a UDP socket gets {got} of the {wanted} it asks for")
    });
    let lost = limits
        .dropped
        .map(|dropped| format!("; {dropped} packets lost for want of room"));
    let found = files + &buffer.unwrap_or_default() + &lost.unwrap_or_default();
    let few = limits.files.is_some_and(|files| files < FILES);
    let small = limits.buffer.is_some_and(|got| got < limits.wanted);
    let losing = small && limits.dropped.is_some_and(|dropped| dropped >= DROPPED);
    if !few && !losing {
        return Check::fine(name, found);
    }
    let mut means = Vec::new();
    if few {
        means.push("Each lent or borrowed connection takes one or two files: many at once will be refused.");
    }
    if losing {
        means.push(
            "Peers' packets come faster than this device fetches them, and some have to be sent again.",
        );
    }
    let mut check = Check::note(name, found, means.join(" "));
    if few {
        check = check
            .advise("For the daemon: LimitNOFILE=65536 in a drop-in, sudo systemctl edit tributary")
            .advise("For this shell: ulimit -n 65536");
    }
    if losing {
        check = check
            .advise(format!("sudo sysctl -w net.core.rmem_max={}", limits.wanted))
            .advise("Keep it: the same line, without sudo sysctl -w, in /etc/sysctl.d/90-tributary.conf");
    }
    check
}

#[cfg(test)]
mod tests {
    use super::super::super::Verdict;
    use super::super::super::facts::{Bind, BindFailure};
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn fine(check: &Check) -> bool {
        check.verdict == Verdict::Fine && check.means.is_none() && check.advice.is_empty()
    }

    #[test]
    fn a_daemon_of_this_version_is_fine_and_an_older_one_is_to_be_restarted() {
        let runs = |version: &str| Daemon::Answers {
            version: version.into(),
            port: 7436,
        };
        assert!(fine(&daemon(&runs(env!("CARGO_PKG_VERSION")))));
        let check = daemon(&runs("0.0.1"));
        assert_eq!(check.verdict, Verdict::Note);
        assert!(check.found.contains("0.0.1") && check.advice[0].contains("systemctl restart tributary"));
    }

    #[test]
    fn without_a_daemon_the_command_to_start_one_is_named() {
        let check = daemon(&Daemon::None);
        assert_eq!(check.verdict, Verdict::Note);
        assert!(
            check
                .advice
                .iter()
                .any(|a| a.contains("systemctl enable --now tributary"))
        );
    }

    #[test]
    fn a_socket_that_may_not_be_opened_names_the_group_to_join() {
        let check = daemon(&Daemon::NotAllowed {
            socket: "/run/tributary/control.sock".into(),
            group: Some("lenders".into()),
        });
        assert_eq!(check.verdict, Verdict::Note);
        assert!(check.found.contains("/run/tributary/control.sock"));
        assert!(check.advice[0].contains("usermod -aG lenders"));
    }

    #[test]
    fn a_daemon_that_does_not_answer_is_a_problem() {
        let check = daemon(&Daemon::Broken {
            socket: "/run/x".into(),
            why: "it does not answer".into(),
        });
        assert_eq!(check.verdict, Verdict::Problem);
    }

    fn directory() -> State {
        State {
            path: "/var/lib/tributary".into(),
            writable: Some(true),
            exists: true,
            owner: Some("root".into()),
            free: Some(1 << 30),
            user: "ann".into(),
        }
    }

    #[test]
    fn a_state_directory_must_be_writable_unless_a_daemon_has_its_own() {
        assert!(fine(&state(&directory(), &Daemon::None)));
        let locked = State {
            writable: Some(false),
            ..directory()
        };
        let check = state(&locked, &Daemon::None);
        assert_eq!(check.verdict, Verdict::Problem);
        assert!(check.found.contains("owner root") && check.found.contains("user ann"));
        assert!(check.advice[0].contains("chown ann /var/lib/tributary"));
        let runs = Daemon::Answers {
            version: "1".into(),
            port: 1,
        };
        assert!(fine(&state(&locked, &runs)));
    }

    #[test]
    fn a_full_disk_and_a_dead_one_are_problems() {
        let full = State {
            free: Some(ROOM - 1),
            ..directory()
        };
        assert_eq!(state(&full, &Daemon::None).verdict, Verdict::Problem);
        let dead = State {
            writable: None,
            ..directory()
        };
        assert!(state(&dead, &Daemon::None).found.contains("does not answer"));
    }

    fn binding(release: &str, failure: Option<(bool, &str)>) -> Kernel {
        Kernel {
            release: Some(release.into()),
            binds: vec![Bind {
                uplink: "wwan0".into(),
                failure: failure.map(|(denied, text)| BindFailure {
                    denied,
                    text: text.into(),
                }),
            }],
        }
    }

    #[test]
    fn what_counts_is_whether_sockets_can_be_bound() {
        assert!(fine(&kernel(&binding("6.1.0-rpi7", None))));
        assert!(fine(&kernel(&binding("4.19.0", None))), "root may on any kernel");
        let check = kernel(&binding("5.4.0-91-generic", Some((true, "not permitted"))));
        assert_eq!(check.verdict, Verdict::Problem);
        assert!(check.found.contains("5.4.0-91") && check.found.contains("wwan0 (not permitted)"));
        assert!(check.advice[0].contains("5.7") && check.advice[1].contains("setcap cap_net_raw+ep"));
        let check = kernel(&binding("6.1.0", Some((true, "not permitted"))));
        assert!(check.advice[0].contains("sandbox"));
        let check = kernel(&binding("6.1.0", Some((false, "no such device"))));
        assert!(check.advice[0].contains("ip link"));
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version("5.15.0-91-generic"), Some((5, 15)));
        assert!(version("5.10.1").unwrap() > KERNEL && version("5.4.0").unwrap() < KERNEL);
        assert_eq!(version("unknown"), None);
    }

    fn alone(now: u64) -> Clock {
        Clock {
            now: at(now),
            installed: None,
            server: None,
        }
    }

    #[test]
    fn a_clock_of_1970_is_a_problem_by_itself() {
        let check = clock(&alone(300));
        assert_eq!(check.verdict, Verdict::Problem);
        assert!(check.found.contains("1970-01-01 00:05 UTC"), "{}", check.found);
        assert!(check.advice[0].contains("timedatectl") && check.advice[1].contains("sysntpd"));
        assert!(fine(&clock(&alone(1_800_000_000))));
    }

    #[test]
    fn a_clock_behind_the_programs_own_file_is_a_problem() {
        let installed = |ahead| Clock {
            installed: Some(at(1_800_000_000) + ahead),
            ..alone(1_800_000_000)
        };
        assert_eq!(clock(&installed(30 * DAY)).verdict, Verdict::Problem);
        assert!(fine(&clock(&installed(DAY))));
    }

    #[test]
    fn a_web_servers_time_has_the_last_word() {
        let told = |now, server| {
            clock(&Clock {
                server: Some((at(server), "example.com".into())),
                ..alone(now)
            })
        };
        let year = 365 * 86_400;
        let check = told(1_800_000_000, 1_800_000_000 + year);
        assert_eq!(check.verdict, Verdict::Problem);
        assert!(
            check.found.contains("365 days behind what example.com says"),
            "{}",
            check.found
        );
        assert_eq!(told(1_800_010_000, 1_800_000_000).verdict, Verdict::Note);
        assert!(fine(&told(1_800_000_300, 1_800_000_000)));
    }

    #[test]
    fn small_buffers_are_only_noted_where_packets_were_lost() {
        let with = |buffer, dropped| Limits {
            files: Some(1024),
            buffer: Some(buffer),
            wanted: 1 << 20,
            dropped,
        };
        assert!(fine(&limits(&with(212_992, None))));
        assert!(fine(&limits(&with(212_992, Some(DROPPED - 1)))));
        assert!(fine(&limits(&with(1 << 20, Some(5000)))));
        let check = limits(&with(212_992, Some(5000)));
        assert_eq!(check.verdict, Verdict::Note);
        assert!(check.found.contains("5000 packets lost"));
        assert!(check.advice[0].contains("net.core.rmem_max=1048576"));
    }

    #[test]
    fn few_open_files_are_noted_with_both_ways_to_have_more() {
        let check = limits(&Limits {
            files: Some(256),
            ..Limits::default()
        });
        assert_eq!(check.verdict, Verdict::Note);
        assert!(check.advice[0].contains("LimitNOFILE") && check.advice[1].contains("ulimit -n"));
    }
}
