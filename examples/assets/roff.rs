//! The little of roff that the pages need beside what `clap_mangen` writes.
//!
//! Invariant: no text is taken for a request or an escape, whatever is in it.

/// A section's heading.
pub(crate) fn heading(text: &str) -> String {
    format!(".SH \"{}\"\n", escaped(&text.to_uppercase()))
}

/// Lines that stay as they are.
pub(crate) fn verbatim<'a>(lines: impl IntoIterator<Item = &'a str>) -> String {
    let mut page = String::from(".RS 4\n.nf\n");
    for line in lines {
        page += &text_line(&escaped(line));
    }
    page + ".fi\n.RE\n"
}

/// Running text; what is between backticks is bold.
pub(crate) fn prose<'a>(lines: impl IntoIterator<Item = &'a str>) -> String {
    let text = lines.into_iter().collect::<Vec<_>>().join("\n");
    let mut page = String::new();
    for (place, part) in text.split('`').enumerate() {
        if place % 2 == 0 {
            page += &escaped(part);
        } else {
            page += &format!("\\fB{}\\fR", escaped(part));
        }
    }
    page.lines().map(text_line).collect()
}

/// Text without a meaning to roff. Dashes are those that can be typed into a shell.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

/// A dot or a quote at its beginning would make a line a request.
fn text_line(line: &str) -> String {
    let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
    format!("{guard}{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_is_taken_for_a_request_or_an_escape() {
        assert_eq!(
            prose([".SH `a-b`", "'x \\n"]),
            "\\&.SH \\fBa\\-b\\fR\n\\&'x \\en\n"
        );
    }
}
