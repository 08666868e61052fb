//! How a download or an upload is shown: bars on a terminal, plain lines elsewhere, JSON for scripts, or nothing.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::api::{Done, Failed, FilesDone, LaneProgress, Progress, Reply, SCHEME, Transfer};
use crate::types::{ByteSize, Rate};
use crate::upload::Stop;

/// As often as the eye follows.
const REDRAW_EVERY: Duration = Duration::from_millis(200);
/// Between two plain lines: a log of an hour's download stays readable.
const PLAIN_EVERY: Duration = Duration::from_secs(3);
/// Between two JSON objects.
const JSON_EVERY: Duration = Duration::from_millis(500);
/// More lanes than this are summed up in one line: a terminal has 24.
const MAX_LANE_LINES: usize = 16;
/// More members are summed up.
const MAX_MEMBERS: usize = 4;
/// More files that were left out are counted only; `--json` has some more.
const MAX_LEFT_OUT: usize = 10;

/// Shows one download or upload.
#[derive(Debug)]
pub(super) struct Show {
    form: Form,
    /// When something was last said, for what is not a terminal.
    said: Option<Instant>,
}

#[derive(Debug)]
enum Form {
    Bars(Bars),
    Plain,
    Json,
    Quiet,
}

impl Show {
    /// JSON or nothing where that was asked for; else bars where standard error is a terminal.
    pub(super) fn new(json: bool, quiet: bool) -> Self {
        let form = match (json, quiet) {
            (true, _) => Form::Json,
            (_, true) => Form::Quiet,
            _ if std::io::stderr().is_terminal() => Form::Bars(Bars::new()),
            _ => Form::Plain,
        };
        Self { form, said: None }
    }

    /// Plain lines or bars, whatever the terminal is.
    pub(super) fn with_bars(bars: bool) -> Self {
        Self {
            form: if bars {
                Form::Bars(Bars::new())
            } else {
                Form::Plain
            },
            said: None,
        }
    }

    /// How far it is.
    pub(super) fn progress(&mut self, progress: &Progress) {
        let due = |every| self.said.is_none_or(|t| t.elapsed() >= every);
        match &mut self.form {
            Form::Bars(bars) => bars.update(progress),
            Form::Plain if due(PLAIN_EVERY) => {
                if self.said.is_some() || progress.done > 0 {
                    eprintln!("{}", plain(progress));
                }
                self.said = Some(Instant::now());
            }
            Form::Json if due(JSON_EVERY) => {
                json(&Reply::Progress(progress.clone()));
                self.said = Some(Instant::now());
            }
            Form::Plain | Form::Json | Form::Quiet => {}
        }
    }

    /// So much of standard input was read, which comes before anything is sent.
    pub(super) fn reading(&mut self, bytes: u64) {
        match &mut self.form {
            Form::Bars(bars) => bars.update(&Progress {
                name: Some("reading standard input".into()),
                done: bytes,
                upload: true,
                ..Progress::default()
            }),
            Form::Plain if self.said.is_none_or(|t| t.elapsed() >= PLAIN_EVERY) => {
                if self.said.is_some() {
                    eprintln!("reading standard input: {} so far", ByteSize(bytes));
                }
                self.said = Some(Instant::now());
            }
            Form::Plain | Form::Json | Form::Quiet => {}
        }
    }

    /// Something the user should know meanwhile.
    pub(super) fn news(&self, text: &str) {
        if !matches!(self.form, Form::Quiet) {
            eprintln!("tributary: {text}");
        }
    }

    /// Takes the bars away, for what is printed next.
    pub(super) fn clear(&mut self) {
        if let Form::Bars(bars) = &mut self.form {
            bars.clear();
        }
    }

    /// How it ended, and with which exit code this command does.
    pub(super) fn end(&mut self, result: &Result<Done, Failed>) -> ExitCode {
        match result {
            Ok(done) => {
                self.done(done);
                ExitCode::SUCCESS
            }
            Err(failed) => {
                self.failed(failed);
                ExitCode::from(failed.code)
            }
        }
    }

