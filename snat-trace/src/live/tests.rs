//! The view by its keys and its pictures.

use std::sync::Arc;
use std::time::Duration;

use insta::assert_snapshot;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Rect, Size};
use ratatui::style::Modifier;
use snat_trace_common::Counter;

use super::picture::losers;
use super::{Action, KEPT, Picture, View, draw};
use crate::counters::account::Delta;
use crate::counters::accounts::Closed;
use crate::counters::figures::Tally;
use crate::kernel::{Detail, Role};
use crate::output::golden::{bare, clock, collision, forwarded, owner, pods};
use crate::probe::KernelCounts;
use crate::race::event::{Class, Flow, Race, Verdict};
use crate::race::time::KernelTime;
use crate::summary::{Span, Summary, Totals};

fn second(second: u64) -> KernelTime {
    KernelTime::from_record((200 + second) * 1_000_000_000).unwrap()
}

/// The totals of races at a second, of which so many were counted, among new connections, with so many seen by the hook.
fn so_far(races: &[Race], at: u64, counted: u64, connections: u64, seen: u64) -> Summary {
    let mut totals = Totals::default().with_connections();
    races.iter().for_each(|race| totals.add(race, Detail::Full));
    let counters = Tally { insert_failed: counted, drop: counted, ..Tally::default() };
    let netns = collision().netns.unwrap();
    let counters = Ok(counters.zip(counters, |count, _| Some(count)));
    let closed = Closed { deltas: vec![Delta { netns, counters, caveat: None }], ..Closed::default() };
    let mut counts = [0; Counter::ALL.len()];
    counts[Counter::Connection as usize] = connections;
    counts[Counter::ClashSeen as usize] = seen;
    let span = Span { started: second(0), ended: second(at), clock: clock() };
    totals.close(span, KernelCounts::new(counts, [0; Role::ALL.len()]), &closed)
}

/// Races of every kind: with little known, of another class, and by a name that would steer a terminal or is wide.
fn races() -> Vec<Race> {
    let named = |comm: &str| {
        let owner = Some(owner(comm, 77, None));
        Race { loser: Flow { owner, ..collision().loser }, overlap: Some(Duration::from_micros(40)), ..collision() }
    };
    let exhausted = Race { class: Class::PortExhaustion, overlap: None, ..collision() };
    let resolved = Race { class: Class::DuplicateFlow, verdict: Some(Verdict::Resolved), ..collision() };
    let hostile = named("\u{1b}[2J\u{202e}x");
    vec![collision(), collision(), bare(), exhausted, resolved, hostile, named("日本語のプロセス"), named("e\u{301}a")]
}

fn view(width: u16, height: u16) -> View {
    let mut picture = Picture::new(second(0), clock());
    picture.so_far(so_far(&[], 0, 0, 100, 0));
    let races = races();
    // One of those without a namespace is in no account, and two were not counted yet when the counters were read.
    picture.so_far(so_far(&races, 4, 5, 480, 8));
    races.into_iter().for_each(|race| picture.race(Arc::new(race)));
    View::new(picture, Size { width, height }, false, jiff::tz::TimeZone::UTC)
}

/// The cells as lines, without the blanks at their ends.
fn screen(view: &View, width: u16, height: u16) -> String {
    let lines = |buffer: &Buffer| -> Vec<String> {
        let mut lines = Vec::new();
        for y in 0..height {
            let mut line = String::new();
            let mut covered = 0;
            for x in 0..width {
                if covered == 0 {
                    let symbol = buffer[(x, y)].symbol();
                    line.push_str(symbol);
                    covered = ratatui::text::Span::raw(symbol.to_owned()).width();
                }
                covered = covered.saturating_sub(1);
            }
            lines.push(line.trim_end().to_owned());
        }
        lines
    };
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    draw(view, area, &mut buffer);
    lines(&buffer).join("\n")
}

fn press(view: &mut View, code: KeyCode) -> Option<Action> {
    view.key(KeyEvent::new(code, KeyModifiers::NONE))
}

fn typed(view: &mut View, text: &str) {
    text.chars().for_each(|character| assert_eq!(press(view, KeyCode::Char(character)), None));
}

#[test]
fn a_terminal_of_80_columns_and_24_lines() {
    assert_snapshot!(screen(&view(80, 24), 80, 24));
}

#[test]
fn a_wide_terminal() {
    assert_snapshot!(screen(&view(120, 40), 120, 40));
}

#[test]
fn a_small_terminal() {
    assert_snapshot!(screen(&view(40, 10), 40, 10));
}

