//! Section 5 of the manual: the configuration, from the file that documents every key.
//!
//! That file's form is what `config/tributary.toml` says of itself: "# key = value" is a default, "#   key = value" an
//! example, a table's name begins a section, and blank lines part what belongs to different keys.

use crate::roff::{escaped, heading, prose, verbatim};

/// The page.
pub(crate) fn page(documented: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut page = format!(
        ".TH tributary.toml 5 \"\" \"tributary {version}\" \"tributary\"\n\
         .SH NAME\ntributary.toml \\- configuration of \\fBtributary\\fR(1)\n.SH DESCRIPTION\n"
    );
    for paragraph in documented.split("\n\n") {
        page += &of_paragraph(paragraph);
    }
    page += &heading("See also");
    page + ".BR tributary (1),\n.BR tributary\\-check\\-config (1)\n"
}

#[derive(Debug, PartialEq)]
enum Line<'a> {
    Table(&'a str),
    Default(&'a str),
    Example(&'a str),
    Text(&'a str),
}

fn of_paragraph(paragraph: &str) -> String {
    let mut lines: Vec<Line<'_>> = paragraph.lines().map(read).collect();
    let mut page = String::new();
    if let Some(at) = lines.iter().position(|l| matches!(l, Line::Table(_))) {
        let rest = lines.split_off(at);
        if let Some(Line::Table(name)) = rest.first() {
            page += &heading(name).replace(&name.to_uppercase(), name);
        }
        page += &entry(&lines);
        lines = rest.into_iter().skip(1).collect();
    }
    page + &entry(&lines)
}

/// What is said about one key, or several that belong together; or a paragraph about none.
fn entry(lines: &[Line<'_>]) -> String {
    let texts = lines.iter().filter_map(|l| match l {
        Line::Text(text) => Some(*text),
        _ => None,
    });
    let examples: Vec<&str> = lines
        .iter()
        .filter_map(|l| match l {
            Line::Example(example) => Some(*example),
            _ => None,
        })
        .collect();
    let mut keys: Vec<String> = lines
        .iter()
        .filter_map(|l| match l {
            Line::Default(line) => Some(format!("\\fB{}\\fR", escaped(line))),
            _ => None,
        })
        .collect();
    // A key without a default is known from its example.
    let without_default = examples.iter().filter_map(|line| line.split_once(" = "));
    keys.extend(without_default.map(|(key, _)| format!("\\fB{}\\fR", escaped(key))));
    let text = prose(texts);
    if keys.is_empty() {
        return if text.is_empty() {
            text
        } else {
            format!(".PP\n{text}")
        };
    }
    let mut page = format!(".TP\n{}\n{text}", keys.join(", "));
    if !examples.is_empty() {
        page += ".sp\n";
        page += &verbatim(examples);
    }
    page
}

fn read(line: &str) -> Line<'_> {
    let (line, commented) = match line.strip_prefix("# ") {
        Some(rest) => (rest, true),
        None => (line.trim_start_matches('#'), false),
    };
    let is_assignment = |line: &str| {
        line.split_once(" = ")
            .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
    };
    if line.starts_with('[')
        && line.ends_with(']')
        && line.trim_matches(['[', ']']).chars().all(char::is_alphanumeric)
    {
        return Line::Table(line);
    }
    match line.strip_prefix("  ") {
        Some(example) if commented && is_assignment(example) => Line::Example(example),
        _ if is_assignment(line) => Line::Default(line),
        _ => Line::Text(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CONFIGURATION;

    #[test]
    fn the_page_describes_every_table_and_every_key() {
        let page = page(CONFIGURATION);
        let mut seen = 0;
        for line in CONFIGURATION.lines() {
            let expected = match read(line) {
                Line::Table(name) => format!(".SH \"{name}\"\n"),
                Line::Default(line) => format!("\\fB{}\\fR", escaped(line)),
                Line::Example(line) => escaped(line),
                Line::Text(_) => continue,
            };
            seen += 1;
            assert!(page.contains(&expected), "{expected} is missing in:\n{page}");
        }
        assert!(seen > 15, "{seen} keys and tables were found");
        assert_eq!(
            page.matches(".TP\n").count(),
            CONFIGURATION.split("\n\n").filter(|p| p.contains(" = ")).count() - 1
        );
    }

    #[test]
    fn a_paragraph_is_known_by_its_lines() {
        assert_eq!(read("[lan]"), Line::Table("[lan]"));
        assert_eq!(read("# [[uplink]]"), Line::Table("[[uplink]]"));
        assert_eq!(read("# port = 7436"), Line::Default("port = 7436"));
        assert_eq!(read("#   name = \"pi\""), Line::Example("name = \"pi\""));
        assert_eq!(
            read("# [\"203.0.113.0/24\"]."),
            Line::Text("[\"203.0.113.0/24\"].")
        );
        assert_eq!(
            read("# \"# key = value\" is the default."),
            Line::Text("\"# key = value\" is the default.")
        );
    }
}
