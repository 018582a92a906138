//! The report as one file of html that asks nobody for anything: no script, no font, no picture from elsewhere.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::case::Case;
use super::document::{Block, document};
use crate::output::escape;

/// The page around it. Colours are the reader's own, light or dark; paper is light.
const HEAD: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>Races for translated ports</title>
<style>
:root { color-scheme: light dark; --text: #1d2129; --soft: #5c6573; --page: #ffffff; --rule: #d6dae0; --code: #f3f4f6; --one: #b3261e; --two: #4a7fb5; --mark: #1d2129; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7eb; --soft: #9aa3af; --page: #16181c; --rule: #3a3f47; --code: #22262c; --one: #f2776f; --two: #7fb0e0; --mark: #e4e7eb; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid var(--rule); padding-bottom: .2rem; }
.verdict { font-size: 1.1rem; } .verdict:first-of-type { font-weight: 600; }
pre { background: var(--code); padding: .6rem .8rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 4px; }
.table { overflow-x: auto; } table { border-collapse: collapse; margin: .8rem 0; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; min-width: 3rem; }
th { color: var(--soft); font-weight: 500; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; } .grid { stroke: var(--rule); stroke-width: 1; } .axis { fill: var(--soft); font: 11px system-ui, sans-serif; }
.bar0 { fill: var(--one); } .bar1 { fill: var(--two); } .mark { stroke: var(--mark); stroke-width: 2; }
.key { color: var(--soft); font-size: .9rem; } .key span { display: inline-block; width: .8rem; height: .8rem; margin: 0 .35rem 0 1rem; vertical-align: -.05rem; }
.key span { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.key .k0 { background: var(--one); } .key .k1 { background: var(--two); } .key .km { background: var(--mark); height: .15rem; vertical-align: .25rem; }
@media print { :root { color-scheme: light; --text: #000; --soft: #444; --page: #fff; --rule: #bbb; --code: #f3f3f3; --one: #b3261e; --two: #4a7fb5; --mark: #000; } h2, svg, tr { break-inside: avoid; } h2 { break-after: avoid; } .key { break-before: avoid; } table { font-size: .7rem; } }
footer { color: var(--soft); font-size: .85rem; margin-top: 3rem; }
</style>
</head>
<body>
<h1>Races for translated ports</h1>
"#;

/// The whole report.
#[must_use]
pub fn html(case: &Case) -> String {
    let mut out = String::from(HEAD);
    let mut section = "";
    for block in document(case) {
        // Writing to a string does not fail.
        let _ = match block {
            Block::Heading(text) => {
                section = text;
                writeln!(out, "<h2>{}</h2>", escaped(text))
            }
            Block::Paragraph(text) if section == "Verdict" => {
                writeln!(out, "<p class=\"verdict\">{}</p>", escaped(&text))
            }
            Block::Paragraph(text) => writeln!(out, "<p>{}</p>", escaped(&text)),
            Block::List(items) => {
                let items: String = items.iter().map(|item| format!("<li>{}</li>", escaped(item))).collect();
                writeln!(out, "<ul>{items}</ul>")
            }
            Block::Command(command) => writeln!(out, "<pre>{}</pre>", escaped(&command)),
            Block::Chart(chart) | Block::Picture(chart) => {
                // What there is none of needs no key.
                let has_any = |&(number, _): &(usize, _)| {
                    number == 0 || chart.bars.iter().any(|bar| bar.values.get(number).is_some_and(|&value| value > 0))
                };
                let series = chart.series.iter().enumerate().filter(has_any);
                let key = |(number, what)| format!("<span class=\"k{number}\"></span>{what}");
                let series: String = series.map(key).collect();
                let marks = chart.marks.map(|what| format!("<span class=\"km\"></span>{what}")).unwrap_or_default();
                writeln!(out, "{}<p class=\"key\">{series}{marks}</p>", chart.svg())
            }
            // The picture shows them.
            Block::Figures { .. } => Ok(()),
            Block::Table { head, rows } => {
                let head: String = head.iter().map(|cell| format!("<th>{}</th>", escaped(cell))).collect();
                let rows: String = rows.iter().map(|row| row_of(row)).collect();
                writeln!(out, "<div class=\"table\"><table>\n<tr>{head}</tr>\n{rows}</table></div>")
            }
        };
    }
    let tools: std::collections::BTreeSet<_> =
        case.recordings.iter().map(|recording| recording.session.tool.as_str()).collect();
    let tools = tools.into_iter().collect::<Vec<_>>().join(", ");
    let _ = writeln!(out, "<footer>Recorded by {}.</footer>\n</body>\n</html>", escaped(&tools));
    out
}

fn row_of(cells: &[String]) -> String {
    let cell = |cell: &String| {
        let number = !cell.is_empty() && cell.bytes().all(|byte| byte.is_ascii_digit());
        let class = if number { " class=\"number\"" } else { "" };
        format!("<td{class}>{}</td>", escaped(cell))
    };
    format!("<tr>{}</tr>\n", cells.iter().map(cell).collect::<String>())
}

/// Text from outside as text: nothing in it is a tag, an attribute's end, or a character that changes the order of others.
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    let text = escape(text);
    if !text.contains(['<', '>', '&', '"', '\'']) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    Cow::Owned(escaped)
}