#[test]
fn a_tiny_terminal() {
    assert_snapshot!(screen(&view(20, 5), 20, 5));
}

#[test]
fn no_size_is_too_small_or_too_odd() {
    for mode in ["", "\n", "?", "/udp", "p"] {
        for (width, height) in [(0, 0), (1, 1), (1, 30), (200, 1), (7, 3), (13, 9), (79, 17), (500, 200)] {
            let mut view = view(width, height);
            for character in mode.chars() {
                press(&mut view, if character == '\n' { KeyCode::Enter } else { KeyCode::Char(character) });
            }
            screen(&view, width, height);
        }
    }
}

#[test]
fn nothing_that_steers_and_no_odd_width_reaches_the_screen() {
    let mut view = view(120, 24);
    for mode in [KeyCode::Null, KeyCode::Enter, KeyCode::Down] {
        press(&mut view, mode);
        let screen = screen(&view, 120, 24);
        assert!(!screen.contains(['\u{1b}', '\u{202e}', '\u{301}']), "{screen}");
    }
}

#[test]
fn columns_stand_where_they_stand_however_wide_a_name_is() {
    let screen = screen(&view(120, 24), 120, 24);
    let at = |needle: &str, line: &str| -> Option<usize> {
        Some(ratatui::text::Span::raw(line[..line.find(needle)?].to_owned()).width())
    };
    let columns: Vec<_> = screen.lines().filter(|line| line.contains("日本") && line.contains("dropped")).collect();
    let heading = screen.lines().find_map(|line| at("WINNER", line));
    assert_eq!(columns.len(), 1, "{screen}");
    assert_eq!(at("10.244.1.7 node", columns[0]).or_else(|| at("node[3200]", columns[0])), heading, "{screen}");
}

#[test]
fn before_anything_has_happened() {
    let picture = Picture::new(second(0), clock());
    let view = View::new(picture, Size { width: 80, height: 24 }, false, jiff::tz::TimeZone::UTC);
    assert_snapshot!(screen(&view, 80, 24));
}

#[test]
fn details_and_the_way_back() {
    let mut view = view(80, 24);
    press(&mut view, KeyCode::End);
    press(&mut view, KeyCode::Enter);
    assert_snapshot!(screen(&view, 80, 24));
    let narrow = screen(&view, 30, 10);
    press(&mut view, KeyCode::Down);
    assert_ne!(screen(&view, 30, 10), narrow);
    press(&mut view, KeyCode::Esc);
    assert!(screen(&view, 80, 24).contains("TOP LOSERS"));
}

#[test]
fn losers_that_are_only_behind_an_address_are_none_that_sent() {
    let forwarded = forwarded();
    let turned = Race { loser: forwarded.winner.clone(), ..forwarded.clone() };
    let sent = pods();
    assert_eq!(sent.loser.place().1, turned.loser.place().1, "one pod, once seen sending and once only behind");
    let bare = Race { loser: Flow { behind: None, ..forwarded.loser.clone() }, ..forwarded.clone() };
    let mut ranked = losers([&forwarded, &turned, &sent, &bare].into_iter());
    ranked.sort();
    let names: Vec<&str> = ranked.iter().map(|(name, _)| name.as_str()).collect();
    let pod = "shop/cart-7d4b9c6f5-x2k4q";
    assert_eq!(names, ["? 10.244.1.9", &format!("? in {pod}"), "? via vnet3 10.244.1.9", pod]);
}

#[test]
fn details_scroll_to_their_end_and_at_once_back() {
    let mut view = view(80, 12);
    for key in [KeyCode::End, KeyCode::Enter, KeyCode::PageDown, KeyCode::PageDown, KeyCode::PageDown, KeyCode::Down] {
        press(&mut view, key);
    }
    let end = screen(&view, 80, 12);
    assert!(!end.starts_with("class"), "{end}");
    press(&mut view, KeyCode::Up);
    let above = screen(&view, 80, 12);
    assert_ne!(above, end);
    assert_eq!(above.lines().skip(1).take(10).collect::<Vec<_>>(), end.lines().take(10).collect::<Vec<_>>());
    press(&mut view, KeyCode::Home);
    press(&mut view, KeyCode::End);
    assert_eq!(screen(&view, 80, 12), end);
    // A screen with room for more shows more, and the next key goes on from there.
    view.resize(Size { width: 80, height: 14 });
    press(&mut view, KeyCode::Up);
    assert_eq!(screen(&view, 80, 14).lines().nth(3), end.lines().next());
}

