//! Golden texts and JSON of hand-made races and summaries.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use super::Sink;
use super::json::JsonSink;
use super::text::{Style, TextSink};
use crate::counters::account::{Account, Caveat};
use crate::counters::figures::Tally;
use crate::kernel::{Detail, Mechanism, Role};
use crate::owner::{Behind, CommandLine, Container, Owner, OwnerSource, Pod, Program};
use crate::probe::{AttachedHook, HookState};
use crate::race::event::{Class, Flow, NatRule, NetnsInum, PortUse, Race, Verdict};
use crate::race::failure::{Failure, Reason};
use crate::race::time::{KernelTime, WallClock};
use crate::race::tuple::{Ends, OriginalTuple, Protocol, TranslatedTuple};
use crate::session::Session;
use crate::summary::{PortChoice, Span, Summary};

const HOST: NetnsInum = NetnsInum(4_026_531_840);
const POD: NetnsInum = NetnsInum(4_026_532_262);

/// Boot at 2026-03-01T12:00:00Z.
pub(crate) fn clock() -> WallClock {
    WallClock::from_offset(1_772_366_400_000_000_000)
}

/// Nanoseconds after boot.
fn at(nanoseconds: u64) -> KernelTime {
    KernelTime::from_record(nanoseconds).unwrap()
}

fn ends(source: &str, destination: &str) -> Ends {
    let end = |text: &str| text.parse::<SocketAddr>().unwrap();
    Ends { source: end(source), destination: end(destination) }
}

