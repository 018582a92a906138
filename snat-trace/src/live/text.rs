//! Text from outside, made to stand in cells.

use ratatui::text::Span;

use crate::output::escape;

/// In the place of what was cut.
const CUT: char = '~';

/// The text with nothing in it that steers a terminal or takes no room of its own, so that each character is as wide as it says.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in escape(text).chars() {
        if width(character) == 0 {
            plain.extend(character.escape_unicode());
        } else {
            plain.push(character);
        }
    }
    plain
}

/// As much of the text as has room, with a mark where it was cut.
pub(super) fn cut(text: &str, room: usize) -> String {
    let text = plain(text);
    if text.chars().map(width).sum::<usize>() <= room {
        return text;
    }
    let mut kept = String::new();
    let mut left = room;
    for character in text.chars() {
        // The mark takes one column.
        if width(character) >= left {
            break;
        }
        left -= width(character);
        kept.push(character);
    }
    kept.extend((room > 0).then_some(CUT));
    kept
}

/// Columns of a terminal.
pub(super) fn width(character: char) -> usize {
    if matches!(character, ' '..='~') { 1 } else { Span::raw(&*character.encode_utf8(&mut [0; 4])).width() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_and_nothing_is_without_width() {
        assert_eq!(plain("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(plain("e\u{301}"), "e\\u{301}");
        assert_eq!(plain("日本"), "日本");
    }

    #[test]
    fn what_is_cut_is_marked_and_fits() {
        assert_eq!(cut("nginx", 5), "nginx");
        assert_eq!(cut("nginx", 4), "ngi~");
        assert_eq!(cut("日本語", 6), "日本語");
        assert_eq!(cut("日本語", 5), "日本~");
        assert_eq!(cut("日本語", 4), "日~");
        assert_eq!(cut("日本語", 1), "~");
        assert_eq!(cut("x", 0), "");
    }
}