#[test]
fn help() {
    let mut view = view(80, 24);
    press(&mut view, KeyCode::Char('?'));
    assert_snapshot!(screen(&view, 80, 24));
    press(&mut view, KeyCode::Char('q'));
    assert!(screen(&view, 80, 24).contains("TOP LOSERS"), "the key is only for the help");
}

#[test]
fn the_filter_is_for_lists_and_races() {
    let mut view = view(80, 24);
    typed(&mut view, "/udpq");
    assert!(screen(&view, 80, 24).contains("no race kept matches the filter"));
    press(&mut view, KeyCode::Backspace);
    press(&mut view, KeyCode::Enter);
    let shown = screen(&view, 80, 24);
    assert!(shown.contains("1 198.51.100.53:53") && !shown.contains("198.51.100.7:443"), "{shown}");
    assert!(shown.contains("filter \"udp\": 1 of 8"), "{shown}");
    assert_eq!(view.to_save().len(), 1);
    typed(&mut view, "/");
    press(&mut view, KeyCode::Esc);
    assert_eq!(view.to_save().len(), 8);
}

#[test]
fn a_stopped_picture_stands_while_counting_goes_on() {
    let mut view = view(80, 24);
    press(&mut view, KeyCode::Char(' '));
    let stopped = screen(&view, 80, 24);
    assert!(stopped.contains("paused, 0 new"), "{stopped}");
    (0..3).for_each(|_| view.picture.race(Arc::new(bare())));
    view.picture.at(second(99));
    assert_eq!(screen(&view, 80, 24), stopped.replace("0 new", "3 new"));
    press(&mut view, KeyCode::Char('p'));
    assert!(screen(&view, 80, 24).contains("00:01:39  races 11"));
}

#[test]
fn a_selection_stays_with_its_race() {
    let mut view = view(80, 24);
    press(&mut view, KeyCode::Down);
    press(&mut view, KeyCode::Down);
    let selected = Arc::clone(view.race().unwrap());
    view.picture.race(Arc::new(bare()));
    assert!(Arc::ptr_eq(&selected, view.race().unwrap()));
    let area = Rect::new(0, 0, 80, 24);
    let mut buffer = Buffer::empty(area);
    draw(&view, area, &mut buffer);
    let reversed = |y: u16| buffer[(0, y)].modifier.contains(Modifier::REVERSED);
    assert_eq!((0..24).filter(|&y| reversed(y)).collect::<Vec<_>>(), [12, 23], "the third race, and the status");
    for (key, at) in
        [(KeyCode::End, 8), (KeyCode::Down, 8), (KeyCode::Home, 0), (KeyCode::Up, 0), (KeyCode::PageDown, 8)]
    {
        press(&mut view, key);
        let races: Vec<_> = view.races().map(|(number, _)| number).collect();
        assert_eq!(view.selected(&races), Some(at), "{key:?}");
    }
}

#[test]
fn only_so_many_races_are_kept() {
    let mut view = view(120, 24);
    (0..KEPT + 5).for_each(|_| view.picture.race(Arc::new(collision())));
    view.picture.missed(3);
    let shown = screen(&view, 120, 24);
    assert_eq!(view.to_save().len(), KEPT);
    assert!(shown.contains(&format!("last {KEPT} kept, 13 before | 3 not in view")), "{shown}");
    assert!(shown.contains(&format!("races {}", KEPT + 16)), "{shown}");
}

#[test]
fn what_the_kernel_counted_and_nobody_explains_is_said() {
    let mut view = view(80, 24);
    view.picture.so_far(so_far(&races(), 5, 9, 500, 9));
    let shown = screen(&view, 80, 24);
    assert!(shown.contains("insert_failed +9 = 6 explained + 3 unexplained; lost 0; 1 on the way"), "{shown}");
}

#[test]
fn keys_that_the_view_leaves_to_others() {
    let mut view = view(80, 24);
    assert_eq!(press(&mut view, KeyCode::Char('q')), Some(Action::Quit));
    assert_eq!(press(&mut view, KeyCode::Char('q')), None, "a second one would give the summary up");
    assert_eq!(press(&mut view, KeyCode::Char('s')), Some(Action::Save));
    typed(&mut view, "/q");
    for (key, action) in [('c', Action::Quit), ('z', Action::Suspend)] {
        assert_eq!(view.key(KeyEvent::new(KeyCode::Char(key), KeyModifiers::CONTROL)), Some(action));
    }
}
