//! Text in lines of as many columns as every terminal has.

use std::fmt;

use super::escape;

/// Columns.
pub(crate) const WIDTH: usize = 80;

/// `text`, which may be from outside, in lines of [`WIDTH`] columns, all but the first `indent` columns in, where the first one
/// begins.
pub(crate) fn wrapped(f: &mut impl fmt::Write, text: &str, indent: usize) -> fmt::Result {
    let text = escape(text);
    let mut column = indent;
    for (index, word) in text.split(' ').enumerate() {
        let length = word.chars().count();
        if index > 0 && column + 1 + length > WIDTH {
            write!(f, "\n{:indent$}", "")?;
            column = indent;
        } else if index > 0 {
            f.write_str(" ")?;
            column += 1;
        }
        f.write_str(word)?;
        column += length;
    }
    writeln!(f)
}
