//! Section 1 of the manual: a page for the program and one for each of its commands.
//!
//! `clap_mangen` writes what options there are. What the help says after them becomes sections of their own: a line that
//! ends with a colon names one, and the indented lines below it are its content; other text belongs to the description.

use std::io;

use clap::Command;
use clap_mangen::Man;

use crate::roff::{heading, prose, verbatim};

const FILES: &[(&str, &str)] = &[
    (
        "/etc/tributary/tributary.toml",
        "The configuration, see `tributary.toml`(5). Nothing needs to be in it.",
    ),
    (
        "~/.config/tributary/tributary.toml",
        "A user's own configuration, whose keys win.",
    ),
    (
        "/var/lib/tributary",
        "The service's state: the device's key, where peers were last met, what lines brought. A user's own is in `~/.local/state/tributary`.",
    ),
    (
        "/run/tributary/control.sock",
        "How the command line reaches the service. It is for the group `tributary`.",
    ),
    (
        "NAME.part, NAME.part.journal",
        "A download that is not complete, and what of it is there. The same command resumes it.",
    ),
];

/// The pages' file names with their text.
pub(crate) fn all(command: Command) -> io::Result<Vec<(String, String)>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let names: Vec<String> = command.get_subcommands().map(page_name).collect();
    let mut pages = vec![page(&command, &names)?];
    for sub in command.get_subcommands() {
        pages.push(page(sub, &["tributary".to_owned()])?);
    }
    Ok(pages)
}

fn page(command: &Command, related: &[String]) -> io::Result<(String, String)> {
    let man = Man::new(command.clone())
        .manual("tributary")
        .source(concat!("tributary ", env!("CARGO_PKG_VERSION")));
    // What follows the options: prose for the description, and sections.
    let help = command
        .get_after_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    let (described, sections) = split(&help);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if !described.is_empty() {
        page.extend_from_slice(format!(".PP\n{}", prose(described)).as_bytes());
    }
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut text = String::from_utf8(page).map_err(io::Error::other)?;
    for (title, lines) in sections {
        let title = if title == "Exit codes" {
            "Exit status"
        } else {
            title
        };
        text += &heading(title);
        text += &verbatim(lines);
    }
    if command.has_subcommands() {
        text += &files();
    }
    text += &heading("See also");
    text += &references(related);
    Ok((man.get_filename(), text))
}

/// Text, and sections: a line that ends with a colon, and the indented ones below it.
fn split(help: &str) -> (Vec<&str>, Vec<(&str, Vec<&str>)>) {
    let (mut described, mut sections) = (Vec::new(), Vec::<(&str, Vec<&str>)>::new());
    for line in help.lines().filter(|l| !l.trim().is_empty()) {
        match (
            line.strip_prefix("  "),
            line.strip_suffix(':'),
            sections.last_mut(),
        ) {
            (Some(inside), _, Some((_, lines))) => lines.push(inside),
            (None, Some(title), _) => sections.push((title, Vec::new())),
            _ => described.push(line),
        }
    }
    (described, sections)
}

fn files() -> String {
    let entry = |(path, what): &(&str, &str)| format!(".TP\n.I {path}\n{}", prose([*what]));
    heading("Files") + &FILES.iter().map(entry).collect::<String>()
}

fn references(related: &[String]) -> String {
    let pages = related.iter().map(|name| (name.as_str(), 1));
    let all: Vec<String> = pages
        .chain([("tributary.toml", 5)])
        .map(|(name, section)| format!(".BR {} ({section})", name.replace('-', "\\-")))
        .collect();
    all.join(" ,\n") + "\n"
}

fn page_name(command: &Command) -> String {
    command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_program() -> Vec<(String, String)> {
        all(tributary::cli::command()).unwrap_or_default()
    }

    #[test]
    fn every_command_has_a_page_with_an_example_and_each_of_its_options() {
        let pages = of_program();
        let mut program = tributary::cli::command().disable_help_subcommand(true);
        program.build();
        assert_eq!(pages.len(), 1 + program.get_subcommands().count());
        assert!(pages.len() > 6);
        for command in program.get_subcommands().chain([&program]) {
            let name = format!("{}.1", page_name(command));
            let Some((_, text)) = pages.iter().find(|(n, _)| *n == name) else {
                panic!("{name} is missing");
            };
            let examples = text.split(".SH \"EXAMPLES\"").nth(1).unwrap_or_default();
            let called = command.get_bin_name().unwrap_or_default().replace('-', "\\-");
            assert!(examples.contains(&called), "{name}: no example of `{called}`");
            for option in command.get_arguments().filter_map(|a| a.get_long()) {
                let option = format!("\\fB\\-\\-{}\\fR", option.replace('-', "\\-"));
                assert!(text.contains(&option), "{name}: {option} is missing");
            }
        }
    }

    #[test]
    fn the_programs_page_names_exit_codes_files_and_the_other_pages() {
        let pages = of_program();
        let text = pages.first().map(|(_, text)| text.as_str()).unwrap_or_default();
        for expected in [
            ".SH \"EXIT STATUS\"",
            "64  the configuration is wrong",
            "/run/tributary/control.sock",
            ".BR tributary\\-check\\-config (1)",
            ".BR tributary.toml (5)",
            "TRIBUTARY_STATE_DIR",
        ] {
            assert!(text.contains(expected), "{expected} is missing in:\n{text}");
        }
    }

    #[test]
    fn what_is_said_after_the_options_is_description_and_sections() {
        let (described, sections) = split("Takes 2 s.\n\nExamples:\n  a b\n    c\n\nStopped, it goes on.");
        assert_eq!(described, ["Takes 2 s.", "Stopped, it goes on."]);
        assert_eq!(sections, [("Examples", vec!["a b", "  c"])]);
    }
}
