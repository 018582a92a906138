//! The live view of real races, driven by keys in a terminal of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::evidence::replayed;
use crate::output::Lines;
use crate::scenario::{Numbers, Row, Scenario, Skip, brief, whole};
use crate::tmux::Tmux;

/// In the order they run.
pub const SCENARIOS: &[Scenario] =
    &[brief("live view", || view("q")), whole("live view, by a signal", || view("SIGTERM"))];

/// Where the view runs and what it saves comes to lie.
const PLACE: &str = "/tmp/live";

/// Rounds of the lab.
const ROUNDS: &str = "40";

/// What the terminal runs: it says at the end with which code the view ended, and whether the terminal is as it was.
const SCRIPT: &str = "cd /tmp/live\nbefore=$(stty -g)\n\
    sh -c 'echo $$ >pid; exec snat-trace --tui --fail-on-race --ready-file ready'\n\
    echo \"ended $?\"; [ \"$before\" = \"$(stty -g)\" ] && echo sane\nread end\n";

/// A lab's races on the screen, as many and by whom the lab found to be true; what is saved is what was there; and at the end
/// the terminal is as it was, with the summary on it.
fn view(end: &str) -> Result<Row> {
    if !Tmux::is_here() {
        return Err(Skip::because("there is no tmux here"));
    }
    let place = Path::new(PLACE);
    if place.exists() {
        fs::remove_dir_all(place)?;
    }
    fs::create_dir_all(place)?;
    let script = place.join("script");
    fs::write(&script, SCRIPT)?;
    let tmux = Tmux::start("live", 80, 24, &format!("exec sh {}", script.display()))?;
    tmux.wait("the view, attached", |screen| screen.contains("no races so far") && place.join("ready").exists())?;

    let lab = Lines::of(&["lab", "--rounds", ROUNDS])?;
    let numbers = lab.numbers()?;
    let seen = numbers.seen.context("the lab says how many it saw")?;
    let came = format!("races {seen},");
    let screen = tmux.wait(&came, |screen| screen.contains(&came) && screen.contains("+ 0 unexplained; lost 0"))?;
    let mut losers = BTreeMap::<&str, u32>::new();
    for race in lab.all("race") {
        *losers.entry(race["loser"]["owner"]["comm"].as_str().context("a loser has a name")?).or_default() += 1;
    }
    for (name, count) in losers {
        let line = format!("{count:>4} {name} ");
        ensure!(screen.contains(&line), "no {line:?} among the losers:\n{screen}");
    }

    tmux.keys(&["s"])?;
    let screen = tmux.wait_for(&format!("saved {seen} races in ./snat-trace-"))?;
    let name = screen.split_whitespace().find_map(|word| word.strip_prefix("./")).context("a name")?;
    let saved = replayed(&place.join(name), &["--format", "json"])?;
    let saved = Lines::parse(&saved)?;
    ensure!(saved.races() == seen, "{} races were saved", saved.races());

    tmux.keys(&["Down", "Enter"])?;
    tmux.wait_for("class      snat-port-collision, dropped")?;
    tmux.resize(40, 10)?;
    tmux.keys(&["Escape"])?;
    tmux.wait("a small picture", |screen| screen.contains(&came) && !screen.contains("TOP"))?;
    tmux.resize(80, 24)?;
    tmux.wait_for("TOP DESTINATIONS")?;

    if end == "SIGTERM" {
        let pid = fs::read_to_string(place.join("pid"))?.trim().parse()?;
        kill_process(Pid::from_raw(pid).context("a process has a pid")?, Signal::TERM)?;
    } else {
        tmux.keys(&[end])?;
    }
    let screen = tmux.wait_for("ended 10\nsane")?;
    ensure!(screen.contains(&format!("{seen} races, all dropped")), "no summary:\n{screen}");
    Ok(Row {
        text: String::new(),
        numbers: Numbers { seen: Some(seen), expected: numbers.expected, ..Numbers::default() },
    })
}
