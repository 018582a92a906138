//! The report as markdown, for an issue of a tracker.

use std::fmt::Write as _;

use super::case::Case;
use super::document::{Block, document};
use crate::output::escape;

/// The whole report.
#[must_use]
pub fn markdown(case: &Case) -> String {
    let mut out = String::from("# Races for translated ports\n");
    for block in document(case) {
        out.push('\n');
        match block {
            Block::Heading(text) => {
                let _ = writeln!(out, "## {text}");
            }
            Block::Paragraph(text) => {
                let _ = writeln!(out, "{}", plain(&text));
            }
            Block::List(items) => {
                for item in items {
                    let _ = writeln!(out, "* {}", plain(&item));
                }
            }
            Block::Command(command) => fenced(&mut out, &[command], "  "),
            Block::Chart(chart) => fenced(&mut out, &chart.lines(), ""),
            Block::Picture(_) => {}
            Block::Table { head, rows } | Block::Figures { head, rows } => {
                let _ = writeln!(out, "| {} |\n|{}", head.join(" | "), " --- |".repeat(head.len()));
                for row in rows {
                    let cells: Vec<_> = row.iter().map(|cell| plain(cell)).collect();
                    let _ = writeln!(out, "| {} |", cells.join(" | "));
                }
            }
        }
    }
    out
}

/// Lines as they are. A fence is longer than any row of its character within.
fn fenced(out: &mut String, lines: &[String], indent: &str) {
    let longest =
        lines.iter().flat_map(|line| line.split(|character| character != '`')).map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let _ = writeln!(out, "{indent}{fence}text");
    for line in lines {
        let _ = writeln!(out, "{indent}{}", escape(line));
    }
    let _ = writeln!(out, "{indent}{fence}");
}

/// Text that means nothing to markdown or html.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len() + 16);
    for character in escape(text).chars() {
        match character {
            '<' => plain.push_str("&lt;"),
            '>' => plain.push_str("&gt;"),
            '&' => plain.push_str("&amp;"),
            // A person or an issue that is meant by nobody.
            '@' => plain.push_str("&#64;"),
            '#' => plain.push_str("&#35;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '!' | '$' => {
                plain.push('\\');
                plain.push(character);
            }
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_text() {
        assert_eq!(plain("<b>|`x`|[a](b)@me#1"), "&lt;b&gt;\\|\\`x\\`\\|\\[a\\](b)&#64;me&#35;1");
        let mut out = String::new();
        fenced(&mut out, &["a ``` b".to_owned(), "\u{1b}[31m".to_owned()], "");
        assert_eq!(out, "````text\na ``` b\n\\u{1b}[31m\n````\n");
    }
}