pub(crate) fn owner(comm: &str, pid: u32, container: Option<(&'static str, &str)>) -> Owner {
    let id = container.map(|(_, id)| id.to_owned());
    Owner {
        pid,
        tid: Some(pid + 2),
        comm: comm.to_owned(),
        netns: Some(POD),
        cgroup_id: Some(7321),
        cgroup: id.as_ref().map(|id| format!("/kubepods.slice/cri-containerd-{id}.scope")),
        container: container.map(|(runtime, id)| Container::of(runtime, id)),
        pod: None,
        program: Program {
            uid: Some(1000),
            started: Some("2026-03-01T11:58:03.25Z".parse().unwrap()),
            own_pid: Some(7),
            executable: Some(format!("/usr/bin/{comm}")),
            command_line: Some(CommandLine {
                words: [comm, "-s", "", "http://198.51.100.7/a b"].map(str::to_owned).to_vec(),
                cut: true,
            }),
        },
        source: OwnerSource::Socket,
    }
}

const CURL: &str = "5e3fa1c0d2b44e6f8a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f7";
const NODE: &str = "91c2d0e1f2a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d";

fn flow(source: &str, destination: &str, owner: Option<Owner>) -> Flow {
    Flow {
        original: OriginalTuple::from_ends(ends(source, destination)),
        allocated: None,
        inserted: None,
        cpu: None,
        owner,
        behind: None,
    }
}

/// Everything known: two pods, one port, both containers.
pub(crate) fn collision() -> Race {
    let asked = |flow, nanoseconds, cpu| Flow { allocated: Some(at(nanoseconds)), cpu: Some(cpu), ..flow };
    let loser = flow("10.244.1.9:41234", "198.51.100.7:443", Some(owner("curl", 4711, Some(("containerd", CURL)))));
    let winner = flow("10.244.1.7:41234", "198.51.100.7:443", Some(owner("node", 3200, Some(("containerd", NODE)))));
    Race {
        time: at(271_204_005_900),
        class: Class::SnatPortCollision,
        verdict: Some(Verdict::Dropped),
        protocol: Protocol::TCP,
        netns: Some(HOST),
        zone: 0,
        winner_zone: 0,
        contested: TranslatedTuple::from_ends(ends("192.0.2.10:41234", "198.51.100.7:443")),
        overlap: Some(Duration::from_nanos(812)),
        nat: Some(NatRule { random: false, ports: None }),
        port_use: None,
        winner: Flow { inserted: Some(at(271_204_004_612)), ..asked(winner, 271_204_003_300, 0) },
        loser: asked(loser, 271_204_003_800, 3),
        packet: (0..40).collect(),
    }
}

/// As little as there can be: no owners, no times, no namespace, no verdict.
pub(crate) fn bare() -> Race {
    let bare = |source| flow(source, "198.51.100.53:53", None);
    Race {
        verdict: None,
        protocol: Protocol::UDP,
        netns: None,
        zone: 7,
        winner_zone: 3,
        contested: TranslatedTuple::from_ends(ends("192.0.2.10:5353", "198.51.100.53:53")),
        overlap: None,
        nat: None,
        winner: bare("10.244.1.7:5353"),
        loser: bare("10.244.1.9:5353"),
        packet: Bytes::new(),
        ..collision()
    }
}

/// The widest addresses, ports, process and name there can be in IPv4.
fn widest() -> Race {
    let wide = |source, container| {
        flow(source, "203.100.113.245:65535", Some(owner("containerd-shim", 4_194_304, Some(("cri-o", container)))))
    };
    Race {
        contested: TranslatedTuple::from_ends(ends("192.168.101.102:65535", "203.100.113.245:65535")),
        overlap: Some(Duration::from_nanos(999_949)),
        winner: wide("192.168.200.201:65535", NODE),
        loser: wide("192.168.200.202:65535", CURL),
        ..collision()
    }
}

fn ipv6() -> Race {
    let (one, two) = ("[fd00:10:244::7]:40000", "[fd00:10:244::9]:40000");
    let server = "[2001:db8:1:2:3:4:5:6]:443";
    Race {
        contested: TranslatedTuple::from_ends(ends("[2001:db8::10]:40000", server)),
        winner: flow(one, server, Some(owner("curl", 12, None))),
        loser: flow(two, server, Some(owner("curl", 34, None))),
        ..collision()
    }
}

fn icmp() -> Race {
    let ping = |source| flow(source, "198.51.100.7:0", Some(owner("ping", 77, None)));
    Race {
        protocol: Protocol::ICMP,
        verdict: None,
        contested: TranslatedTuple::from_ends(ends("192.0.2.10:4660", "198.51.100.7:0")),
        winner: ping("10.244.1.7:4660"),
        loser: ping("10.244.1.9:4660"),
        ..collision()
    }
}

/// The rule's ports were used up.
fn exhaustion() -> Race {
    Race {
        class: Class::PortExhaustion,
        overlap: None,
        nat: Some(NatRule { random: true, ports: Some((40_000, 40_001)) }),
        port_use: Some(PortUse { in_range: 2, in_use: Some(2) }),
        ..collision()
    }
}

fn resolved() -> Race {
    Race { class: Class::DuplicateFlow, verdict: Some(Verdict::ResolvedReplyOnly), protocol: Protocol::UDP, ..bare() }
}

/// Two pods, one whose container is known and one of which that could not be read; the winner's name is long.
pub(crate) fn pods() -> Race {
    let pod = |namespace: &str, name: &str, uid: &str| {
        Some(Pod { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.to_owned() })
    };
    let [mut loser, mut winner] = [collision().loser, collision().winner];
    if let Some(owner) = &mut loser.owner {
        owner.pod = pod("shop", "cart-7d4b9c6f5-x2k4q", "0f3ae9d2-1c55-4f6b-9f0e-2a7c1f1d9b11");
        owner.container = Some(Container {
            name: Some("app".to_owned()),
            image: Some("registry.example/shop/cart:1.4".to_owned()),
            ..Container::of("containerd", CURL)
        });
    }
    if let Some(owner) = &mut winner.owner {
        owner.pod = pod("kube-system", "node-local-dns-exporter-with-a-long-name-8z9xv", &NODE[..32]);
    }
    Race { winner, loser, ..collision() }
}

/// A container with a name beside a unit.
fn named_container() -> Race {
    let [mut loser, mut winner] = [collision().loser, collision().winner];
    if let Some(owner) = &mut loser.owner {
        owner.container = Some(Container {
            name: Some("compose-project-frontend-1".to_owned()),
            image: Some("nginx".to_owned()),
            ..Container::of("docker", CURL)
        });
    }
    if let Some(owner) = &mut winner.owner {
        owner.container = Some(Container::of("systemd", "chronyd.service"));
        owner.cgroup = Some("/system.slice/chronyd.service".to_owned());
    }
    Race { winner, loser, ..collision() }
}

/// Forwarded: for a virtual machine on a bridge, and out of a pod whose process is gone.
pub(crate) fn forwarded() -> Race {
    let machine = Behind { interface: "virbr0".to_owned(), port: Some("vnet3".to_owned()), ..Behind::default() };
    let pod = pods().loser.owner.unwrap();
    let pod = Behind {
        interface: "cali7f2c1d0e9a8".to_owned(),
        port: None,
        netns: Some(POD),
        container: pod.container,
        pod: pod.pod,
    };
    Race {
        loser: Flow { owner: None, behind: Some(machine), ..collision().loser },
        winner: Flow { owner: None, behind: Some(pod), ..collision().winner },
        ..collision()
    }
}

/// Names that try to steer the terminal, break the line or turn it round.
fn hostile() -> Race {
    let mut mean = owner("a\x1b[2Jb\nc\u{9b}1m", 13, None);
    mean.container = Some(Container {
        name: Some("n\x1b[31m\u{fffd}\n".to_owned()),
        image: Some("i\x07\u{2066}/\t:\u{7f}".to_owned()),
        ..Container::of("podman", "x\u{202e}y\rz")
    });
    mean.pod = Some(Pod {
        namespace: "kube\n-system".to_owned(),
        name: "p\x1b]0;title\x07\u{200e}".to_owned(),
        uid: "\u{85}<script>|`".to_owned(),
    });
    mean.cgroup = Some("/evil\n\x1b]0;title\x07/\u{202e}\u{7f}".to_owned());
    mean.tid = None;
    mean.source = OwnerSource::SocketLookup;
    let source = OwnerSource::SocketConnect;
    let gone = Owner { cgroup: None, container: None, tid: None, source, ..owner("wörker", 14, None) };
    Race {
        loser: Flow { owner: Some(mean), ..collision().loser },
        winner: Flow { owner: Some(gone), ..collision().winner },
        ..collision()
    }
}

/// Everything known, and as little as there can be.
pub(crate) fn failures() -> [Failure; 2] {
    let full = Failure {
        time: collision().time,
        reason: Reason::TableFull,
        errno: Some(12),
        protocol: Protocol::TCP,
        netns: Some(HOST),
        zone: 0,
        flow: Flow { cpu: Some(3), ..flow("10.244.1.9:41234", "198.51.100.7:443", collision().loser.owner) },
        by_packet: true,
        counted: Tally::default(),
    };
    let bare = Failure {
        reason: Reason::StaleExtension,
        errno: None,
        protocol: Protocol::ICMP,
        netns: None,
        flow: flow("10.244.1.9:4660", "198.51.100.7:0", None),
        ..full.clone()
    };
    [full, bare]
}

pub(crate) fn every_kind() -> Vec<Race> {
    vec![
        collision(),
        bare(),
        widest(),
        ipv6(),
        icmp(),
        exhaustion(),
        resolved(),
        pods(),
        named_container(),
        forwarded(),
        hostile(),
    ]
}

pub(crate) fn session() -> Session {
    let hook = |role, symbol: &'static str, state| AttachedHook {
        role,
        symbol: symbol.into(),
        mechanism: Mechanism::Kprobe,
        state,
    };
    Session {
        tool: concat!("snat-trace ", env!("CARGO_PKG_VERSION")).to_owned(),
        clock: clock(),
        started: at(211_000_000_000),
        kernel: "6.12.1-test".to_owned(),
        machine: "x86_64".to_owned(),
        boot_id: Some("101ee274-d18a-4e9b-928c-314bc8a94ed7".to_owned()),
        request: Detail::Full.into(),
        hooks: vec![
            hook(Role::Clash, "nf_ct_resolve_clash", HookState::Attached),
            AttachedHook {
                mechanism: Mechanism::Kretprobe,
                ..hook(Role::Verdict, "nf_ct_resolve_clash", HookState::Attached)
            },
            hook(
                Role::Allocation,
                "nf_nat_setup_info",
                HookState::NotAttached { reason: "module nf_nat is not loaded".to_owned(), cost: "times are absent" },
            ),
        ],
    }
}

