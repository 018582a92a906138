//! The picture as cells of a terminal: a pure function of state and size.

use ratatui::buffer::Buffer;
use ratatui::layout::{Rect, Size};
use ratatui::style::{Color, Modifier, Style};

use super::details;
use super::picture::{KEPT, destinations, losers, overlaps};
use super::text::cut;
use super::view::{Mode, View};
use crate::output::text::{self, Columns, GAP};
use crate::race::event::{Class, Race, Verdict};

/// Rows of the three lists above the races: as many as there are bars of overlaps.
const LISTS: usize = 6;
/// Columns of the overlaps.
const OVERLAPS: usize = 26;
/// Longest bar there.
const BAR: usize = 12;
/// Longest name of a class but the usual one.
const CLASS: usize = "port-exhaustion".len();
/// Columns from which on there is room for it.
const WITH_CLASS: usize = 100;
/// Columns between lists.
const BETWEEN: usize = 2;

/// How many rows of the screen each part has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Rows {
    /// Rates and account.
    pub(super) figures: usize,
    /// Destinations, losers and overlaps, with their headings.
    pub(super) lists: usize,
    /// Headings of the races.
    pub(super) headings: usize,
    /// Races.
    pub(super) list: usize,
    /// Status.
    pub(super) status: usize,
}

impl Rows {
    /// On a screen of that size: where there is little room the lists go first, then headings, account and status.
    pub(super) fn of(size: Size) -> Self {
        let height = usize::from(size.height);
        let status = usize::from(height > 1);
        let figures = match height {
            0..3 => 0,
            3..5 => 1,
            _ => 2,
        };
        let headings = usize::from(height > 5);
        let lists = if height >= 18 && size.width >= 60 { LISTS + 1 } else { 0 };
        let list = height.saturating_sub(status + figures + headings + lists);
        Self { figures, lists, headings, list, status }
    }
}

/// Draws the view.
pub fn draw(view: &View, area: Rect, buffer: &mut Buffer) {
    let mut pen = Pen { area, buffer, colour: view.colour };
    match view.mode() {
        Mode::List | Mode::Typing => list(view, &mut pen),
        Mode::Details(_) => details(view, &mut pen),
        Mode::Help => pen.lines(HELP.lines().map(str::to_owned).collect::<Vec<_>>().as_slice()),
    }
    status(view, &mut pen);
}

const HELP: &str = "\
q, Ctrl-C        end; the summary follows
p, space         stop the picture, and go on; counting never stops
/                filter: words that must all hold, each an address, part of
                 one or a prefix, a port or pid, or part of a process or
                 executable, cgroup, container, pod, interface, class,
                 protocol or verdict
                 Enter keeps it, Esc takes it away
up, down         select a race; PgUp, PgDn, Home, End too
Enter            everything known of that race; Esc goes back
Esc              select none: the youngest is on top
s                save the races shown as evidence, for replay and report
Ctrl-Z           stop snat-trace until the shell's fg

Lists and overlaps are of the races kept that the filter shows.
Rates and account are of all; the account is of the counters of network
namespaces that had races, as they were a second before.";

/// Writes into an area, and never beyond it.
struct Pen<'a> {
    area: Rect,
    buffer: &'a mut Buffer,
    colour: bool,
}

