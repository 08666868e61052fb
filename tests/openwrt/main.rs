//! The OpenWrt package and the self-installing archive: what is in them, and what installing, upgrading and removing do to
//! a root such as OpenWrt's. Where `opkg` is in the PATH it does that, else a stand-in.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod pack;
mod root;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use nix::unistd::geteuid;
use pack::{archive, content, gunzip, ipk, members, newer, pack, pack_for, stripped};
use root::{Root, program, say, text};

#[test]
fn the_package_holds_what_a_router_needs_and_nothing_else() {
    let outer = members(&fs::read(ipk()).unwrap(), &["-z"]);
    let names: Vec<&str> = outer.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["./debian-binary", "./data.tar.gz", "./control.tar.gz"]);
    assert_eq!(content(&fs::read(ipk()).unwrap(), "./debian-binary"), b"2.0\n");

    let data = content(&fs::read(ipk()).unwrap(), "./data.tar.gz");
    let files: BTreeMap<String, String> = members(&data, &["-z"])
        .into_iter()
        .inspect(|member| assert_eq!(member.owner, "0/0", "{}", member.name))
        .map(|member| (member.name, member.mode))
        .filter(|(name, _)| !name.ends_with('/'))
        .collect();
    let expected = [
        ("./etc/init.d/tributary", "-rwxr-xr-x"),
        ("./etc/tributary/tributary.toml", "-rw-r--r--"),
        ("./lib/upgrade/keep.d/tributary", "-rw-r--r--"),
        ("./usr/bin/tributary", "-rwxr-xr-x"),
        ("./usr/share/doc/tributary/LICENSE-APACHE.gz", "-rw-r--r--"),
        ("./usr/share/doc/tributary/LICENSE-MIT.gz", "-rw-r--r--"),
        ("./usr/share/doc/tributary/THIRD-PARTY.txt.gz", "-rw-r--r--"),
    ];
    let expected: BTreeMap<String, String> = expected
        .map(|(name, mode)| (name.to_owned(), mode.to_owned()))
        .into();
    assert_eq!(files, expected);
    assert_eq!(
        content(&data, "./usr/bin/tributary"),
        fs::read(stripped()).unwrap(),
        "the binary is another"
    );
}

#[test]
fn the_package_says_what_opkg_asks() {
    let control = content(&fs::read(ipk()).unwrap(), "./control.tar.gz");
    let modes: Vec<(String, String)> = members(&control, &["-z"])
        .into_iter()
        .map(|member| (member.name, member.mode))
        .filter(|(name, _)| name != "./")
        .collect();
    let script = "-rwxr-xr-x";
    let plain = "-rw-r--r--";
    let expected = [
        ("./conffiles", plain),
        ("./control", plain),
        ("./postinst", script),
        ("./postrm", script),
        ("./preinst", script),
        ("./prerm", script),
    ];
    assert_eq!(
        modes,
        expected.map(|(name, mode)| (name.to_owned(), mode.to_owned()))
    );
    assert_eq!(
        content(&control, "./conffiles"),
        b"/etc/tributary/tributary.toml\n"
    );

    let fields = text(&content(&control, "./control"));
    let size = gunzip(&content(&fs::read(ipk()).unwrap(), "./data.tar.gz")).len();
    for field in [
        "Package: tributary",
        concat!("Version: ", env!("CARGO_PKG_VERSION"), "-1"),
        "Architecture: all",
        "Require-User: tributary:tributary",
        "License: MIT OR Apache-2.0",
        &format!("Installed-Size: {size}"),
    ] {
        assert!(
            fields.lines().any(|line| line == field),
            "`{field}` is missing in:\n{fields}"
        );
    }
    assert!(!fields.contains("Depends:"), "a static binary depends on nothing");
}

