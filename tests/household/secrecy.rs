//! What the LAN shows of what a household fetches: nothing by which anybody could tell what it is.

use super::lab::{Lab, figure};
use super::*;

/// What the file is called where it is fetched, and where it is offered.
const FETCHED: &str = "a-film-by-its-name";
const OFFERED: &str = "letters-to-the-tax-office";

#[test]
fn the_lan_shows_no_url_no_file_name_no_digest_and_no_content() {
    let Some(lab) = Lab::new() else { return };
    let lab = household(lab, &["ann", "bob"], 50.0);
    let origin = lab.origin("origin.lab");
    let recorder = lab.record_lan();
    let _daemons = members(&lab, &["ann", "bob"]);
    let (ann, bob) = (lab.at("ann"), lab.at("bob"));
    for (peer, from) in [(ann, "the origin"), (bob, "a member")] {
        let done = right(
            peer,
            &origin,
            "1MiB",
            FETCHED,
            &mut get(peer, &origin, "1MiB", FETCHED),
        );
        assert_eq!(from_members(&done) > 0, from == "a member", "{from}");
    }
    let content = fs::read(ann.directory().join(FETCHED)).unwrap();
    fs::write(ann.directory().join(OFFERED), b"dear tax office").unwrap();
    ann.run("share", ann.tributary(&["share", OFFERED, "-q"])).ok();
    let listed = bob.run("shared", bob.tributary(&["shared"])).ok();
    assert!(listed.stdout.contains(OFFERED), "{}", listed.stdout);
    let frames = recorder.frames();

    let url = origin.url("1MiB");
    let topic = tributary::share::Topic::of(&url::Url::parse(&url).unwrap(), None);
    let digest = ring::digest::digest(&ring::digest::SHA256, &content);
    let as_text = origin.sha256("1MiB");
    let secrets: [(&str, &[u8]); 9] = [
        ("the URL", url.as_bytes()),
        ("its path", url.rsplit_once("origin.lab").unwrap().1.as_bytes()),
        ("the name of a fetched file", FETCHED.as_bytes()),
        ("the name of an offered file", OFFERED.as_bytes()),
        ("the content", &content[4096..4128]),
        ("the offered content", b"dear tax office"),
        ("the digest", digest.as_ref()),
        ("the digest as text", as_text.as_bytes()),
        ("the hash of the URL", &topic.url.unwrap()),
    ];
    for (what, secret) in secrets {
        assert!(!is_in(&frames, secret), "{what} is in a frame on the LAN");
    }
    // What is open to all is found by the same look: the recording is one.
    assert!(is_in(&frames, b"_tributary"));
    figure(format_args!(
        "household: {} frames on the LAN while two fetched and one offered: no URL, name, digest or content in any",
        frames.len()
    ));
}

fn is_in(frames: &[Vec<u8>], bytes: &[u8]) -> bool {
    let holds = |frame: &Vec<u8>| frame.windows(bytes.len()).any(|window| window == bytes);
    frames.iter().any(holds)
}
