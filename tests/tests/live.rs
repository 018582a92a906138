//! The live view on a real terminal: its own thread and screen, fed with evidence of real races, in tmux.
//!
//! A program of its own rather than the usual harness, because what runs in the terminal is another process of it.

use std::fs::{self, File};
use std::io::{self, IsTerminal as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Action, Winsize, tcflow, tcsetwinsize};
use snat_trace::evidence::{Item, clock, read};
use snat_trace::live::{LiveSink, Log, Look, leave};
use snat_trace::output::Sink;
use snat_trace::output::text::{Style, TextSink};
use snat_trace_tests::tmux::Tmux;
use tokio::signal::unix::{SignalKind, signal};

/// Recorded on a real kernel: 20 races, of them 5 over one port and 2 over ICMP, and 2 failures.
const EVIDENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../snat-trace/tests/data/evidence/7.zst");
const RACES: usize = 20;
/// So many times that is more than may be on its way to the view.
const MANY: usize = 500;

/// Something to see in a folder of its own.
type Case = fn(&Path) -> Result<()>;

/// Each with its name.
const CASES: [(&str, Case); 8] = [
    ("figures, lists, resize, and the terminal as it was", figures),
    ("pause", pause),
    ("filter", filter),
    ("details", details),
    ("save", save),
    ("job control", job_control),
    ("a panic leaves the terminal as it was", panic),
    ("a terminal that takes nothing holds nothing up", stands_still),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, how] = arguments.as_slice()
        && command == "view"
    {
        return match view(how) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    if !Tmux::is_here() {
        println!("skipped: no tmux here");
        return ExitCode::SUCCESS;
    }
    let mut code = ExitCode::SUCCESS;
    for (name, case) in CASES {
        let began = Instant::now();
        let outcome = place(name).and_then(|place| {
            case(&place)?;
            Ok(fs::remove_dir_all(place)?)
        });
        match outcome {
            Ok(()) => println!("ok      {name} ({:.1} s)", began.elapsed().as_secs_f64()),
            Err(error) => {
                println!("FAILED  {name}: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

/// A folder of the case's own, new.
fn place(name: &str) -> Result<std::path::PathBuf> {
    let name: String = name.chars().filter(char::is_ascii_alphabetic).collect();
    let place = std::env::temp_dir().join(format!("snat-trace-live-{name}-{}", std::process::id()));
    fs::create_dir(&place).with_context(|| place.display().to_string())?;
    Ok(place)
}

/// What runs in the terminal: all of the evidence at once, and all of it again at each SIGUSR1, until SIGINT or SIGTERM.
fn view(how: &str) -> Result<()> {
    let items = read(File::open(EVIDENCE)?).collect::<Result<Vec<_>, _>>()?;
    let style = Style { width: Some(80), colour: false, verbose: false, zone: jiff::tz::TimeZone::UTC };
    ensure!(io::stdout().is_terminal(), "no terminal");
    let look = Look { colour: false, zone: jiff::tz::TimeZone::UTC };
    let after: Box<dyn Sink + Send> = match how {
        "stuck" => Box::new(TextSink::new(File::create("summary")?, style)),
        _ => Box::new(TextSink::new(io::stdout(), style)),
    };
    let mut sink = LiveSink::new(look, Log::default(), |_| snat_trace::audit::Look::default(), after);
    let mut feed = |again: bool| -> io::Result<()> {
        for item in &items {
            match item {
                Item::Session(session) if !again => sink.session(session)?,
                Item::Race(race) => sink.race(race, clock())?,
                Item::Failure(failure) => sink.failure(failure, clock())?,
                Item::Summary(summary) => sink.so_far(summary)?,
                Item::Session(_) | Item::Node(_) | Item::Rules(_) | Item::Sample(_) => {}
            }
        }
        Ok(())
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut again = signal(SignalKind::user_defined1())?;
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        feed(false)?;
        fs::write("pid", std::process::id().to_string())?;
        assert!(how != "panic", "a panic on purpose");
        loop {
            tokio::select! {
                _ = again.recv() => {
                    (0..if how == "stuck" { MANY } else { 1 }).try_for_each(|_| feed(true))?;
                    fs::write("fed", "")?;
                }
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
            }
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let summary = items.iter().find_map(|item| match item {
        Item::Summary(summary) => Some(summary),
        _ => None,
    });
    sink.summary(summary.context("no summary")?)?;
    leave();
    Ok(())
}

/// A terminal in which the view runs, and says at its end with which code and whether the terminal is as it was.
fn terminal(place: &Path, how: &str) -> Result<Tmux> {
    let own = std::env::current_exe()?;
    // A backtrace, where the machine asks for one, would push what is looked for off the screen.
    let script = format!(
        "cd '{place}'\nset -m\nbefore=$(stty -g)\nRUST_BACKTRACE=0 '{own}' view {how}\n\
         while code=$?; [ \"$code\" -gt 128 ]; do\n\
         echo \"stopped $code\"; [ \"$before\" = \"$(stty -g)\" ] && echo sane; read -r go; fg >/dev/null\ndone\n\
         echo \"ended $code\"; [ \"$before\" = \"$(stty -g)\" ] && echo sane\nread -r end\n",
        place = place.display(),
        own = own.display(),
    );
    let path = place.join("script");
    fs::write(&path, script)?;
    let name = place.file_name().and_then(std::ffi::OsStr::to_str).context("a place has a name")?;
    Tmux::start(name, 80, 24, &format!("exec bash '{}'", path.display()))
}

/// Sends a signal to the process in the terminal.
fn tell(place: &Path, signal: Signal) -> Result<()> {
    let pid = fs::read_to_string(place.join("pid"))?.parse()?;
    kill_process(Pid::from_raw(pid).context("a process has a pid")?, signal).context("cannot send a signal")
}

/// Waits for the end, and sees that the terminal is as it was and the summary on it.
fn ended(tmux: &Tmux) -> Result<()> {
    let screen = tmux.wait_for("ended 0\nsane")?;
    ensure!(screen.contains("20 races, 15 dropped, 5 resolved"), "no summary:\n{screen}");
    ensure!(!screen.contains("q quit"), "the view is still there:\n{screen}");
    Ok(())
}

/// Ends the view by a key.
fn quit(tmux: &Tmux, key: &str) -> Result<()> {
    tmux.keys(&[key])?;
    ended(tmux)
}

fn figures(place: &Path) -> Result<()> {
    let tmux = terminal(place, "all")?;
    let screen = tmux.wait_for("insert_failed +14 = 14 explained + 0 unexplained; lost 0")?;
    for text in
        ["races 20", "connections 50", "no race 2", "TOP DESTINATIONS", "TOP LOSERS", "OVERLAP", "VERDICT", "? help"]
    {
        ensure!(screen.contains(text), "no {text:?}:\n{screen}");
    }
    // As replay prints the evidence.
    ensure!(screen.lines().any(|line| line.contains(" 5 10.99.1.2:20384")), "destinations:\n{screen}");
    ensure!(screen.lines().count() == 24, "{} lines", screen.lines().count());
    tmux.resize(120, 40)?;
    let screen = tmux.wait("40 lines", |screen| screen.lines().count() == 40 && screen.contains("fixed-port"))?;
    ensure!(screen.lines().filter(|line| line.contains("10.99.1.2:2")).count() > 15, "all races have room:\n{screen}");
    tmux.resize(40, 10)?;
    tmux.wait("no lists where there is no room", |screen| !screen.contains("TOP") && screen.contains("races 20"))?;
    tmux.resize(20, 5)?;
    tmux.wait("little", |screen| screen.contains("races 2") && screen.lines().all(|line| line.chars().count() <= 20))?;
    tmux.resize(80, 24)?;
    tmux.wait_for("TOP LOSERS")?;
    quit(&tmux, "q")
}

fn pause(place: &Path) -> Result<()> {
    let tmux = terminal(place, "all")?;
    tmux.wait_for("races 20")?;
    tmux.keys(&["p"])?;
    let before = tmux.wait_for("paused, 0 new")?;
    tell(place, Signal::USR1)?;
    let stopped = tmux.wait_for("paused, 20 new")?;
    let figures = |screen: &str| screen.lines().take(23).map(str::to_owned).collect::<Vec<_>>();
    ensure!(figures(&stopped) == figures(&before), "the picture moved:\n{stopped}");
    tmux.keys(&["Space"])?;
    let screen = tmux.wait_for("races 40")?;
    ensure!(screen.contains("10 10.99.1.2:20384"), "{screen}");
    tell(place, Signal::TERM)?;
    ended(&tmux)
}

fn filter(place: &Path) -> Result<()> {
    let tmux = terminal(place, "all")?;
    tmux.wait_for("races 20")?;
    tmux.keys(&["/", "fixed-port", "Enter"])?;
    let screen = tmux.wait_for("filter \"fixed-port\": 5 of 20")?;
    ensure!(!screen.contains("10.100.1.88"), "more than the filter shows:\n{screen}");
    tmux.keys(&["/", "-nothing", "Enter"])?;
    tmux.wait_for("no race kept matches the filter")?;
    tmux.keys(&["/", "Escape"])?;
    tmux.wait("all again", |screen| screen.contains("10.100.1.88") && !screen.contains("filter \""))?;
    quit(&tmux, "q")
}

fn details(place: &Path) -> Result<()> {
    let tmux = terminal(place, "all")?;
    tmux.wait_for("races 20")?;
    tmux.keys(&["End", "Enter"])?;
    tmux.wait_for("class      snat-port-collision, dropped")?;
    let screen = tmux.wait_for("asked for a port")?;
    ensure!(screen.contains("loser ") && screen.contains("winner ") && screen.contains("packet "), "{screen}");
    tmux.keys(&["Escape"])?;
    tmux.wait_for("TOP LOSERS")?;
    tmux.keys(&["Home", "Enter"])?;
    tmux.wait_for("class      duplicate-flow, resolved-reply-only")?;
    tmux.keys(&["Escape"])?;
    tmux.wait_for("TOP LOSERS")?;
    tmux.keys(&["?"])?;
    tmux.wait_for("save the races shown as evidence")?;
    tmux.keys(&["x"])?;
    tmux.wait_for("TOP LOSERS")?;
    quit(&tmux, "q")
}

fn save(place: &Path) -> Result<()> {
    let tmux = terminal(place, "all")?;
    tmux.wait_for("races 20")?;
    tmux.keys(&["s"])?;
    tmux.wait_for("saved 20 races in ./snat-trace-")?;
    tmux.keys(&["/", "icmp", "Enter", "s"])?;
    tmux.wait_for("saved 2 races in ./snat-trace-")?;
    quit(&tmux, "q")?;
    let mut counts = Vec::new();
    for entry in fs::read_dir(place)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "zst") {
            continue;
        }
        let items = read(File::open(path)?).collect::<Result<Vec<_>, _>>()?;
        counts.push(items.iter().filter(|item| matches!(item, Item::Race(_))).count());
        ensure!(matches!(items.last(), Some(Item::Summary(_))), "no summary at the end");
    }
    counts.sort_unstable();
    ensure!(counts == [2, RACES], "{counts:?}");
    Ok(())
}

fn job_control(place: &Path) -> Result<()> {
    let tmux = terminal(place, "all")?;
    tmux.wait_for("races 20")?;
    tmux.keys(&["C-z"])?;
    let screen = tmux.wait_for("stopped 148\nsane")?;
    ensure!(!screen.contains("races 20"), "the view is still there:\n{screen}");
    tmux.keys(&["go", "Enter"])?;
    tmux.wait_for("races 20")?;
    quit(&tmux, "C-c")
}

fn panic(place: &Path) -> Result<()> {
    let tmux = terminal(place, "panic")?;
    let screen = tmux.wait_for("ended 101\nsane")?;
    ensure!(screen.contains("a panic on purpose"), "{screen}");
    Ok(())
}

/// Output stops as by Ctrl-S on a real terminal, while races come and at the end: the process goes on and ends all the same.
fn stands_still(place: &Path) -> Result<()> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let terminal = File::options().read(true).write(true).open(std::ffi::OsStr::from_bytes(name.as_bytes()))?;
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&terminal, size)?;
    let mut view = Command::new(std::env::current_exe()?);
    view.args(["view", "stuck"]).current_dir(place).stderr(Stdio::null());
    let mut view = view.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).spawn()?;
    let mut until = |what: &str, holds: &mut dyn FnMut(&mut Child) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds(&mut view) {
            if Instant::now() > deadline {
                view.kill()?;
                view.wait()?;
                bail!("waited in vain: {what}");
            }
            std::thread::yield_now();
        }
        Ok(())
    };
    until("the view", &mut |_| fs::read(place.join("pid")).is_ok_and(|pid| !pid.is_empty()))?;
    tcflow(&terminal, Action::OOff)?;
    tell(place, Signal::USR1)?;
    until("every race taken", &mut |_| place.join("fed").exists())?;
    tell(place, Signal::TERM)?;
    until("the end", &mut |view| view.try_wait().is_ok_and(|status| status.is_some()))?;
    let summary = fs::read_to_string(place.join("summary"))?;
    ensure!(view.wait()?.success() && summary.contains("20 races, 15 dropped"), "{summary}");
    drop(master);
    Ok(())
}
