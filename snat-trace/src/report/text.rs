//! The report in 80 columns.

use std::fmt::{self, Write as _};

use super::case::Case;
use super::document::{Block, document};
use crate::output::escape;
use crate::output::wrap::{WIDTH, wrapped};

/// Spaces between columns of a table.
const GAP: usize = 2;
/// Columns that names of values may take.
const NAMES: usize = 40;
/// In front of what stands below something.
const INDENT: usize = 2;

/// The whole report.
#[must_use]
pub fn text(case: &Case) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = document(case).iter().try_for_each(|block| print(&mut out, block));
    out
}

fn print(out: &mut String, block: &Block) -> fmt::Result {
    match block {
        Block::Heading(text) => {
            let before = if out.is_empty() { "" } else { "\n" };
            writeln!(out, "{before}{}\n{}", text.to_uppercase(), "-".repeat(text.chars().count()))
        }
        Block::Paragraph(text) => wrapped(out, text, 0),
        Block::List(items) => items.iter().try_for_each(|item| {
            out.push_str("* ");
            wrapped(out, item, INDENT)
        }),
        // In one piece, however long: it is to be copied.
        Block::Command(command) => writeln!(out, "{:INDENT$}$ {}", "", escape(command)),
        Block::Chart(chart) => {
            out.push('\n');
            chart.lines().iter().try_for_each(|line| writeln!(out, "{:INDENT$}{}", "", escape(line)))
        }
        Block::Picture(_) => Ok(()),
        Block::Table { head, rows } | Block::Figures { head, rows } => {
            out.push('\n');
            table(out, head, rows)
        }
    }
}

/// In columns where they fit, if need be with values in several lines; else each row as a block of its own.
fn table(out: &mut String, head: &[&str], rows: &[Vec<String>]) -> fmt::Result {
    let rows: Vec<Vec<_>> = rows.iter().map(|row| row.iter().map(|cell| escape(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    if INDENT + widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1) <= WIDTH {
        let heads = head.iter().map(|head| (*head).into()).collect();
        return [heads].iter().chain(&rows).try_for_each(|row: &Vec<std::borrow::Cow<'_, str>>| {
            let mut line = " ".repeat(INDENT);
            for (cell, width) in row.iter().zip(&widths) {
                let numeric = !cell.is_empty() && cell.bytes().all(|byte| byte.is_ascii_digit());
                let _ = if numeric { write!(line, "{cell:>width$}") } else { write!(line, "{cell:<width$}") };
                line.push_str(&" ".repeat(GAP));
            }
            writeln!(out, "{}", line.trim_end())
        });
    }
    if let [names, _] = widths[..]
        && names <= NAMES
    {
        return rows.iter().try_for_each(|row| {
            let [name, value] = &row[..] else { return Ok(()) };
            write!(out, "{:INDENT$}{name:names$}{:GAP$}", "", "")?;
            wrapped(out, value, INDENT + names + GAP)
        });
    }
    let label = head.iter().map(|head| head.chars().count()).max().unwrap_or(0) + GAP;
    for (index, row) in rows.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        for (head, cell) in head.iter().zip(row).filter(|(_, cell)| !cell.is_empty()) {
            write!(out, "{:INDENT$}{head:label$}", "")?;
            wrapped(out, cell, INDENT + label)?;
        }
    }
    Ok(())
}
