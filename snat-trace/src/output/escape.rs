//! Text from outside, made harmless for a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::Path;

/// The text with everything that could steer a terminal or reorder a line written as `\u{..}`: control characters of
/// both sets, line and paragraph separators, and the bidirectional and other invisible formatting characters.
#[must_use]
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if steers(character) {
            // Writing to a string does not fail.
            let _ = write!(escaped, "{}", character.escape_unicode());
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// A path as it may be shown.
#[must_use]
pub fn escape_path(path: &Path) -> String {
    escape(&path.to_string_lossy()).into_owned()
}

/// Several lines: the ends of lines stay.
#[must_use]
pub fn escape_lines(text: &str) -> String {
    text.split('\n').map(escape).collect::<Vec<_>>().join("\n")
}

pub(super) fn steers(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays() {
        assert!(matches!(escape("nginx: wörker [5]"), Cow::Borrowed(_)));
    }

    #[test]
    fn nothing_that_steers_gets_through() {
        assert_eq!(escape("a\x1b[31mb\nc\u{9b}d\u{202e}e"), "a\\u{1b}[31mb\\u{a}c\\u{9b}d\\u{202e}e");
        // Of no width, and tags, in which text can hide.
        for hidden in ['\u{180e}', '\u{fff9}', '\u{e0001}', '\u{e0041}', '\u{e007f}'] {
            assert_eq!(escape(&format!("a{hidden}b")), format!("a{}b", hidden.escape_unicode()));
        }
        assert_eq!(escape_lines("a\x1b\n\u{202e}b\n"), "a\\u{1b}\n\\u{202e}b\n");
        assert_eq!(escape_path(Path::new("/a\n\x1bb")), "/a\\u{a}\\u{1b}b");
    }
}
