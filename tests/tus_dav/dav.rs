//! Plain PUT of one file and of many: to nginx as it is, and to a server that does what tests want.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use tributary::upload::{Files, Outcome, UploadError};

use crate::Bench;
use crate::bench::HOST;
use crate::evil_origin::sha256;
use crate::targets::{Fault, MemoryDav, NginxDav, Seen};

const KIB: usize = 1 << 10;

/// Names that have been somebody's trouble.
fn names() -> Vec<String> {
    let odd = [
        "with space",
        "100%",
        "a#b",
        "a?b=c&d",
        "%2e%2e",
        "\u{fc}n\u{ef}c\u{f6}d\u{e9}\u{1f600}",
        "a;b,c+d",
        "-rf",
        "...",
        "quote\"'<>",
    ];
    let mut names: Vec<String> = odd.iter().map(|name| (*name).to_owned()).collect();
    names.push("x".repeat(250));
    names.extend((0..20).map(|n| format!("sub {}/deeper#{}/file{n}", n % 3, n % 2)));
    names
}

fn nginx(bench: &Bench, more: &str) -> (NginxDav, String) {
    // Free now, and nobody else's for so long as it takes nginx to take it.
    let address = Bench::listener().local_addr().unwrap();
    let server = NginxDav::with(Command::new("nginx"), address, &bench.issued, more);
    (server, format!("https://{HOST}:{}/", address.port()))
}

