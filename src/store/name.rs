//! File names from strangers: a URL's last segment or a `Content-Disposition` (threats.md SEC-C1).

use super::place::LONGEST_SUFFIX;

/// The longest name Linux file systems take.
const NAME_MAX: usize = 255;
/// The longest ending after a dot that survives when a name is cut: `.tar.zst` and the like do.
const EXTENSION_MAX: usize = 16;
/// Not in a name on FAT, exFAT and NTFS, which are common on USB disks.
const FORBIDDEN: [char; 7] = ['<', '>', ':', '"', '|', '?', '*'];
/// Devices on Windows, with any extension; also a share's users may have that.
const DEVICES: [&str; 8] = [
    "con", "prn", "aux", "nul", "conin$", "conout$", "clock$", "config$",
];
/// A finished download with such a name would be taken for the parts or journal of another one.
const OURS: [&str; 3] = [".part", ".new", ".journal"];

/// A harmless file name made of `name`: its last component without characters that do not show or mislead, not hidden,
/// not an option, no device, none of our own work files, and short enough for all names derived from it. `None`: nothing
/// is left of it.
pub fn safe_name(name: &str) -> Option<String> {
    let base = name.rsplit(['/', '\\']).next()?;
    let shown: String = base.chars().filter(|&c| !is_invisible(c)).map(plain).collect();
    let mut name = trimmed(&shown).to_owned();
    if name.is_empty() {
        return None;
    }
    if is_device(&name) || name.starts_with('-') {
        name.insert(0, '_');
    }
    let mut name = trimmed(&cut(&name, NAME_MAX - LONGEST_SUFFIX - 1)).to_owned();
    let lower = name.to_lowercase();
    if OURS.iter().any(|ours| lower.ends_with(ours)) {
        name.push('_');
    }
    Some(name)
}

/// Without leading dots, and without trailing ones, which FAT drops.
fn trimmed(name: &str) -> &str {
    name.trim_start_matches(['.', ' ']).trim_end_matches(['.', ' '])
}

fn plain(c: char) -> char {
    match c {
        c if FORBIDDEN.contains(&c) => '_',
        c if c.is_whitespace() => ' ',
        c => c,
    }
}

/// Control characters, and what changes how the rest of the name is shown without being seen.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}' | '\u{e0000}'..='\u{e0fff}')
}

fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name).trim_end().to_lowercase();
    let numbered = stem.strip_prefix("com").or_else(|| stem.strip_prefix("lpt"));
    let number = |rest: &str| {
        let mut chars = rest.chars();
        let digit = chars
            .next()
            .is_some_and(|c| c.is_ascii_digit() || ['¹', '²', '³'].contains(&c));
        digit && chars.next().is_none()
    };
    DEVICES.contains(&stem.as_str()) || numbered.is_some_and(number)
}

/// At most `max` bytes of the name; its extension stays.
fn cut(name: &str, max: usize) -> String {
    if name.len() <= max {
        return name.to_owned();
    }
    let extension = name.rfind('.').map_or("", |dot| &name[dot..]);
    let extension = if extension.len() <= EXTENSION_MAX {
        extension
    } else {
        ""
    };
    let stem = &name[..name.floor_char_boundary(max - extension.len())];
    format!("{stem}{extension}")
}
