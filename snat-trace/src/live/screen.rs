//! The terminal: taken for the view, and given back as it was.

use std::io::{self, Stdout, stdout};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::crossterm::{execute, queue};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{View, draw};

/// How long a terminal that takes nothing is waited for.
const STANDS_STILL: Duration = Duration::from_millis(100);

/// Whether the terminal is the view's. The process has one, and a panic must find it.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// Whether something is being drawn on it. Set before [`TAKEN`] is looked at, and read after that is taken back.
static DRAWING: AtomicBool = AtomicBool::new(false);

/// A terminal that is the view's until it is left.
#[derive(Debug)]
pub(super) struct Screen(Terminal<CrosstermBackend<Stdout>>);

impl Screen {
    /// Takes the terminal. Whatever ends the process after that in order, [`leave`] gives it back, and so does a panic.
    pub(super) fn enter() -> io::Result<Self> {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            leave();
            before(panic);
        }));
        take()?;
        Ok(Self(Terminal::new(CrosstermBackend::new(stdout()))?))
    }

    /// Draws what has changed; after a change of its size, everything. Draws nothing once the screen was left.
    pub(super) fn draw(&mut self, view: &mut View) -> io::Result<()> {
        DRAWING.store(true, Ordering::SeqCst);
        let drawn = if TAKEN.load(Ordering::SeqCst) {
            self.0
                .draw(|frame| {
                    view.resize(frame.area().as_size());
                    draw(view, frame.area(), frame.buffer_mut());
                })
                .map(drop)
        } else {
            Ok(())
        };
        DRAWING.store(false, Ordering::SeqCst);
        drawn
    }

    /// Gives the terminal back, stops as a shell's job does, and takes it again when the job goes on.
    pub(super) fn suspend(&mut self) -> io::Result<()> {
        leave();
        // SAFETY: no memory is touched. To this thread, so that it has stopped when the next line runs; the others stop with it.
        unsafe { libc::raise(libc::SIGTSTP) };
        take()?;
        // A new one, which knows nothing of what stands on the screen. Its own way to clear it asks the terminal where the cursor
        // is, and the answer would be lost among the keys.
        self.0 = Terminal::new(CrosstermBackend::new(stdout()))?;
        Ok(())
    }
}

fn take() -> io::Result<()> {
    TAKEN.store(true, Ordering::SeqCst);
    enable_raw_mode()?;
    execute!(stdout(), EnterAlternateScreen, Hide)
}

/// Gives the terminal back if the view has it. Safe to call at any time and again, and does not wait for whoever draws: that may
/// stand still.
pub fn leave() {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return;
    }
    // What is being drawn would come after the last word.
    let deadline = Instant::now() + STANDS_STILL;
    while DRAWING.load(Ordering::SeqCst) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    // Where the terminal is gone there is nothing to give back.
    let _ = disable_raw_mode();
    let _ = leave_screen();
}

fn leave_screen() -> io::Result<()> {
    let mut sequence = Vec::new();
    queue!(sequence, Show, LeaveAlternateScreen)?;
    let mut writable = [PollFd::from_borrowed_fd(rustix::stdio::stdout(), PollFlags::OUT)];
    let patience = Timespec { tv_sec: 0, tv_nsec: STANDS_STILL.subsec_nanos().into() };
    if poll(&mut writable, Some(&patience))? > 0 {
        // Not by the standard library's handle, which whoever draws has locked.
        rustix::io::write(rustix::stdio::stdout(), &sequence)?;
    }
    Ok(())
}