    /// It is done.
    pub(super) fn done(&mut self, done: &Done) {
        self.clear();
        match self.form {
            Form::Bars(_) | Form::Plain => println!("{}", summary(done)),
            Form::Json => json(&Reply::Done(done.clone())),
            Form::Quiet => {}
        }
    }

    /// What an unfinished upload left at its target is removed.
    pub(super) fn removed(&mut self, done: &Done) {
        self.clear();
        let target = done.target.as_deref().unwrap_or_default();
        let note = done
            .note
            .as_deref()
            .unwrap_or("nothing of an unfinished upload is left there");
        match self.form {
            Form::Bars(_) | Form::Plain => println!("{target}: {note}"),
            Form::Json => json(&Reply::Done(done.clone())),
            Form::Quiet => {}
        }
    }

    /// It failed.
    pub(super) fn failed(&mut self, failed: &Failed) {
        self.clear();
        if matches!(self.form, Form::Json) {
            json(&Reply::Failed(failed.clone()));
        }
        eprintln!("tributary: {}", failed.message);
    }
}

/// Shows a transfer until it ends; by `stop` it is stopped, resumably or not.
pub(super) async fn follow(mut transfer: Transfer, show: &mut Show, stop: &Stop) -> Result<Done, Failed> {
    let mut every = tokio::time::interval(REDRAW_EVERY);
    loop {
        tokio::select! {
            outcome = &mut transfer.outcome => return outcome,
            _ = every.tick() => {
                let now = transfer.progress.borrow().clone();
                show.progress(&now);
            }
            () = stop.stop.cancelled(), if !transfer.stop.is_cancelled() => transfer.stop.cancel(),
            () = stop.abort.cancelled(), if !transfer.abort.is_cancelled() => transfer.abort.cancel(),
        }
    }
}

fn json(reply: &Reply) {
    // Plain data without maps that could fail.
    if let Ok(line) = serde_json::to_string(reply) {
        println!("{line}");
    }
}

/// One line for a log.
fn plain(progress: &Progress) -> String {
    let name = progress.name.clone();
    let name = name.unwrap_or_else(|| format!("({})", asking(progress)));
    let done = ByteSize(progress.done);
    let sent = if progress.upload { " sent" } else { "" };
    // What is only read here, to be offered, needs no lane.
    let rate = if progress.lanes.is_empty() {
        String::new()
    } else {
        format!(", {} {}", Rate::bits(progress.rate), ways(progress))
    };
    match progress.total.filter(|&t| t > 0) {
        Some(total) => {
            let percent = progress.done as f64 * 100.0 / total as f64;
            format!(
                "{name}: {percent:.0} %, {done} of {}{sent}{rate}",
                ByteSize(total)
            )
        }
        None => format!("{name}: {done}{sent}{rate}"),
    }
}

/// What brings something now.
fn ways(progress: &Progress) -> String {
    let busy = |household| {
        let lanes = progress.lanes.iter();
        lanes.filter(|l| l.rate > 0 && l.household == household).count()
    };
    match (busy(false), busy(true)) {
        (lanes, 0) => format!("over {}", count(lanes, "lane")),
        (0, members) => format!("from {}", count(members, "member")),
        (lanes, members) => format!(
            "over {} and from {}",
            count(lanes, "lane"),
            count(members, "member")
        ),
    }
}

fn count(n: usize, what: &str) -> String {
    match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}

/// What is done before anything is known.
const fn asking(progress: &Progress) -> &'static str {
    if progress.upload {
        "asking the server"
    } else {
        "asking the origin"
    }
}

