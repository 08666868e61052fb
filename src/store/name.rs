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
    let mut name = trimmed(&cut_name(&name, NAME_MAX - LONGEST_SUFFIX)).to_owned();
    while let Some(ours) = OURS.iter().find(|ours| ends_with(&name, ours)) {
        let dot = name.len() - ours.len();
        name.replace_range(dot..=dot, "_");
    }
    Some(name)
}

fn ends_with(name: &str, ending: &str) -> bool {
    let start = name.len().checked_sub(ending.len());
    start
        .and_then(|at| name.get(at..))
        .is_some_and(|end| end.eq_ignore_ascii_case(ending))
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

/// At most `max` bytes of the name, which are at least 16; its extension stays.
pub fn cut_name(name: &str, max: usize) -> String {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sec_c1_hostile_names_become_plain_ones() {
        for (name, safe) in [
            ("../../.ssh/authorized_keys", Some("authorized_keys")),
            ("/etc/passwd", Some("passwd")),
            ("..\\..\\boot.ini", Some("boot.ini")),
            (".bashrc", Some("bashrc")),
            ("..", None),
            ("...", None),
            ("/", None),
            ("", None),
            ("a\0b.iso", Some("ab.iso")),
            ("line\r\nbreak", Some("linebreak")),
            ("invoice\u{202e}fdp.exe", Some("invoicefdp.exe")),
            ("\u{200b}\u{feff}.hidden", Some("hidden")),
            ("CON", Some("_CON")),
            ("con.tar.gz", Some("_con.tar.gz")),
            ("LPT1 .txt", Some("_LPT1 .txt")),
            ("com¹", Some("_com¹")),
            ("com10", Some("com10")),
            ("console.log", Some("console.log")),
            ("-rf", Some("_-rf")),
            ("a:b*c?.txt", Some("a_b_c_.txt")),
            ("name. . ", Some("name")),
            ("debian.iso.part.journal", Some("debian.iso.part_journal")),
            ("debian.iso.PART", Some("debian.iso_PART")),
            ("Grüße 東京 🎉.zip", Some("Grüße 東京 🎉.zip")),
        ] {
            assert_eq!(safe_name(name).as_deref(), safe, "{name:?}");
        }
    }

    #[test]
    fn a_long_name_is_cut_before_its_extension() {
        let name = safe_name(&format!("{}.tar.zst", "ü".repeat(3000))).unwrap();
        assert!(name.ends_with("ü.zst"), "{name}");
        assert!(name.len() > 230);
    }

    proptest! {
        #[test]
        fn sec_c1_no_name_is_unsafe(name in prop_oneof![
            any::<String>(),
            "[./\\\\a-cC-N\u{202e}\u{200b}\0 :-]{0,12}",
            "(con|aux|com1|x)[. ]{0,3}(part|journal|new|tar)?[. ]{0,2}",
            "(ab|ü|🎉){100,200}[.]?[a-z]{0,20}([.]part)?",
        ]) {
            let Some(safe) = safe_name(&name) else { return Ok(()) };
            prop_assert!(!safe.is_empty() && !safe.starts_with(['.', '-', ' ']) && !safe.ends_with(['.', ' ']));
            prop_assert!(safe.len() + LONGEST_SUFFIX <= NAME_MAX);
            prop_assert!(!safe.contains(['/', '\\', '\0', ':']) && !safe.chars().any(is_invisible));
            prop_assert!(!is_device(&safe) && !OURS.iter().any(|o| safe.to_lowercase().ends_with(o)));
            let again = safe_name(&safe);
            prop_assert_eq!(again, Some(safe), "not stable");
        }
    }
}