impl Pen<'_> {
    /// Writes text at a column and row of the area, cut at `room` columns.
    fn at(&mut self, column: usize, row: usize, room: usize, text: &str, style: Style) {
        let left = usize::from(self.area.width).saturating_sub(column).min(room);
        if row >= usize::from(self.area.height) || left == 0 {
            return;
        }
        // Both are within the area, whose sides are 16 bits.
        if let (Ok(column), Ok(row)) = (u16::try_from(column), u16::try_from(row)) {
            self.buffer.set_stringn(self.area.x + column, self.area.y + row, cut(text, left), left, style);
        }
    }

    fn whole(&mut self, row: usize, text: &str, style: Style) {
        self.at(0, row, usize::from(self.area.width), text, style);
    }

    fn lines(&mut self, lines: &[String]) {
        let room = usize::from(self.area.height).saturating_sub(1);
        for (row, line) in lines.iter().take(room).enumerate() {
            self.whole(row, line, Style::new());
        }
    }

    fn fill(&mut self, row: usize, style: Style) {
        if let Ok(row) = u16::try_from(row)
            && row < self.area.height
        {
            self.buffer.set_style(Rect { y: self.area.y + row, height: 1, ..self.area }, style);
        }
    }

    fn coloured(&self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

fn list(view: &View, pen: &mut Pen<'_>) {
    let rows = Rows::of(pen.area.as_size());
    if rows.figures > 0 {
        pen.whole(0, &rates(view), BOLD);
    }
    if rows.figures > 1 {
        let (text, closes) = account(view, usize::from(pen.area.width));
        let style = pen.coloured(if closes { Color::Green } else { Color::Red });
        pen.whole(1, &text, style);
    }
    if rows.lists > 0 {
        lists(view, pen, rows.figures);
    }
    races(view, pen, rows);
}

/// `00:01:23`, and days before that.
fn elapsed(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let days = if days > 0 { format!("{days}d ") } else { String::new() };
    format!("{days}{hours:02}:{minutes:02}:{:02}", seconds % 60)
}

fn rate(rate: f64) -> String {
    if rate < 10.0 { format!("{rate:.1}/s") } else { format!("{rate:.0}/s") }
}

/// First line: how long, how many races and connections, and how fast they come.
fn rates(view: &View) -> String {
    let picture = view.shown();
    let rates = picture.rates();
    let mut line = format!("{}  races {}", elapsed(picture.watched().as_secs()), picture.seen());
    if let Some((now, minute)) = rates.races {
        line += &format!(", {} (minute {})", rate(now), rate(minute));
    }
    if let Some(connections) = picture.connections() {
        line += &format!("  connections {connections}");
        line.extend(rates.connections.map(|per_second| format!(", {}", rate(per_second))));
    }
    line.extend(picture.failures().map(|failures| format!("  no race {failures}")));
    line
}

/// Second line: the account so far, and whether nothing in it is wrong.
fn account(view: &View, width: usize) -> (String, bool) {
    let picture = view.shown();
    let (lost, on_the_way) = picture.lost();
    let (mut line, unexplained) = match picture.failed() {
        Some(failed) => (
            format!(
                "insert_failed +{} = {} explained + {} unexplained",
                failed.counted, failed.explained, failed.unexplained
            ),
            failed.unexplained,
        ),
        None if picture.seen() > 0 => ("insert_failed: no reading since the first race yet".to_owned(), 0),
        None => ("insert_failed: read once there are races".to_owned(), 0),
    };
    line += &format!("; lost {lost}");
    if on_the_way > 0 {
        line += &format!("; {on_the_way} on the way");
    }
    if line.len() > width && picture.failed().is_some() {
        line = format!("unexplained {unexplained}, lost {lost}");
    }
    (line, lost == 0 && unexplained == 0)
}

fn lists(view: &View, pen: &mut Pen<'_>, top: usize) {
    let races: Vec<&Race> = view.races().map(|(_, race)| &**race).collect();
    let room = usize::from(pen.area.width).saturating_sub(OVERLAPS + 2 * BETWEEN);
    let (left, right) = (room.div_ceil(2), room / 2);
    let columns = [
        (0, left, "TOP DESTINATIONS", destinations(races.iter().copied())),
        (left + BETWEEN, right, "TOP LOSERS", losers(races.iter().copied())),
    ];
    for (column, width, heading, ranked) in columns {
        pen.at(column, top, width, heading, BOLD);
        for (row, (name, count)) in ranked.iter().take(LISTS).enumerate() {
            pen.at(column, top + 1 + row, width, &format!("{count:>4} {name}"), Style::new());
        }
    }
    let column = left + right + 2 * BETWEEN;
    pen.at(column, top, OVERLAPS, "OVERLAP", BOLD);
    let bars = overlaps(races.iter().copied());
    let most = bars.iter().map(|&(_, count)| count).max().unwrap_or(0).max(1);
    for (row, (name, count)) in bars.into_iter().enumerate() {
        let bar = "#".repeat((count * BAR).div_ceil(most));
        pen.at(column, top + 1 + row, OVERLAPS, &format!("{name} {bar} {count}"), Style::new());
    }
}

fn races(view: &View, pen: &mut Pen<'_>, rows: Rows) {
    let top = rows.figures + rows.lists;
    let width = usize::from(pen.area.width);
    let all: Vec<_> = view.races().collect();
    // A class stands at the end of its line, where there is room.
    let unusual = width >= WITH_CLASS && all.iter().any(|(_, race)| race.class != Class::SnatPortCollision);
    let columns = Columns::fitting(Some(if unusual { width - GAP - CLASS } else { width }));
    let style = text::Style { width: Some(width), colour: false, verbose: true, zone: view.zone.clone() };
    if rows.headings > 0 {
        cells(pen, top, &columns.cells(None, &style), BOLD);
    }
    let numbers: Vec<u64> = all.iter().map(|(number, _)| *number).collect();
    let selected = view.selected(&numbers);
    // The page that has the selected race.
    let first = selected.map_or(0, |at| at / rows.list.max(1) * rows.list);
    for (row, (index, (_, race))) in all.iter().enumerate().skip(first).take(rows.list).enumerate() {
        let row = top + rows.headings + row;
        let colour = match race.verdict {
            Some(Verdict::Dropped) => pen.coloured(Color::Red),
            Some(Verdict::Resolved | Verdict::ResolvedReplyOnly) => pen.coloured(Color::Green),
            None => Style::new(),
        };
        let end = cells(pen, row, &columns.cells(Some((race, view.shown().clock())), &style), colour);
        if race.class != Class::SnatPortCollision {
            pen.at(end, row, width, race.class.name(), Style::new());
        }
        if selected == Some(index) {
            pen.fill(row, REVERSED);
        }
    }
    if all.is_empty() && rows.list > 0 {
        let why = if view.shown().come() > 0 { "no race kept matches the filter" } else { "no races so far" };
        pen.whole(top + rows.headings, why, Style::new());
    }
}

/// Writes the columns of a line, each in its place however wide it would be; where the next one would begin.
fn cells(pen: &mut Pen<'_>, row: usize, cells: &[(usize, String)], style: Style) -> usize {
    let mut column = 0;
    for (width, text) in cells {
        pen.at(column, row, *width, text, style);
        column += width + GAP;
    }
    column
}

fn details(view: &View, pen: &mut Pen<'_>) {
    let lines = details::lines(view, usize::from(pen.area.width));
    let room = details::room(pen.area.height);
    pen.lines(&lines[view.above(lines.len(), room)..]);
}

/// Last line: what is to be read now, or else what keys do.
fn status(view: &View, pen: &mut Pen<'_>) {
    let height = usize::from(pen.area.height);
    if Rows::of(pen.area.as_size()).status == 0 {
        return;
    }
    let picture = view.shown();
    let mut parts = Vec::new();
    if view.mode() == Mode::Typing {
        parts.push(format!("/{}_", view.typed()));
    } else if let Some(note) = view.note() {
        parts.push(note.to_owned());
    }
    if let Some(new) = view.new_since_stopped() {
        parts.push(format!("paused, {new} new"));
    }
    if view.mode() != Mode::Typing && !view.typed().trim().is_empty() {
        parts.push(format!("filter {:?}: {} of {}", view.typed(), view.races().count(), picture.races().count()));
    }
    let (before, missed) = picture.not_kept();
    if before > 0 {
        parts.push(format!("last {KEPT} kept, {before} before"));
    }
    if missed > 0 {
        parts.push(format!("{missed} not in view: too fast for the terminal"));
    }
    parts.push(
        match view.mode() {
            Mode::List => "q quit  p pause  / filter  Enter details  s save  ? help",
            Mode::Typing => "Enter keeps the filter, Esc takes it away",
            Mode::Details(_) => "Esc back  up/down scroll  s save  q quit",
            Mode::Help => "any key goes back",
        }
        .to_owned(),
    );
    pen.fill(height - 1, REVERSED);
    pen.whole(height - 1, &parts.join(" | "), REVERSED);
}