#[test]
fn packed_again_elsewhere_it_is_the_same_to_the_byte() {
    let small = tempfile::NamedTempFile::new().unwrap();
    fs::write(&small, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&small, PermissionsExt::from_mode(0o700)).unwrap();
    let made = || {
        let dist = tempfile::tempdir().unwrap();
        for what in ["ipk", "tar"] {
            pack(what, dist.path(), small.path());
        }
        let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(dist.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                (
                    entry.file_name().into_string().unwrap(),
                    fs::read(entry.path()).unwrap(),
                )
            })
            .collect();
        files.sort();
        files
    };
    let first = made();
    assert_eq!(first.len(), 2);
    assert!(first == made(), "the bytes differ");
}

#[test]
fn installed_it_starts_upgraded_it_restarts_removed_it_is_gone_but_for_its_key() {
    let Some(root) = router() else { return };
    let real = program("opkg").is_some();
    say(&format!(
        "opkg: {}",
        if real { "this machine's" } else { "a stand-in" }
    ));
    fs::copy(ipk(), root.path("tmp/tributary.ipk")).unwrap();
    fs::copy(newer(), root.path("tmp/newer.ipk")).unwrap();
    let before = USERS.map(|file| root.read(file));

    root.done("opkg install /tmp/tributary.ipk");
    started(&root.told());
    assert!(enabled(&root));
    for (file, before) in USERS.iter().zip(&before) {
        let now = root.read(file);
        assert!(now.starts_with(before.as_str()), "{file} lost something:\n{now}");
        assert_eq!(ours_in(&now).count(), 1, "{file}:\n{now}");
    }
    let passwd = root.read("etc/passwd");
    let user: Vec<&str> = ours_in(&passwd).next().unwrap().split(':').collect();
    assert_eq!(user.last(), Some(&"/bin/false"));
    let state = root.path("etc/tributary/state").metadata().unwrap();
    assert_eq!(state.mode() & 0o777, 0o700);
    if geteuid().is_root() {
        assert_eq!(
            [state.uid().to_string(), state.gid().to_string()],
            [user[2], user[3]]
        );
    }

    // What the program and its owner write; of configurations that were changed only the real one knows.
    root.write("etc/tributary/state/identity.key", "secret");
    let own = "[lan]\npeers = [\"192.168.1.7\"]\n";
    if real {
        root.write("etc/tributary/tributary.toml", own);
    }
    let kept = root.done(KEPT);
    for file in ["tributary.toml", "state/identity.key"] {
        assert!(
            kept.contains(&format!("/etc/tributary/{file}\n")),
            "{file} is lost by a sysupgrade: {kept}"
        );
    }
    root.done("opkg install /tmp/newer.ipk");
    let told = root.told();
    assert_eq!(
        told.first().map(String::as_str),
        Some("kill tributary"),
        "{told:?}"
    );
    started(&told[1..]);
    assert!(enabled(&root));
    assert_eq!(root.read("etc/passwd"), passwd);
    assert!(!real || root.read("etc/tributary/tributary.toml") == own);
    assert!(root.read("usr/lib/opkg/info/tributary.control").contains("-2\n"));

    let said = root.done("opkg remove tributary");
    assert_eq!(root.told(), ["kill tributary"]);
    assert!(said.contains("rm -r /etc/tributary"), "{said}");
    assert_eq!(root.done(REMAINS), "");
    assert_eq!(root.read("etc/tributary/state/identity.key"), "secret");

    // The same device again.
    root.done("opkg install /tmp/tributary.ipk");
    started(&root.told());
    assert_eq!(root.read("etc/tributary/state/identity.key"), "secret");
    assert_eq!(root.read("etc/passwd"), passwd);
}