/// What a finished download or upload tells, or the offering of a file.
pub(super) fn summary(done: &Done) -> String {
    if let Some(shared) = &done.shared {
        return format!(
            "{}: {} offered to the household as {}, SHA-256\n  {}\n  to get it: tributary get {SCHEME}{}",
            done.path.display(),
            ByteSize(shared.bytes),
            shared.name,
            shared.sha256,
            quoted(&shared.name)
        );
    }
    let seconds = done.elapsed;
    let mut text = done.path.display().to_string();
    if let Some(target) = &done.target {
        text += &format!(" to {target}");
    }
    text += &format!(
        ": {} in {seconds:.1} s, {} on average",
        ByteSize(done.bytes),
        Rate::bits(done.rate)
    );
    if done.resumed > 0 {
        let came = if done.target.is_some() {
            "was sent in an earlier run"
        } else {
            "came from an earlier run"
        };
        text += &format!("\n  {} of it {came}", ByteSize(done.resumed));
    }
    let brought: u64 = done.lanes.iter().map(|l| l.bytes).sum();
    for lane in done.lanes.iter().filter(|l| l.bytes > 0) {
        let share = lane.bytes as f64 * 100.0 / brought as f64;
        text += &format!(
            "\n  {:<32} {:>10}  {share:>3.0} %",
            lane_name(lane),
            ByteSize(lane.bytes)
        );
    }
    if done.duplicated > 0 {
        let carried = if done.target.is_some() { "sent" } else { "fetched" };
        text += &format!("\n  {carried} twice: {}", ByteSize(done.duplicated));
    }
    if !done.members.is_empty() {
        text += &format!("\n  {}", by_members(done));
    }
    if let Some(member) = &done.attested {
        text +=
            &format!("\n  as {member} has it: members vouch for it; a checksum (--sha256) would prove it");
    }
    let used = done.lanes.iter().filter(|l| l.bytes > 0 && !l.household).count();
    if let (Some(best), Some(speedup)) = (done.best_single, done.speedup)
        && used > 1
    {
        text += &format!(
            "\n  {speedup:.1} times the best single lane ({})",
            Rate::bits(best)
        );
    }
    if let Some(files) = &done.files {
        text += &many(files);
    }
    if let Some(note) = &done.note {
        text += &format!("\n  {note}");
    }
    text
}

/// What members brought, what the internet, and what that saved.
fn by_members(done: &Done) -> String {
    let mut parts: Vec<String> = done
        .members
        .iter()
        .take(MAX_MEMBERS)
        .map(|member| format!("{} from {}", ByteSize(member.bytes), member.owner))
        .collect();
    let rest = done.members.get(MAX_MEMBERS..).unwrap_or_default();
    if !rest.is_empty() {
        let bytes: u64 = rest.iter().map(|member| member.bytes).sum();
        parts.push(format!(
            "{} from {}",
            ByteSize(bytes),
            count(rest.len(), "other member")
        ));
    }
    let lines = || done.lanes.iter().filter(|l| l.bytes > 0 && !l.household);
    let bytes: u64 = lines().map(|l| l.bytes).sum();
    if bytes > 0 {
        parts.push(format!(
            "{} over {}",
            ByteSize(bytes),
            count(lines().count(), "line")
        ));
    }
    let saved = match done.saved {
        0 => String::new(),
        bytes => format!("; {} of WAN saved", ByteSize(bytes)),
    };
    parts.join(", ") + &saved
}

/// As a shell takes it for one word.
fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-._+,@".contains(c);
    if name.chars().all(plain) {
        name.to_owned()
    } else {
        format!("'{}'", name.replace('\'', "'\\''"))
    }
}

/// What became of many files.
fn many(files: &FilesDone) -> String {
    let one = if files.sent == 1 { "file" } else { "files" };
    let mut text = format!(
        "\n  {} {one} sent, {} there already, {} left out",
        files.sent, files.same, files.left_out
    );
    let shown = files.reasons.iter().take(MAX_LEFT_OUT);
    for left in shown.clone() {
        // Names are of any bytes, and a terminal obeys some.
        let plain = |text: &str| text.replace(char::is_control, "?");
        text += &format!("\n    {}: {}", plain(&left.name), plain(&left.why));
    }
    let more = files.left_out.saturating_sub(shown.len() as u64);
    if more > 0 {
        text += &format!("\n    and {more} more");
    }
    text
}

fn lane_name(lane: &LaneProgress) -> String {
    format!("{}, {}", lane.owner, lane.uplink)
}

