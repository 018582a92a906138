//! Everything known of one race, in lines as long as the screen is wide.

use super::text::{cut, plain, width};
use super::view::View;
use crate::output::text::Block;

/// Before what goes on from the line above.
const INDENT: &str = "             ";

/// Rows of a screen that lines have; the last one is the status.
pub(super) fn room(height: u16) -> usize {
    usize::from(height).saturating_sub(1)
}

/// The lines of the selected race, on a screen of `columns`.
pub(super) fn lines(view: &View, columns: usize) -> Vec<String> {
    let Some(race) = view.race() else { return Vec::new() };
    let block = Block { race, clock: view.shown().clock(), zone: &view.zone }.to_string();
    block.lines().flat_map(|line| folded(line, columns.max(1))).collect()
}

/// A line in pieces of `columns` at most, all but the first a little in.
fn folded(line: &str, columns: usize) -> Vec<String> {
    // The block's own indentation is of no use here.
    let text = plain(line.strip_prefix("    ").unwrap_or(line));
    if columns <= 2 * INDENT.len() {
        return vec![cut(&text, columns)];
    }
    let mut pieces = Vec::new();
    let (mut piece, mut used) = (String::new(), 0);
    for character in text.chars() {
        let width = width(character);
        if used + width > columns {
            pieces.push(std::mem::replace(&mut piece, INDENT.to_owned()));
            used = INDENT.len();
        }
        piece.push(character);
        used += width;
    }
    pieces.push(piece);
    pieces
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn lines_are_folded_where_the_screen_ends() {
        let columns = 2 * INDENT.len() + 1;
        let full = "x".repeat(columns);
        assert_eq!(folded(&format!("    {full}"), columns), std::slice::from_ref(&full));
        assert_eq!(folded(&format!("    {full}yz"), columns), [full, format!("{INDENT}yz")]);
        // Two columns wide: the last one of a line stays empty rather than half a character.
        let wide = "日".repeat(14);
        assert_eq!(folded(&wide, columns), ["日".repeat(13), format!("{INDENT}日")]);
        assert_eq!(folded("abcdef", 4), ["abc~"]);
        assert_eq!(folded("", 80), [""]);
    }

    #[test]
    fn the_longest_names_take_no_longer_than_their_length() {
        let start = Instant::now();
        let pieces = folded(&"\u{1b}[2J日".repeat(1 << 16), 80);
        // Folded anew for each line it would be minutes.
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        assert!(pieces.len() > 10_000 && pieces.iter().all(|piece| piece.chars().map(width).sum::<usize>() <= 80));
    }
}