#[test]
fn in_an_image_it_is_enabled_and_not_started() {
    let Some(root) = Root::new() else { return };
    // As an image builder does it: unpacked and listed, the scripts run on the building machine.
    let data = content(&fs::read(ipk()).unwrap(), "./data.tar.gz");
    let control = content(&fs::read(ipk()).unwrap(), "./control.tar.gz");
    let info = "usr/lib/opkg/info/tributary";
    for script in ["preinst", "postinst", "prerm", "control"] {
        root.write(
            &format!("{info}.{script}"),
            &text(&content(&control, &format!("./{script}"))),
        );
    }
    root.write(
        "etc/init.d/tributary",
        &text(&content(&data, "./etc/init.d/tributary")),
    );
    root.write(
        &format!("{info}.list"),
        "/usr/bin/tributary\n/etc/init.d/tributary\n",
    );
    let script = |name: &str| {
        let path = root.path(&format!("{info}.{name}"));
        let ran = Command::new("sh")
            .arg(path)
            .env("IPKG_INSTROOT", root.path(""))
            .output()
            .unwrap();
        assert!(ran.status.success(), "{name}: {}", text(&ran.stderr));
    };
    script("preinst");
    script("postinst");
    assert!(enabled(&root));
    assert_eq!(ours_in(&root.read("etc/passwd")).count(), 1);
    assert_eq!(root.told(), [""; 0], "procd of the building machine was told");
    script("prerm");
    assert!(!enabled(&root));
}

#[test]
fn a_machine_that_cannot_run_it_is_refused_with_the_name_of_what_it_takes() {
    let Some(root) = Root::new() else { return };
    let small = tempfile::NamedTempFile::new().unwrap();
    fs::set_permissions(&small, PermissionsExt::from_mode(0o755)).unwrap();
    let dist = tempfile::tempdir().unwrap();
    for (target, machine, features, takes_it) in [
        ("x86_64-unknown-linux-musl", "x86_64", "", true),
        ("x86_64-unknown-linux-musl", "i686", "", false),
        ("aarch64-unknown-linux-musl", "aarch64", "", true),
        ("aarch64-unknown-linux-musl", "mips", "", false),
        (
            "armv7-unknown-linux-musleabihf",
            "armv7l",
            "half vfp neon vfpv3",
            true,
        ),
        ("armv7-unknown-linux-musleabihf", "armv7l", "half edsp", false),
        ("armv7-unknown-linux-musleabihf", "armv6l", "half vfp", false),
        ("arm-unknown-linux-musleabihf", "armv6l", "half vfp", true),
        ("arm-unknown-linux-musleabihf", "armv7l", "half vfp vfpv3", true),
        ("arm-unknown-linux-musleabihf", "armv5tel", "half", false),
    ] {
        let package = pack_for(target, "ipk", dist.path(), small.path());
        let control = content(&fs::read(package).unwrap(), "./control.tar.gz");
        root.write("tmp/preinst", &text(&content(&control, "./preinst")));
        root.write("proc/cpuinfo", &format!("Features\t: {features}\n"));
        let ran = root.run(&format!("uname() {{ echo {machine}; }}; . /tmp/preinst"));
        let said = text(&ran.stderr);
        assert_eq!(
            ran.status.success(),
            takes_it,
            "{target} on {machine} ({features}): {said}"
        );
        assert!(takes_it || said.starts_with("tributary: "), "{said}");
    }
    fs::remove_file(root.path("lib/functions.sh")).unwrap();
    let ran = root.run("/bin/sh /tmp/preinst");
    assert!(text(&ran.stderr).contains("not OpenWrt"), "{}", text(&ran.stderr));
}

#[test]
fn a_configuration_that_is_wrong_neither_starts_nor_reloads() {
    let Some(root) = router() else { return };
    fs::copy(ipk(), root.path("tmp/tributary.ipk")).unwrap();
    root.done("opkg install /tmp/tributary.ipk");
    root.told();
    root.done("/etc/init.d/tributary reload");
    assert_eq!(root.told(), ["signal tributary * HUP"]);

    root.write("etc/tributary/tributary.toml", "[lan]\nport = 99999999\n");
    for (verb, succeeds) in [("start", true), ("reload", false)] {
        let ran = root.run(&format!("/etc/init.d/tributary {verb}"));
        assert_eq!(ran.status.success(), succeeds, "{verb}");
        assert!(
            text(&ran.stderr).contains("tributary.toml"),
            "{}",
            text(&ran.stderr)
        );
    }
    assert_eq!(root.told(), [""; 0]);
}

