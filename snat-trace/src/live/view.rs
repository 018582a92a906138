//! What is on the screen, and what keys do to it. Pure.

use std::sync::Arc;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Size;

use super::details;
use super::draw::Rows;
use super::picture::Picture;
use super::words::Words;
use crate::race::event::Race;
use crate::race::time::KernelTime;

/// Longest filter, in characters.
const TYPED: usize = 200;

/// What a key asks for that the view cannot do itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// End watching.
    Quit,
    /// Stop the process, as the shell's job control does.
    Suspend,
    /// Write what is shown as evidence.
    Save,
}

/// What fills the screen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mode {
    /// Figures and the list of races.
    List,
    /// The same, and keys are the filter's text.
    Typing,
    /// Everything known of the selected race, from this line on.
    Details(usize),
    /// What keys do.
    Help,
}

/// The state of the view.
#[derive(Clone, Debug)]
pub struct View {
    /// What is known now.
    pub picture: Picture,
    /// What was known when the picture was stopped.
    stopped: Option<Picture>,
    mode: Mode,
    typed: String,
    words: Words,
    /// Number of the race that is selected; without, the youngest is on top.
    selected: Option<u64>,
    /// One line that is to be read next.
    note: Option<String>,
    size: Size,
    /// The end was asked for.
    quitting: bool,
    /// Whether colours may be used.
    pub(super) colour: bool,
    /// In which zone times are shown.
    pub(super) zone: jiff::tz::TimeZone,
}

impl View {
    /// Of a picture, on a screen of a size.
    #[must_use]
    pub fn new(picture: Picture, size: Size, colour: bool, zone: jiff::tz::TimeZone) -> Self {
        Self {
            picture,
            stopped: None,
            mode: Mode::List,
            typed: String::new(),
            words: Words::default(),
            selected: None,
            note: None,
            size,
            quitting: false,
            colour,
            zone,
        }
    }

    /// The screen has another size.
    pub fn resize(&mut self, size: Size) {
        self.size = size;
    }

    /// Puts a line where it is seen, until the next key.
    pub fn say(&mut self, note: String) {
        self.note = Some(note);
    }

    /// The picture on the screen.
    pub(super) fn shown(&self) -> &Picture {
        self.stopped.as_ref().unwrap_or(&self.picture)
    }

    /// The races on the screen or above and below it, the youngest first, each with its number.
    pub(super) fn races(&self) -> impl Iterator<Item = (u64, &Arc<Race>)> {
        self.shown().races().filter(|(_, race)| self.words.hold(race))
    }

    /// What is to be saved: the races that are shown, the oldest first.
    #[must_use]
    pub fn to_save(&self) -> Vec<Arc<Race>> {
        let mut races: Vec<_> = self.races().map(|(_, race)| Arc::clone(race)).collect();
        races.reverse();
        races
    }