/// A bar for the whole and a line for each lane.
#[derive(Debug)]
struct Bars {
    all: MultiProgress,
    whole: ProgressBar,
    lanes: BTreeMap<String, ProgressBar>,
}

impl Bars {
    fn new() -> Self {
        // As often as news come.
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(5));
        let whole = all.add(ProgressBar::new(0));
        whole.set_style(style("{msg:32!} [{bar:24}] {percent:>3} % {prefix}"));
        Self {
            all,
            whole,
            lanes: BTreeMap::new(),
        }
    }

    fn update(&mut self, progress: &Progress) {
        self.whole
            .set_message(progress.name.clone().unwrap_or_else(|| asking(progress).into()));
        self.whole.set_length(progress.total.unwrap_or_default());
        self.whole.set_position(progress.done);
        self.whole.set_prefix(format!(
            "{} {}",
            ByteSize(progress.done),
            Rate::bits(progress.rate)
        ));
        let brought: u64 = progress.lanes.iter().map(|l| l.bytes).sum();
        for lane in progress.lanes.iter().take(MAX_LANE_LINES) {
            let name = lane_name(lane);
            let bar = self.lanes.entry(name.clone()).or_insert_with(|| {
                let bar = self.all.add(ProgressBar::new(0));
                bar.set_style(style("  {msg:30!} [{bar:24}] {percent:>3} % {prefix}"));
                bar
            });
            bar.set_message(name);
            bar.set_length(brought);
            bar.set_position(lane.bytes);
            let state = if lane.rate > 0 {
                Rate::bits(lane.rate).to_string()
            } else {
                lane.state.clone()
            };
            bar.set_prefix(state);
        }
    }

    fn clear(&mut self) {
        // A terminal that is gone needs no clearing.
        let _ = self.all.clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use crate::api::{FromMember, LeftOut, SharedFile};

    use super::*;

    fn lane(owner: &str, bytes: u64, rate: u64) -> LaneProgress {
        let (uplink, state) = ("wan0".into(), "active".into());
        LaneProgress {
            owner: owner.into(),
            uplink,
            lent: true,
            rate,
            bytes,
            state,
            why: None,
            parked_for: None,
            failures: None,
            household: false,
        }
    }

    fn done() -> Done {
        Done {
            path: "/tmp/big.iso".into(),
            bytes: 64 << 20,
            resumed: 0,
            elapsed: 8.0,
            rate: 67_108_864,
            duplicated: 0,
            lanes: vec![
                lane("this device", 48 << 20, 0),
                lane("kitchen-pi", 16 << 20, 0),
                lane("asleep", 0, 0),
            ],
            best_single: Some(20_000_000),
            speedup: Some(3.355),
            ..Done::default()
        }
    }

    #[test]
    fn the_summary_says_who_brought_how_much_and_what_pooling_gave() {
        let text = summary(&done());
        for expected in [
            "/tmp/big.iso: 64.0 MiB in 8.0 s, 67.1 Mbit/s",
            "kitchen-pi, wan0",
            "75 %",
            "3.4 times the best single lane (20.0 Mbit/s)",
        ] {
            assert!(text.contains(expected), "`{expected}` is missing in:\n{text}");
        }
        assert!(!text.contains("asleep") && !text.contains("twice") && !text.contains("earlier"));
    }

    #[test]
    fn the_summary_of_an_upload_says_where_to_and_what_was_left_out() {
        let reasons = (0..20).map(|n| LeftOut {
            name: format!("odd\n{n}"),
            why: "it is a symbolic link".into(),
        });
        let upload = Done {
            path: "photos".into(),
            target: Some("https://dav.example/photos/".into()),
            resumed: 1 << 20,
            duplicated: 2 << 20,
            files: Some(FilesDone {
                sent: 3,
                same: 4,
                left_out: 25,
                reasons: reasons.collect(),
            }),
            ..done()
        };
        let text = summary(&upload);
        for expected in [
            "photos to https://dav.example/photos/: 64.0 MiB in 8.0 s",
            "1.0 MiB of it was sent in an earlier run",
            "sent twice: 2.0 MiB",
            "3 files sent, 4 there already, 25 left out\n    odd?0: it is a symbolic link",
            "odd?9: it is a symbolic link\n    and 15 more",
        ] {
            assert!(text.contains(expected), "`{expected}` is missing in:\n{text}");
        }
        assert!(!text.contains("odd?10") && !text.contains("fetched"), "{text}");
    }

    #[test]
    fn the_summary_says_what_members_brought_and_on_whose_word() {
        let member = |owner: &str, bytes| FromMember {
            owner: owner.into(),
            id: String::new(),
            bytes,
        };
        let disk = LaneProgress {
            uplink: "disk".into(),
            household: true,
            ..lane("living-room-pc", 1900 << 20, 0)
        };
        let mut shared = Done {
            members: vec![member("living-room-pc", 1900 << 20)],
            saved: 1900 << 20,
            attested: Some("living-room-pc".into()),
            ..done()
        };
        shared.lanes.push(disk);
        let text = summary(&shared);
        for expected in [
            "\n  1.9 GiB from living-room-pc, 64.0 MiB over 2 lines; 1.9 GiB of WAN saved\n",
            "\n  as living-room-pc has it: members vouch for it; a checksum (--sha256) would prove it",
        ] {
            assert!(text.contains(expected), "`{expected}` is missing in:\n{text}");
        }
        let all = Done {
            members: (1..=6).map(|n| member(&format!("m{n}"), 1 << 20)).collect(),
            saved: 6 << 20,
            attested: None,
            lanes: Vec::new(),
            ..done()
        };
        let text = summary(&all);
        assert!(
            text.contains("1.0 MiB from m4, 2.0 MiB from 2 other members; 6.0 MiB of WAN saved"),
            "{text}"
        );
        assert!(
            !text.contains("vouch") && !summary(&done()).contains("WAN"),
            "{text}"
        );
    }

    #[test]
    fn what_is_offered_is_told_with_the_command_that_gets_it() {
        let shared = SharedFile {
            name: "it's a film.mkv".into(),
            bytes: 5 << 20,
            sha256: "ab".repeat(32),
            owner: "this device".into(),
            id: String::new(),
            own: true,
        };
        let text = summary(&Done {
            shared: Some(shared),
            ..done()
        });
        assert!(
            text.contains("5.0 MiB offered to the household as it's a film.mkv"),
            "{text}"
        );
        assert!(
            text.contains("\n  abababab") && !text.contains("Mbit/s"),
            "{text}"
        );
        assert!(
            text.ends_with("tributary get shared:'it'\\''s a film.mkv'"),
            "{text}"
        );
    }

    #[test]
    fn one_lane_alone_is_not_compared_with_itself() {
        let one = Done {
            lanes: vec![lane("this device", 5, 0)],
            ..done()
        };
        assert!(!summary(&one).contains("times the best"));
    }

    #[test]
    fn a_plain_line_says_how_far_and_how_fast() {
        let lanes = vec![lane("a", 1, 5_000_000), lane("b", 0, 0)];
        let progress = Progress {
            name: Some("x".into()),
            total: Some(200),
            done: 50,
            rate: 5_000_000,
            lanes,
            upload: false,
        };
        assert_eq!(plain(&progress), "x: 25 %, 50 B of 200 B, 5.0 Mbit/s over 1 lane");
        let upload = Progress {
            upload: true,
            ..progress.clone()
        };
        assert_eq!(
            plain(&upload),
            "x: 25 %, 50 B of 200 B sent, 5.0 Mbit/s over 1 lane"
        );
        let members = |rate| LaneProgress {
            household: true,
            ..lane("c", 1, rate)
        };
        let shared = |lanes: Vec<LaneProgress>| {
            plain(&Progress {
                lanes,
                ..progress.clone()
            })
        };
        assert!(shared(vec![members(1)]).ends_with(" from 1 member"));
        assert!(
            shared(vec![members(1), lane("a", 1, 1), members(2), members(0)])
                .ends_with(" over 1 lane and from 2 members")
        );
        assert_eq!(plain(&Progress::default()), "(asking the origin): 0 B");
    }
}
