//! A terminal of its own, by tmux: keys go in, and what is on the screen comes out.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How long the screen may take; an emulated machine is slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the screen, which tells nobody when it changes.
const BETWEEN: Duration = Duration::from_millis(20);

/// One tmux server with one pane; killed when dropped.
#[derive(Debug)]
pub struct Tmux {
    socket: String,
}

impl Tmux {
    /// A terminal of that size in which `line` runs under a shell, on a server of that name, which nobody else has.
    ///
    /// # Errors
    ///
    /// tmux is not there or does not start.
    pub fn start(name: &str, columns: u16, rows: u16, line: &str) -> Result<Self> {
        let tmux = Self { socket: name.to_owned() };
        let (columns, rows) = (columns.to_string(), rows.to_string());
        tmux.run(&["new-session", "-d", "-x", &columns, "-y", &rows, line])?;
        Ok(tmux)
    }

    /// Whether this machine has one.
    #[must_use]
    pub fn is_here() -> bool {
        Command::new("tmux").arg("-V").output().is_ok_and(|output| output.status.success())
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut tmux = Command::new("tmux");
        // No user's settings, and no server of theirs.
        tmux.args(["-L", &self.socket, "-f", "/dev/null", "-u"]).args(arguments);
        let output = tmux.env_remove("TMUX").env("LC_ALL", "C.UTF-8").output().context("cannot start tmux")?;
        ensure!(output.status.success(), "tmux {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).context("a screen that is not UTF-8")
    }

    /// Presses keys, by tmux's names for them.
    ///
    /// # Errors
    ///
    /// The pane is gone.
    pub fn keys(&self, keys: &[&str]) -> Result<()> {
        self.run(&[&["send-keys"], keys].concat()).map(drop)
    }

    /// Gives the terminal another size.
    ///
    /// # Errors
    ///
    /// The pane is gone.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        self.run(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]).map(drop)
    }

    /// What is on the screen.
    ///
    /// # Errors
    ///
    /// The pane is gone.
    pub fn screen(&self) -> Result<String> {
        self.run(&["capture-pane", "-p"])
    }

    /// Waits until the screen is as it should be, and gives it.
    ///
    /// # Errors
    ///
    /// It never is; the error has what was there instead.
    pub fn wait(&self, what: &str, is: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen()?;
            // Not in the midst of being drawn.
            if is(&screen) && self.screen()? == screen {
                return Ok(screen);
            }
            ensure!(Instant::now() < deadline, "waited in vain: {what}; on the screen:\n{screen}");
            std::thread::sleep(BETWEEN);
        }
    }

    /// Waits until the screen has a text.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_for(&self, text: &str) -> Result<String> {
        self.wait(text, |screen| screen.contains(text))
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        // Its server ends with its last pane.
        let _gone_already = self.run(&["kill-server"]);
    }
}