#[test]
fn the_archive_installs_itself_on_openwrt_and_goes_again() {
    let Some(root) = router() else { return };
    fs::copy(archive(), root.path("tmp/tributary.tar.gz")).unwrap();
    let before = USERS.map(|file| root.read(file));
    root.done("cd /tmp && tar -xzf tributary.tar.gz && mv tributary-* unpacked && unpacked/install");
    assert_eq!(root.told().first().map(String::as_str), Some("kill tributary"));
    assert!(enabled(&root));
    root.write("etc/tributary/tributary.toml", "# mine\n");
    root.write("etc/tributary/state/identity.key", "secret");

    root.done("/tmp/unpacked/install");
    let told = root.told();
    started(&told[1..]);
    root.done("/tmp/unpacked/install remove");
    assert_eq!(root.told(), ["kill tributary"]);
    assert_eq!(root.done(REMAINS), "");
    assert_eq!(root.read("etc/tributary/tributary.toml"), "# mine\n");
    assert!(root.has("etc/tributary/state/identity.key"));

    root.done("/tmp/unpacked/install purge");
    assert!(!root.has("etc/tributary"));
    assert_eq!(USERS.map(|file| root.read(file)), before);

    let ran = root.run("/tmp/unpacked/install now");
    assert!(
        text(&ran.stderr).contains("`now`: install, remove or purge"),
        "{}",
        text(&ran.stderr)
    );
    root.write("usr/lib/opkg/info/tributary.control", "");
    let ran = root.run("/tmp/unpacked/install");
    assert!(
        text(&ran.stderr).contains("installed as a package"),
        "{}",
        text(&ran.stderr)
    );
}

#[test]
fn where_nothing_starts_services_the_archive_says_how_to() {
    let Some(root) = router() else { return };
    fs::remove_file(root.path("etc/openwrt_release")).unwrap();
    fs::copy(archive(), root.path("tmp/tributary.tar.gz")).unwrap();
    root.done("cd /tmp && tar -xzf tributary.tar.gz && mv tributary-* unpacked");
    root.write(
        "usr/bin/useradd",
        "#!/bin/sh\necho \"$6:x:999:999::/:/bin/false\" >>/etc/passwd\n",
    );
    root.done("chmod 755 /usr/bin/useradd");
    let said = root.done("/tmp/unpacked/install");
    assert!(said.contains("tributary run --state-dir"), "{said}");
    root.done("tributary check-config");
    assert_eq!(ours_in(&root.read("etc/passwd")).count(), 1);

    root.write("tmp/unpacked/tributary", "\x7fELF");
    let ran = root.run("/tmp/unpacked/install");
    assert!(
        text(&ran.stderr).contains("another processor"),
        "{}",
        text(&ran.stderr)
    );
}

const USERS: [&str; 3] = ["etc/passwd", "etc/group", "etc/shadow"];
/// Lists what a sysupgrade keeps, as its manual describes the lists in that directory.
const KEPT: &str = "find $(sed '/^#/d' /lib/upgrade/keep.d/*) -type f";
/// Finds what a removal may not leave.
const REMAINS: &str = "find /etc/rc.d /etc/init.d /usr /lib /var -name '*tributary*'";

/// A root in which the dev-built binary runs.
fn router() -> Option<Root> {
    let root = Root::new()?;
    root.bring_libraries(stripped());
    Some(root)
}

fn enabled(root: &Root) -> bool {
    ["S95", "K10"].map(|when| root.has(&format!("etc/rc.d/{when}tributary"))) == [true; 2]
}

fn ours_in(users: &str) -> impl Iterator<Item = &str> {
    users.lines().filter(|line| line.starts_with("tributary:"))
}

/// procd was told to start it, once, and nothing else.
fn started(told: &[String]) {
    let command = "command /usr/bin/tributary run --state-dir /etc/tributary/state";
    assert_eq!(told.first().map(String::as_str), Some("instance"), "{told:?}");
    assert_eq!(told.last().map(String::as_str), Some("end"), "{told:?}");
    for expected in [command, "user tributary", "group tributary", "term_timeout 10"] {
        assert_eq!(
            told.iter().filter(|line| *line == expected).count(),
            1,
            "{expected}: {told:?}"
        );
    }
}
