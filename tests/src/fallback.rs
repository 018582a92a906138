//! A kernel in which functions are inlined that others stand in for: `__nf_conntrack_confirm` for the insertion, and
//! `ip4_datagram_release_cb` for what connects a socket. No kernel of the matrix is one, so a real one is told that its functions are
//! not there.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use snat_trace::kernel::{Detail, KernelFacts, Symbols};
use snat_trace::output::json::JsonSink;
use snat_trace::probe::Sizes;
use snat_trace::race::filter::Filter;
use snat_trace::watch::{Options, Stop, watch};

use crate::output::Lines;
use crate::scenario::{Row, Scenario, whole};

/// The fallbacks'.
pub const SCENARIOS: &[Scenario] = &[whole("insertion at confirm", insertion_at_confirm)];

/// Every function of the hooks but `__nf_conntrack_hash_insert` and `reuseport_has_conns_set`.
const FUNCTIONS: [&str; 8] = [
    "nf_ct_resolve_clash",
    "nf_nat_setup_info",
    "__nf_conntrack_confirm",
    "tcp_connect",
    "ip4_datagram_release_cb",
    "ip6_datagram_release_cb",
    "ip_push_pending_frames",
    "ip6_push_pending_frames",
];

/// Races are as well told with the other hook.
///
/// # Errors
///
/// They are not.
pub fn insertion_at_confirm() -> Result<Row> {
    const ROUNDS: u64 = 30;

    let mut facts = KernelFacts::gather(Path::new("/"))?;
    facts.symbols = Symbols::read(BufReader::new(File::open("/proc/kallsyms")?), FUNCTIONS, "")?;
    let ready = Path::new("/tmp/ready-fallback");
    let options = Options {
        request: Detail::Full.into(),
        sizes: Sizes::default(),
        duration: None,
        count: None,
        filter: Filter::default(),
        ready_file: Some(ready),
        namespaces: &[],
    };
    let printed = Path::new("/tmp/fallback.json");
    let sink = Box::new(JsonSink::new(File::create(printed)?));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let lab = runtime.block_on(async {
        let lab = tokio::task::spawn_blocking(move || {
            while !ready.exists() {
                std::thread::yield_now();
            }
            Lines::of(&["lab", "--rounds", &ROUNDS.to_string()])
        });
        let (over, done) = tokio::sync::oneshot::channel();
        let stop = async {
            // Both ends live as long as the watching.
            let _ = over.send(lab.await);
            Stop::Over
        };
        watch(facts, &options, sink, stop).await?;
        done.await?.context("the lab's thread").and_then(|lab| lab)
    })?;

    let lines = Lines::parse_bytes(&fs::read(printed)?)?;
    let hooks = lines.only("session")?["hooks"].as_array().context("no hooks")?;
    for (role, symbol) in [("insertion", "__nf_conntrack_confirm"), ("owner-ipv4", "ip4_datagram_release_cb")] {
        let hook = hooks.iter().find(|hook| hook["role"] == role).with_context(|| format!("no {role} hook"))?;
        ensure!(hook["symbol"] == symbol && hook["attached"] == true, "{hook}");
    }
    ensure!(lines.races() == ROUNDS && lab.races() == ROUNDS, "{} races, the lab {}", lines.races(), lab.races());
    let is_race = |race: &Value| race["class"] == "snat-port-collision" && race["overlap_ns"].as_u64() > Some(0);
    ensure!(lines.all("race").all(is_race), "a race is not told as one: {lines:?}");
    Ok(Row::said(format!("{ROUNDS} races")))
}