    /// Since when no other races were to be shown: the start, or, once the oldest were let go, the oldest that is kept.
    pub(super) fn shown_from(&self) -> KernelTime {
        let picture = self.shown();
        let oldest = picture.races().last().map(|(_, race)| race.time);
        oldest.filter(|_| picture.not_kept() != (0, 0)).unwrap_or(picture.started())
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn typed(&self) -> &str {
        &self.typed
    }

    pub(super) fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// How many races came since the picture was stopped; `None` when it goes on.
    pub(super) fn new_since_stopped(&self) -> Option<u64> {
        self.stopped.as_ref().map(|stopped| self.picture.come() - stopped.come())
    }

    /// Where the selected race stands among `numbers`, which fall; where that is gone, the next one older, or the oldest.
    pub(super) fn selected(&self, numbers: &[u64]) -> Option<usize> {
        let selected = self.selected?;
        let last = numbers.len().checked_sub(1)?;
        Some(numbers.iter().position(|&number| number <= selected).unwrap_or(last))
    }

    /// Does what a key says.
    pub fn key(&mut self, key: KeyEvent) -> Option<Action> {
        self.note = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Some(Action::Quit),
                KeyCode::Char('z') => Some(Action::Suspend),
                _ => None,
            };
        }
        match self.mode {
            Mode::Typing => {
                self.type_filter(key.code);
                None
            }
            Mode::Help => {
                self.mode = Mode::List;
                None
            }
            Mode::List | Mode::Details(_) => self.command(key.code),
        }
    }

    fn command(&mut self, code: KeyCode) -> Option<Action> {
        match code {
            // Once: asking for the end a second time gives the summary up.
            KeyCode::Char('q') => return (!std::mem::replace(&mut self.quitting, true)).then_some(Action::Quit),
            KeyCode::Char('s') => return Some(Action::Save),
            KeyCode::Char('p' | ' ') => {
                self.stopped = if self.stopped.is_some() { None } else { Some(self.picture.clone()) };
            }
            KeyCode::Char('/') => self.mode = Mode::Typing,
            KeyCode::Char('?' | 'h') => self.mode = Mode::Help,
            KeyCode::Esc => match self.mode {
                Mode::Details(_) => self.mode = Mode::List,
                _ => self.selected = None,
            },
            KeyCode::Enter => match self.mode {
                Mode::Details(_) => self.mode = Mode::List,
                _ => self.open(),
            },
            _ => match self.mode {
                Mode::Details(line) => self.mode = Mode::Details(self.scrolled(line, code)),
                _ => self.select(code),
            },
        }
        None
    }

    /// Shows the details of the selected race, or of the youngest.
    fn open(&mut self) {
        if self.selected.is_none() {
            self.select(KeyCode::Home);
        }
        if self.selected.is_some() {
            self.mode = Mode::Details(0);
        }
    }

    /// Moves the selection.
    fn select(&mut self, code: KeyCode) {
        let numbers: Vec<u64> = self.races().map(|(number, _)| number).collect();
        let Some(last) = numbers.len().checked_sub(1) else { return };
        let page = Rows::of(self.size).list.max(1);
        let to = match (code, self.selected(&numbers)) {
            (KeyCode::Home, _) | (KeyCode::Down | KeyCode::PageDown, None) => 0,
            (KeyCode::End, _) => last,
            (KeyCode::Up, Some(at)) => at.saturating_sub(1),
            (KeyCode::Down, Some(at)) => at + 1,
            (KeyCode::PageUp, Some(at)) => at.saturating_sub(page),
            (KeyCode::PageDown, Some(at)) => at + page,
            _ => return,
        };
        self.selected = numbers.get(to.min(last)).copied();
    }

    /// The line of the details that a key makes the first, no further down than the last ones fill the screen.
    fn scrolled(&self, line: usize, code: KeyCode) -> usize {
        let (lines, room) = (details::lines(self, usize::from(self.size.width)), details::room(self.size.height));
        let last = lines.len().saturating_sub(room);
        let page = room.saturating_sub(1).max(1);
        let line = line.min(last);
        let to = match code {
            KeyCode::Up => line.saturating_sub(1),
            KeyCode::Down => line.saturating_add(1),
            KeyCode::PageUp => line.saturating_sub(page),
            KeyCode::PageDown => line.saturating_add(page),
            KeyCode::Home => 0,
            KeyCode::End => last,
            _ => line,
        };
        to.min(last)
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.mode = Mode::List,
            KeyCode::Esc => {
                self.mode = Mode::List;
                self.typed.clear();
            }
            KeyCode::Backspace => {
                self.typed.pop();
            }
            KeyCode::Char(character) if self.typed.chars().count() < TYPED => self.typed.push(character),
            _ => {}
        }
        self.words = Words::of(&self.typed);
    }

    /// The selected race; else the youngest.
    pub(super) fn race(&self) -> Option<&Arc<Race>> {
        let all: Vec<_> = self.races().collect();
        let numbers: Vec<u64> = all.iter().map(|(number, _)| *number).collect();
        all.get(self.selected(&numbers).unwrap_or(0)).map(|(_, race)| *race)
    }

    /// Lines of the details that are above the screen, of `lines`, on a screen of `rows`.
    pub(super) fn above(&self, lines: usize, rows: usize) -> usize {
        match self.mode {
            Mode::Details(line) => line.min(lines.saturating_sub(rows)),
            _ => 0,
        }
    }
}