/// Every file of the source is at the server, with its content, and nothing else is.
#[track_caller]
fn assert_same_files(source: &Path, stored: &Path) {
    let all = |root: &Path| {
        let listing = tributary::upload::list(root).unwrap();
        let read = |name: &String| sha256(&fs::read(root.join(name)).unwrap());
        let files = listing
            .items
            .iter()
            .map(|item| (item.name.clone(), read(&item.name)));
        files.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(all(source), all(stored));
}

fn summary(outcome: &Outcome) -> (u64, u64, u64) {
    let files = outcome.files.as_ref().unwrap();
    (files.sent, files.same, files.left_out_count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_goes_to_nginx_whatever_its_files_are_called_and_a_second_run_sends_nothing() {
    let bench = Bench::new(3);
    for (n, name) in names().iter().enumerate() {
        bench.file(name, [0, 1, 40 * KIB, 700 * KIB][n % 4] + n);
    }
    bench.file("empty", 0);
    let (server, root) = nginx(&bench, "");
    let target = format!("{root}new/photos 2026/");
    let outcome = bench.put(&bench.source(), &target).await.unwrap();
    let count = names().len() as u64 + 1;
    assert_eq!(summary(&outcome), (count, 0, 0), "{:?}", outcome.files);
    let stored = server.files().join("new/photos 2026");
    assert_same_files(&bench.source(), &stored);
    let heads = server
        .requests()
        .iter()
        .filter(|line| line.starts_with("HEAD"))
        .count();
    assert_eq!(heads, 0, "nothing can be in a directory that was made just now");

    let outcome = bench.put(&bench.source(), &target).await.unwrap();
    assert_eq!(summary(&outcome), (0, count, 0), "{:?}", outcome.files);
    assert_eq!(outcome.resumed, outcome.bytes);
    let puts = server
        .requests()
        .iter()
        .filter(|line| line.starts_with("PUT"))
        .count();
    assert_eq!(puts as u64, count, "each was sent once");

    bench.file("empty", 9);
    let outcome = bench.put(&bench.source(), &target).await.unwrap();
    assert_eq!(summary(&outcome), (1, count - 1, 0), "{:?}", outcome.files);
    assert_same_files(&bench.source(), &stored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_file_goes_to_a_name_or_into_a_directory() {
    let bench = Bench::new(2);
    let path = bench.file("a b.bin", 300 * KIB);
    let (server, root) = nginx(&bench, "");
    let outcome = bench.put(&path, &format!("{root}other%20name")).await.unwrap();
    assert_eq!((outcome.files, outcome.note), (None, None));
    let outcome = bench.put(&path, &root).await.unwrap();
    assert_eq!(outcome.place, format!("{root}a%20b.bin"));
    for name in ["other name", "a b.bin"] {
        assert_eq!(
            fs::read(server.files().join(name)).unwrap(),
            fs::read(&path).unwrap()
        );
    }
    let again = bench.put(&path, &root).await.unwrap();
    assert_eq!(again.resumed, again.bytes);
    assert!(again.note.unwrap().contains("already"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nginx_refuses_is_told() {
    let bench = Bench::new(2);
    bench.file("large", 80 * KIB);
    bench.file("small", 8 * KIB);
    let (_server, root) = nginx(&bench, "client_max_body_size 20k;");
    let outcome = bench.put(&bench.source(), &root).await.unwrap();
    assert_eq!(summary(&outcome), (1, 0, 1));
    let Files { left_out, .. } = outcome.files.unwrap();
    assert_eq!(left_out[0].0, "large");
    assert!(
        left_out[0].1.contains("413") && left_out[0].1.contains("client_max_body_size"),
        "{left_out:?}"
    );

    let (_server, root) = nginx(&bench, "limit_except GET { deny all; }");
    let error = bench.put(&bench.source(), &root).await.unwrap_err();
    assert!(matches!(error, UploadError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("rights"), "{error}");

    let (server, root) = nginx(&bench, "auth_basic x; auth_basic_user_file users;");
    // Next to its configuration; nginx reads it at each request.
    fs::write(
        server.files().parent().unwrap().join("users"),
        "me:{PLAIN}s p%c\n",
    )
    .unwrap();
    let error = bench.put(&bench.source(), &root).await.unwrap_err();
    assert!(error.to_string().contains("USER:PASSWORD"), "{error}");
    let with = root.replace("https://", "https://me:s%20p%25c@");
    let outcome = bench.put(&bench.source(), &with).await.unwrap();
    assert_eq!(summary(&outcome), (2, 0, 0));
    assert!(!outcome.place.contains("s%20p"), "{}", outcome.place);
    assert_same_files(&bench.source(), &server.files());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_listings_is_asked_for_one_and_for_no_file() {
    let bench = Bench::new(2);
    for name in names() {
        bench.file(&name, 3 * KIB);
    }
    let server = MemoryDav::start(Bench::listener(), &bench.issued, true, Arc::new(|_| None));
    let target = format!("https://{HOST}:{}/x/y/", server.port);
    let count = names().len() as u64;
    let outcome = bench.put(&bench.source(), &target).await.unwrap();
    assert_eq!(summary(&outcome), (count, 0, 0), "{:?}", outcome.files);
    let outcome = bench.put(&bench.source(), &target).await.unwrap();
    assert_eq!(
        summary(&outcome),
        (0, count, 0),
        "by the MD5 that its ETags are: {:?}",
        outcome.files
    );
    let seen = server.seen();
    let of = |method: &str| seen.iter().filter(|seen| seen.method.as_str() == method).count();
    assert_eq!((of("HEAD"), of("PUT") as u64), (0, count));
    // Those with names of more than one character in them, each once.
    assert_eq!(
        of("MKCOL"),
        1 + 2 + 9,
        "{:?}",
        seen.iter()
            .filter(|s| s.method == "MKCOL")
            .map(|s| &s.path)
            .collect::<Vec<_>>()
    );
}

fn memory(
    bench: &Bench,
    faults: impl Fn(&Seen) -> Option<Fault> + Send + Sync + 'static,
) -> (MemoryDav, String) {
    let server = MemoryDav::start(Bench::listener(), &bench.issued, false, Arc::new(faults));
    let root = format!("https://{HOST}:{}/", server.port);
    (server, root)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_32_puts_that_break_or_fail_are_sent_again_and_the_files_are_right() {
    let bench = Bench::new(3);
    for n in 0..24 {
        bench.file(&format!("f{n}"), 200 * KIB + n);
    }
    let (server, root) = memory(&bench, |seen| match (seen.method.as_str(), seen.nth) {
        ("PUT", 2 | 13 | 19) => Some(Fault::BreakAfter(60_000)),
        ("PUT", 5 | 16 | 22) => Some(Fault::LoseAnswer),
        ("PUT", 8 | 25) => Some(Fault::Answer(500, vec![], "")),
        ("PUT", 11) => Some(Fault::Answer(503, vec![("retry-after", "1".into())], "")),
        _ => None,
    });
    let outcome = bench.put(&bench.source(), &root).await.unwrap();
    assert_eq!(summary(&outcome), (24, 0, 0), "{:?}", outcome.files);
    for (path, content) in server.files() {
        assert_eq!(
            content,
            fs::read(bench.source().join(&path[1..])).unwrap(),
            "{path}"
        );
    }
    assert_eq!(server.files().len(), 24);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_never_gets_through_is_left_out_and_the_others_are_not() {
    let bench = Bench::new(2);
    for name in ["a", "b", "c", "unlucky", "refused", "zz"] {
        bench.file(name, 100 * KIB);
    }
    let (server, root) = memory(&bench, |seen| match (seen.method.as_str(), seen.path.as_str()) {
        ("PUT", "/unlucky") => Some(Fault::Answer(500, vec![], "")),
        ("PUT", "/refused") => Some(Fault::Answer(403, vec![], "")),
        _ => None,
    });
    let outcome = bench.put(&bench.source(), &root).await.unwrap();
    assert_eq!(summary(&outcome), (4, 0, 2), "{:?}", outcome.files);
    let left: Vec<_> = outcome.files.unwrap().left_out;
    assert!(left[0].0 == "refused" && left[0].1.contains("403"), "{left:?}");
    assert!(left[1].0 == "unlucky" && left[1].1.contains("500"), "{left:?}");
    assert_eq!(server.files().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_makes_no_directories_is_tried_all_the_same() {
    let bench = Bench::new(2);
    bench.file("top", KIB);
    bench.file("sub/below", KIB);
    let (server, root) = memory(&bench, |seen| {
        (seen.method.as_str() == "MKCOL").then_some(Fault::Answer(501, vec![], ""))
    });
    let outcome = bench.put(&bench.source(), &root).await.unwrap();
    assert_eq!(summary(&outcome), (1, 0, 1), "{:?}", outcome.files);
    let (name, why) = &outcome.files.unwrap().left_out[0];
    assert_eq!(name, "sub/below");
    assert!(why.contains("MKCOL: 501"), "{why}");
    server.make("/sub/");
    let outcome = bench.put(&bench.source(), &root).await.unwrap();
    assert_eq!(summary(&outcome), (1, 1, 0), "{:?}", outcome.files);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_32_a_redirect_is_followed_within_the_origin_and_never_out_of_it() {
    let bench = Bench::new(2);
    let path = bench.file("f", 50 * KIB);
    let (server, root) = memory(&bench, |seen| match (seen.method.as_str(), seen.path.as_str()) {
        ("PUT", "/f") => Some(Fault::Answer(307, vec![("location", "/g".into())], "")),
        _ => None,
    });
    bench.put(&path, &root).await.unwrap();
    assert_eq!(server.files().keys().collect::<Vec<_>>(), ["/g"]);

    let (server, root) = memory(&bench, |seen| {
        (seen.method.as_str() == "PUT")
            .then(|| Fault::Answer(307, vec![("location", "https://elsewhere.test/f".into())], ""))
    });
    let error = bench.put(&path, &root).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("names an address at https://elsewhere.test"),
        "{error}"
    );
    assert!(server.files().is_empty());

    let (_server, root) = memory(&bench, |seen| {
        (seen.method.as_str() == "PUT").then(|| Fault::Answer(302, vec![("location", "/login".into())], ""))
    });
    let error = bench.put(&path, &root).await.unwrap_err();
    assert!(error.to_string().contains("/login"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changes_while_it_is_read_is_left_out_and_the_others_are_not() {
    let bench = Bench::new(1);
    // More than the way there holds: some of it is read only after the server has heard of it.
    bench.file("changes", 40 << 20);
    bench.file("stays", 100 * KIB);
    let changing = bench.source().join("changes");
    let (server, root) = memory(&bench, move |seen| {
        if seen.method.as_str() == "PUT" && seen.path == "/changes" {
            fs::write(&changing, "other").unwrap();
        }
        None
    });
    let outcome = bench.put(&bench.source(), &root).await.unwrap();
    assert_eq!(summary(&outcome), (1, 0, 1), "{:?}", outcome.files);
    let (name, why) = &outcome.files.unwrap().left_out[0];
    assert!(name == "changes" && why.contains("changed"), "{why}");
    assert_eq!(server.files().keys().collect::<Vec<_>>(), ["/stays"]);
}