fn styled(width: Option<usize>) -> Style {
    Style { width, colour: false, verbose: false, zone: jiff::tz::TimeZone::fixed(jiff::tz::offset(2)) }
}

fn text(style: &Style, races: &[Race]) -> String {
    let mut out = Vec::new();
    let mut sink = TextSink::new(&mut out, style.clone());
    sink.session(&session()).unwrap();
    races.iter().for_each(|race| sink.race(race, clock()).unwrap());
    String::from_utf8(out).unwrap()
}

fn closing(style: Style, summary: &Summary) -> String {
    let mut out = Vec::new();
    TextSink::new(&mut out, style).summary(summary).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn text_at_every_width() {
    for width in [None, Some(80), Some(100), Some(120), Some(160)] {
        let name = width.map_or_else(|| "text_no_terminal".to_owned(), |width| format!("text_{width}"));
        insta::assert_snapshot!(name, text(&styled(width), &every_kind()));
    }
}

#[test]
fn ordinary_lines_fit_and_stand_below_their_headings() {
    let races = [collision(), bare(), widest(), icmp(), exhaustion(), resolved(), pods(), named_container()];
    for width in 79..200 {
        let text = text(&styled(Some(width)), &races);
        let mut lines = text.lines();
        let header = lines.next().unwrap();
        assert!(header.len() <= width, "{width}: {header}");
        let columns: Vec<_> = ["CONTESTED", "LOSER", "WINNER"].map(|name| header.find(name).unwrap()).into();
        for line in lines.filter(|line| !line.starts_with(' ')) {
            assert!(line.chars().count() <= width, "{width}: {line}");
            for &column in &columns {
                let before = line.get(column - 2..column).unwrap();
                let value = line.get(column..=column).unwrap();
                assert!(before == "  " && value != " ", "{width}, column {column}: {line}");
            }
        }
    }
}

#[test]
fn nothing_of_a_line_is_lost_but_names_in_a_narrow_terminal() {
    for width in [60, 80, 100, 120, 160] {
        let text = text(&styled(Some(width)), &[widest()]);
        assert!(text.contains("65535 > 203.100.113.245:65535") && text.contains("con"), "{text}");
        assert_eq!(text.matches("[4194304]").count(), 2, "{text}");
    }
}

#[test]
fn colour_is_on_the_verdict_only_and_moves_nothing() {
    let coloured = text(&Style { colour: true, ..styled(Some(120)) }, &every_kind());
    insta::assert_snapshot!("text_colour", coloured.replace('\x1b', "ESC"));
    let plain: String = ["\x1b[31m", "\x1b[32m", "\x1b[0m"].iter().fold(coloured, |text, code| text.replace(code, ""));
    assert_eq!(plain, text(&styled(Some(120)), &every_kind()));
}

#[test]
fn verbose_blocks() {
    let style = Style { verbose: true, ..styled(Some(80)) };
    insta::assert_snapshot!("text_verbose", text(&style, &every_kind()));
}

/// Among races, and never to be taken for one.
#[test]
fn failures_are_no_races() {
    let styles = [(None, false), (Some(120), false), (Some(80), false), (Some(80), true)];
    let text = styles.map(|(width, verbose)| {
        let mut out = Vec::new();
        let mut sink = TextSink::new(&mut out, Style { verbose, ..styled(width) });
        sink.session(&session()).unwrap();
        sink.race(&collision(), clock()).unwrap();
        failures().iter().for_each(|failure| sink.failure(failure, clock()).unwrap());
        String::from_utf8(out).unwrap()
    });
    insta::assert_snapshot!("text_failures", text.join("\n"));

    let mut out = Vec::new();
    failures().iter().for_each(|failure| JsonSink::new(&mut out).failure(failure, clock()).unwrap());
    let lines = String::from_utf8(out).unwrap();
    let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [full, bare] = records.as_slice() else { panic!("{lines}") };
    assert_eq!((&full["type"], &full["reason"]), (&"insert-failure".into(), &"table-full".into()));
    assert_eq!((&full["errno"], &full["netns"], &full["protocol"]), (&12.into(), &HOST.0.into(), &"tcp".into()));
    assert_eq!(full["time"], "2026-03-01T12:04:31.204005900Z");
    assert_eq!((&full["flow"]["original"]["sport"], &full["flow"]["owner"]["pid"]), (&41234.into(), &4711.into()));
    assert_eq!((bare.get("errno"), bare.get("netns"), bare["flow"].get("owner")), (None, None, None));
}

#[test]
fn what_comes_from_outside_does_not_steer() {
    let style = Style { verbose: true, ..styled(None) };
    let mean = "\x1b[2J\n\u{202e}";
    let account = Account { note: Some(mean.into()), ..account(HOST, [3; 5], [3; 5]) };
    let unreadable = Account { counters: Err(mean.to_owned()), ..account.clone() };
    let summary = Summary {
        accounts: vec![account, unreadable],
        hooks_gone: vec![mean.to_owned()],
        lost: counts(&[(mean, 2)]),
        incomplete: counts(&[(mean, 2)]),
        ..dropped(3)
    };
    let closing = closing(style.clone(), &summary);
    let shown = closing.matches("\\u{1b}[2J\\u{a}\\u{202e}").count();
    // In its own line and among the reasons why the account does not close, where a name stands in both.
    assert_eq!(shown, 6, "{closing}");
    let everything = format!("{}{closing}{}", text(&style, &every_kind()), json(&every_kind(), &[summary]));
    let steers = |c: char| c != '\n' && c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
    assert_eq!(everything.find(steers), None);
}

/// Names as long as a path may be, of what steers a terminal, in every place that has one.
#[test]
fn names_of_any_length_keep_to_their_columns() {
    let mean = "\x1b[2J\n\u{fffd}\u{202e}".repeat(4096 / 10);
    let mut races = vec![pods(), named_container(), forwarded()];
    for race in &mut races {
        for behind in [&mut race.loser.behind, &mut race.winner.behind].into_iter().flatten() {
            let pod = pods().loser.owner.unwrap().pod.filter(|_| behind.pod.is_some());
            *behind = Behind {
                interface: mean.clone(),
                port: Some(mean.clone()),
                container: Some(Container::of("docker", mean.clone())),
                pod: pod.map(|_| Pod { namespace: mean.clone(), name: mean.clone(), uid: mean.clone() }),
                ..behind.clone()
            };
        }
        for owner in [&mut race.loser.owner, &mut race.winner.owner].into_iter().flatten() {
            (owner.comm, owner.cgroup) = (mean.clone(), Some(mean.clone()));
            owner.program.executable = Some(mean.clone());
            owner.program.command_line = Some(CommandLine { words: vec![mean.clone(); 3], cut: false });
            owner.container = Some(Container {
                name: Some(mean.clone()),
                image: Some(mean.clone()),
                ..Container::of("docker", mean.clone())
            });
            owner.pod =
                owner.pod.take().map(|_| Pod { namespace: mean.clone(), name: mean.clone(), uid: mean.clone() });
        }
    }
    for width in 79..200 {
        let text = text(&styled(Some(width)), &races);
        assert!(text.lines().all(|line| line.chars().count() <= width), "{width}: {text}");
    }
    let style = Style { verbose: true, ..styled(None) };
    let lines = json(&races, &[]);
    let everything = format!("{}{lines}", text(&style, &races));
    let steers = |c: char| c != '\n' && c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
    assert_eq!(everything.find(steers), None);
    for (line, race) in lines.lines().skip(1).zip(&races) {
        let line: Value = serde_json::from_str(line).unwrap();
        let Some(known) = &race.loser.owner else {
            let behind = &line["loser"]["behind"];
            assert_eq!((&behind["interface"], &behind["port"]), (&mean.as_str().into(), &mean.as_str().into()));
            continue;
        };
        let owner = &line["loser"]["owner"];
        assert_eq!((&owner["comm"], &owner["container"]["image"]), (&mean.as_str().into(), &mean.as_str().into()));
        assert_eq!((&owner["exe"], &owner["cmdline"][2]), (&mean.as_str().into(), &mean.as_str().into()));
        assert_eq!(owner["pod"]["uid"].as_str(), known.pod.as_ref().map(|_| mean.as_str()));
    }
}

/// In the order of [`Tally::named`].
fn tally<T>([insert_failed, drop, clash_resolve, chaintoolong, early_drop]: [T; 5]) -> Tally<T> {
    Tally { insert_failed, drop, clash_resolve, chaintoolong, early_drop }
}

fn account(netns: NetnsInum, counted: [u64; 5], explained: [u64; 5]) -> Account {
    let signed = |count: u64| i64::try_from(count).unwrap();
    Account {
        netns: Some(netns),
        counters: Ok(tally(counted.map(Some))),
        explained: tally(explained),
        unexplained: tally(counted.map(Some))
            .zip(tally(explained), |counted, explained| Some(signed(counted?) - signed(explained))),
        complete: true,
        note: None,
    }
}

fn quiet() -> Summary {
    Summary {
        span: Span { started: at(211_000_000_000), ended: at(271_000_000_000), clock: clock() },
        connections: None,
        dropped: 0,
        resolved: 0,
        undecided: 0,
        classes: Vec::new(),
        port_choice: PortChoice::default(),
        accounts: Vec::new(),
        outside: 0,
        ended: 0,
        hooks_gone: Vec::new(),
        failures: None,
        lost: Vec::new(),
        incomplete: Vec::new(),
    }
}

fn dropped(count: u64) -> Summary {
    Summary {
        dropped: count,
        classes: vec![(Class::SnatPortCollision, count)],
        port_choice: PortChoice { kept: count, ..PortChoice::default() },
        accounts: vec![account(HOST, [count, count, 0, 0, 0], [count, count, 0, 0, 0])],
        ..quiet()
    }
}

fn counts(counts: &[(&'static str, u64)]) -> Vec<(Cow<'static, str>, u64)> {
    counts.iter().map(|&(name, count)| (name.into(), count)).collect()
}

/// Every way a run can end.
pub(crate) fn summaries() -> Vec<(&'static str, Summary)> {
    let unreadable = |netns| Account {
        netns,
        counters: Err("the network namespace cannot be entered: Operation not permitted".to_owned()),
        explained: tally([3, 3, 0, 0, 0]),
        unexplained: tally([None; 5]),
        complete: true,
        note: None,
    };
    let ahead =
        Account { note: Some("more was seen than counted".into()), ..account(POD, [3, 3, 0, 0, 0], [4, 4, 0, 0, 0]) };
    let gone = |figures, explained| Account {
        complete: false,
        note: Some(Caveat::Ended.text().into()),
        ..account(POD, figures, explained)
    };
    let figures = [3, 3, 0, 0, 0];
    let mut old = account(HOST, [3, 1, 0, 0, 0], [3, 1, 0, 0, 0]);
    old.counters = Ok(tally([Some(3), Some(1), None, None, Some(0)]));
    old.unexplained = tally([Some(0), Some(0), None, None, Some(0)]);
    let mixed = Summary {
        dropped: 9,
        resolved: 3,
        undecided: 1,
        classes: vec![
            (Class::SnatPortCollision, 8),
            (Class::PortExhaustion, 1),
            (Class::FixedPort, 1),
            (Class::DuplicateFlow, 3),
        ],
        port_choice: PortChoice { random: 3, narrow: 1, kept: 3, kept_rule_unknown: 1 },
        accounts: vec![account(HOST, [9, 9, 3, 0, 0], [9, 9, 3, 0, 0]), account(POD, [1, 1, 0, 0, 2], [1, 1, 0, 0, 2])],
        ..quiet()
    };
    vec![
        ("no races", quiet()),
        ("one race", dropped(1)),
        ("closed", Summary { connections: Some(1234), ..dropped(12) }),
        ("two hours", Summary { span: Span { ended: at(7_611_000_000_000), ..quiet().span }, ..dropped(12) }),
        ("several namespaces and classes", mixed),
        ("unknown outcome", Summary { dropped: 0, undecided: 1, ..dropped(1) }),
        ("resolved, before 5.10", Summary { dropped: 1, resolved: 2, accounts: vec![old], ..dropped(3) }),
        ("unexplained", Summary { accounts: vec![account(HOST, [13, 15, 0, 0, 0], [12, 12, 0, 0, 0])], ..dropped(12) }),
        ("table full", Summary { accounts: vec![account(HOST, [0, 4, 0, 0, 7], [0, 0, 0, 0, 7])], ..quiet() }),
        (
            "one too many here and too few there",
            Summary { accounts: vec![account(HOST, [4, 4, 0, 0, 0], [3, 3, 0, 0, 0]), ahead], ..dropped(7) },
        ),
        (
            "failures",
            Summary {
                accounts: vec![account(HOST, [14, 15, 0, 1, 0], [14, 15, 0, 1, 0])],
                failures: Some(vec![(Reason::TableFull, 3), (Reason::ChainTooLong, 1), (Reason::Dying, 1)]),
                ..dropped(12)
            },
        ),
        (
            "unexplained, failures traced",
            Summary {
                accounts: vec![account(HOST, [12, 15, 0, 0, 0], [12, 14, 0, 0, 0])],
                failures: Some(vec![(Reason::TableFull, 2)]),
                lost: counts(&[("failure-ring-full", 2), ("ring-full", 1)]),
                ..dropped(12)
            },
        ),
        ("lost", Summary { lost: counts(&[("ring-full", 2), ("unreadable", 1)]), ..dropped(9) }),
        ("one lost", Summary { lost: counts(&[("unreadable", 1)]), ..dropped(9) }),
        ("unreadable", Summary { accounts: vec![unreadable(None), unreadable(Some(POD))], ..dropped(6) }),
        (
            "one of two readable",
            Summary { accounts: vec![account(HOST, figures, figures), unreadable(Some(POD))], ..dropped(6) },
        ),
        ("gone", Summary { accounts: vec![gone(figures, figures)], ended: 1, ..dropped(3) }),
        (
            "one of two gone",
            Summary { accounts: vec![account(HOST, figures, figures), gone([0; 5], figures)], ended: 4, ..dropped(6) },
        ),
        ("gone and quiet", Summary { ended: 2, ..quiet() }),
        ("one outside", Summary { dropped: 4, outside: 1, ..dropped(3) }),
        ("many outside", Summary { dropped: 186, outside: 183, ..dropped(3) }),
        ("module reloaded", Summary { hooks_gone: vec!["nf_conntrack".to_owned()], ..quiet() }),
        ("modules reloaded", Summary { hooks_gone: vec!["nf_conntrack".to_owned(), "nf_nat".to_owned()], ..quiet() }),
        (
            "minimal",
            Summary { port_choice: PortChoice { kept_rule_unknown: 2, ..PortChoice::default() }, ..dropped(2) },
        ),
        (
            "incomplete",
            Summary {
                incomplete: vec![("flow-without-owner".into(), 1), ("owner-unreadable".into(), 5)],
                ..dropped(2)
            },
        ),
    ]
}

#[test]
fn text_of_summaries() {
    let all: Vec<_> = summaries()
        .iter()
        .map(|(name, summary)| format!("--- {name}\n{}", closing(styled(Some(80)), summary)))
        .collect();
    insta::assert_snapshot!("text_summaries", all.concat());
}

#[test]
fn whether_the_account_closes_is_always_said() {
    for (name, summary) in summaries() {
        let text = closing(styled(None), &summary);
        assert_eq!(text.contains("The account closes."), summary.closes(), "{name}");
        assert_eq!(text.contains("THE ACCOUNT DOES NOT CLOSE: "), !summary.closes(), "{name}");
        assert!(!text.contains("CLOSE: ."), "{name}: no reason given\n{text}");
        let coloured = closing(Style { colour: true, ..styled(None) }, &summary);
        assert_eq!(coloured.contains("\x1b[31mTHE ACCOUNT"), !summary.closes(), "{name}");
    }
}

fn json(races: &[Race], summaries: &[Summary]) -> String {
    let mut out = Vec::new();
    let mut sink = JsonSink::new(&mut out);
    sink.session(&session()).unwrap();
    races.iter().for_each(|race| sink.race(race, clock()).unwrap());
    summaries.iter().for_each(|summary| sink.summary(summary).unwrap());
    String::from_utf8(out).unwrap()
}

#[test]
fn json_lines() {
    let summaries: Vec<_> = summaries().into_iter().map(|(_, summary)| summary).collect();
    insta::assert_snapshot!("json", json(&every_kind(), &summaries));
}

#[test]
fn every_json_line_parses_and_the_first_has_the_schema() {
    let lines = json(&every_kind(), &[quiet()]);
    let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let types: Vec<_> = records.iter().map(|record| record["type"].as_str().unwrap()).collect();
    assert_eq!(types, [vec!["session"], vec!["race"; every_kind().len()], vec!["summary"]].concat());
    let schemas: Vec<_> = records.iter().filter_map(|record| record.get("schema")).collect();
    assert_eq!(schemas, [&Value::from(1)]);
    assert_eq!(records[0]["schema"], 1);
}

/// Names, places and types, as users and scripts rely on them.
#[test]
fn json_fields() {
    let lines = json(&[collision(), bare(), icmp(), exhaustion(), pods()], &[dropped(12)]);
    let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [session, race, bare, icmp, exhaustion, pods, summary] = records.as_slice() else { panic!("{lines}") };

    assert_eq!(session["time"], "2026-03-01T12:03:31.000000000Z", "UTC, whatever the text's zone");
    assert_eq!(session["options"]["detail"], "full");
    assert_eq!(session["hooks"][0]["mechanism"], "kprobe");
    assert_eq!(session["hooks"][1]["mechanism"], "kretprobe");
    let hook = &session["hooks"][2];
    assert_eq!((&hook["role"], &hook["attached"]), (&Value::from("allocation"), &Value::from(false)));
    assert_eq!(hook["reason"], "module nf_nat is not loaded");
    assert_eq!(session["hooks"][0].get("reason"), None);

    assert_eq!(race["time"], "2026-03-01T12:04:31.204005900Z");
    assert_eq!((&race["class"], &race["verdict"]), (&Value::from("snat-port-collision"), &Value::from("dropped")));
    assert_eq!((&race["protocol"], &race["netns"], &race["zone"]), (&"tcp".into(), &HOST.0.into(), &0.into()));
    let ends = |src, sport, dst, dport| serde_json::json!({"src": src, "sport": sport, "dst": dst, "dport": dport});
    assert_eq!(race["contested"], ends("192.0.2.10", 41234, "198.51.100.7", 443));
    assert_eq!(race["overlap_ns"], 812);
    assert_eq!(race["nat"], serde_json::json!({"random": false}));
    assert_eq!(race["loser"]["original"], ends("10.244.1.9", 41234, "198.51.100.7", 443));
    assert_eq!(race["loser"]["allocated"], "2026-03-01T12:04:31.204003800Z");
    assert_eq!(race["loser"].get("inserted"), None, "a loser is never inserted");
    assert_eq!(race["winner"]["inserted"], "2026-03-01T12:04:31.204004612Z");
    assert_eq!((&race["loser"]["cpu"], &race["winner"]["cpu"]), (&3.into(), &0.into()));
    assert_eq!(
        race["loser"]["owner"],
        serde_json::json!({
            "pid": 4711, "tid": 4713, "comm": "curl", "netns": POD.0, "cgroup_id": 7321,
            "cgroup": format!("/kubepods.slice/cri-containerd-{CURL}.scope"),
            "container": {"runtime": "containerd", "id": CURL}, "source": "socket",
            "uid": 1000, "started": "2026-03-01T11:58:03.250000000Z", "own_pid": 7,
            "exe": "/usr/bin/curl", "cmdline": ["curl", "-s", "", "http://198.51.100.7/a b"], "cmdline_cut": true,
        })
    );
    assert_eq!(race["packet"].as_str().map(str::len), Some(80));
    let owner = &pods["loser"]["owner"];
    let (image, uid) = ("registry.example/shop/cart:1.4", "0f3ae9d2-1c55-4f6b-9f0e-2a7c1f1d9b11");
    let container = serde_json::json!({"runtime": "containerd", "id": CURL, "name": "app", "image": image});
    assert_eq!(owner["container"], container);
    assert_eq!(owner["pod"], serde_json::json!({"namespace": "shop", "name": "cart-7d4b9c6f5-x2k4q", "uid": uid}));

    for unknown in ["verdict", "netns", "overlap_ns", "nat", "packet"] {
        assert_eq!(bare.get(unknown), None, "what is not known is absent: {unknown}");
    }
    for unknown in ["allocated", "inserted", "cpu", "owner"] {
        assert_eq!(bare["loser"].get(unknown), None, "what is not known is absent: {unknown}");
    }
    assert_eq!(icmp["contested"], serde_json::json!({"src": "192.0.2.10", "sport": 4660, "dst": "198.51.100.7"}));
    assert_eq!(
        exhaustion["nat"],
        serde_json::json!({"random": true, "min_port": 40000, "max_port": 40001, "in_range": 2, "in_use": 2})
    );

    assert_eq!((&summary["duration_ns"], &summary["closes"]), (&60_000_000_000_u64.into(), &true.into()));
    assert_eq!(summary["races"], serde_json::json!({"dropped": 12, "resolved": 0, "undecided": 0}));
    assert_eq!(summary["classes"], serde_json::json!({"snat-port-collision": 12}));
    assert_eq!(summary["accounts"][0]["netns"], HOST.0);
    assert_eq!((&summary["outside"], &summary["ended"]), (&0.into(), &0.into()));
    assert_eq!((&summary["accounts"][0]["complete"], summary.get("hooks_gone")), (&true.into(), None));
    let figures = |failed, dropped| {
        let (none, failed, dropped) = (0, failed, dropped);
        serde_json::json!({
            "insert_failed": failed, "drop": dropped, "clash_resolve": none, "chaintoolong": none, "early_drop": none,
        })
    };
    assert_eq!(summary["accounts"][0]["counters"], figures(12, 12));
    assert_eq!(summary["accounts"][0]["explained"], figures(12, 12));
    assert_eq!(summary["accounts"][0]["unexplained"], figures(0, 0));
}

#[test]
fn json_gives_hostile_names_back_as_they_were() {
    let line: Value = serde_json::from_str(json(&[hostile()], &[]).lines().nth(1).unwrap()).unwrap();
    let owner = hostile().loser.owner.unwrap();
    assert_eq!(line["loser"]["owner"]["comm"], owner.comm);
    assert_eq!(line["loser"]["owner"]["cgroup"].as_str(), owner.cgroup.as_deref());
    assert_eq!(line["loser"]["owner"]["exe"].as_str(), owner.program.executable.as_deref());
    let words = owner.program.command_line.unwrap().words;
    assert!(words[0].contains('\x1b') && line["loser"]["owner"]["cmdline"] == Value::from(words));
    assert_eq!(line["winner"]["owner"]["comm"], "wörker");
    let (container, pod) = (owner.container.unwrap(), owner.pod.unwrap());
    assert_eq!(line["loser"]["owner"]["container"]["name"].as_str(), container.name.as_deref());
    assert_eq!(line["loser"]["owner"]["container"]["image"].as_str(), container.image.as_deref());
    assert_eq!(line["loser"]["owner"]["pod"]["namespace"], pod.namespace);
    assert_eq!(line["loser"]["owner"]["pod"]["name"], pod.name);
    assert_eq!(line["loser"]["owner"]["pod"]["uid"], pod.uid);
}
