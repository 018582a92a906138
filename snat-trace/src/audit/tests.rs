//! What programs' rules come to, from fixtures: layouts of upstream, as the tools print them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use proptest::prelude::*;

use super::census::Toward;
use super::findings::{Kind, Severity, judge};
use super::node::{Look, Namespace, take_over};
use super::reach::source_nat;
use super::rules::{Action, Choice, Family, Ports, Table, Tool};
use super::{Audit, iptables, nft};
use crate::mutate::survives;
use crate::output::escape;
use crate::race::event::NetnsInum;
use crate::race::tuple::Protocol;

/// The first one of a node.
pub(crate) const HOST: NetnsInum = NetnsInum(4_026_531_840);

/// Programs' rules as `iptables-save -c` prints them.
const PROGRAMS: [&str; 9] =
    ["aws", "calico", "cilium", "cni", "docker", "flannel", "ip-masq-agent", "kube-proxy", "libvirt"];

fn fixture(name: &str) -> String {
    let place = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/rules").join(name);
    std::fs::read_to_string(place).unwrap()
}

fn saved(text: &str) -> Vec<Table> {
    iptables::parse(text, Tool::IptablesNft, "iptables-nft", Family::Ip)
}

/// One rule of its own in POSTROUTING.
fn one_rule(rule: &str) -> Vec<Table> {
    saved(&format!("*nat\n:POSTROUTING ACCEPT [0:0]\n:OTHER - [0:0]\n[7:420] -A POSTROUTING {rule}\nCOMMIT\n"))
}

fn listed(name: &str) -> Vec<Table> {
    nft::parse(&fixture(&format!("{name}.nft.json")), &fixture(&format!("{name}.nft.txt"))).unwrap()
}

/// A namespace of a new kernel without connections.
fn quiet(tables: Vec<Table>) -> Namespace {
    Namespace {
        inum: HOST,
        tables,
        entries: Some((100, 262_144)),
        local_ports: Some(32_768..=60_999),
        counts_clashes: Some(true),
        towards: Vec::new(),
    }
}

/// A node with rules of every kind.
pub(crate) fn home() -> Look {
    Look { namespaces: vec![quiet(listed("home"))], own: Some(HOST), not_read: vec!["netns 1: gone".to_owned()] }
}

/// A node with a program's rules.
pub(crate) fn of(name: &str) -> Audit {
    match PROGRAMS.contains(&name) {
        true => audit(vec![quiet(saved(&fixture(&format!("{name}.iptables"))))]),
        false => audit(vec![quiet(listed(name))]),
    }
}

fn audit(namespaces: Vec<Namespace>) -> Audit {
    Audit::new(&Look { namespaces, own: Some(HOST), not_read: Vec::new() })
}

fn kinds(namespaces: Vec<Namespace>) -> Vec<Kind> {
    audit(namespaces).findings.into_iter().map(|finding| finding.finding).collect()
}

#[test]
fn programs_of_iptables() {
    for name in PROGRAMS {
        insta::assert_snapshot!(name, audit(vec![quiet(saved(&fixture(&format!("{name}.iptables"))))]));
    }
}

#[test]
fn programs_of_nft() {
    for name in ["kube-proxy", "programs", "home"] {
        insta::assert_snapshot!(format!("nft_{name}"), audit(vec![quiet(listed(name))]));
    }
}

#[test]
fn of_rules_with_random_fully_nothing_is_said() {
    for name in PROGRAMS {
        let text = fixture(&format!("{name}.iptables"));
        let lines = text.lines().map(|line| {
            let translates = line.contains("-j MASQUERADE") || line.contains("-j SNAT");
            if translates { format!("{line} --random-fully\n") } else { format!("{line}\n") }
        });
        let (before, after) = (audit(vec![quiet(saved(&text))]), audit(vec![quiet(saved(&lines.collect::<String>()))]));
        assert_eq!((after.findings, after.rules.len()), (vec![], before.rules.len()), "{name}");
        assert!(
            !before.rules.is_empty() && before.findings.iter().any(|finding| finding.finding == Kind::NoRandomFully)
        );
    }
    assert_eq!(audit(vec![quiet(listed("kube-proxy"))]).findings, []);
}

#[test]
fn json_has_an_object_a_line() {
    let mut look = home();
    look.namespaces[0].entries = Some((250, 256));
    let mut out = Vec::new();
    Audit::new(&look).write_json(&mut out).unwrap();
    insta::assert_snapshot!("json", String::from_utf8(out).unwrap());
}

#[test]
fn nothing_in_json_steers() {
    let mut look = home();
    look.not_read = vec!["a\u{7f}\u{9b}1m\u{200b}\u{2028}\u{202e}\u{2066}b".to_owned()];
    let mut audit = Audit::new(&look);
    audit.findings[0].why = look.not_read[0].clone();
    let mut out = Vec::new();
    audit.write_json(&mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text.lines().find(|line| escape(line) != *line), None);
    let values: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(values[0]["why"], look.not_read[0]);
    assert_eq!(values.last().unwrap()["not_read"][0], look.not_read[0]);
}

#[test]
fn targets_are_read_as_written() {
    let translation = |rule: &str| match one_rule(rule)[0].chains[0].rules[0].action.clone() {
        Action::Translate(translation) => translation,
        other => panic!("{rule}: {other:?}"),
    };
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let snat = translation("-p udp -j SNAT --to-source 192.0.2.1-192.0.2.9:5000-5999 --random --persistent");
    assert_eq!(snat.addresses, Some((address("192.0.2.1"), address("192.0.2.9"))));
    assert_eq!((snat.ports, snat.choice), (Ports::Range(5000..=5999), Choice::Random));
    let six = translation("-p tcp -j SNAT --to-source [2001:db8::1]:7 --random-fully");
    assert_eq!(
        (six.addresses, six.ports),
        (Some((address("2001:db8::1"), address("2001:db8::1"))), Ports::Range(7..=7))
    );
    assert_eq!(six.choice, Choice::FullyRandom);
    let plain = translation("-j SNAT --to-source 2001:db8::1-2001:db8::2");
    assert_eq!(plain.addresses, Some((address("2001:db8::1"), address("2001:db8::2"))));
    assert_eq!((plain.ports, plain.choice), (Ports::Any, Choice::Kept));
    assert_eq!(translation("-j SNAT --to-source nonsense:9-1").ports, Ports::Unknown);
    let text = "-A POSTROUTING -m comment --comment \"-j MASQUERADE \\\"--random-fully\\\"\" -j MASQUERADE";
    let quoted = translation(text.strip_prefix("-A POSTROUTING ").unwrap());
    assert_eq!(quoted.choice, Choice::Kept, "what a comment says is no option");
    let rule = one_rule("-m comment --comment -j -j MASQUERADE")[0].chains[0].rules[0].clone();
    assert!(matches!(rule.action, Action::Translate(_)));
    assert_eq!((rule.packets, rule.text.as_str()), (Some(7), "-A POSTROUTING -m comment --comment -j -j MASQUERADE"));
}

#[test]
fn private_destinations_are_known_or_nothing_is_said() {
    let private = |rules: &str| -> Vec<&'static str> {
        let chains = ":POSTROUTING ACCEPT [0:0]\n:OTHER - [0:0]";
        let tables = saved(&format!("*nat\n{chains}\n{}\nCOMMIT\n", rules.replace("; ", "\n")));
        source_nat(&tables[0]).last().unwrap().private.clone()
    };
    let all = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
    let masquerade = "-A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE";
    let table: &[(&str, &[&str])] = &[
        ("-A POSTROUTING -j MASQUERADE", &all),
        ("-A POSTROUTING ! -d 10.244.0.0/16 -j MASQUERADE", &all),
        ("-A POSTROUTING ! -d 10.0.0.0/8 -j MASQUERADE", &all[1..]),
        ("-A POSTROUTING ! -d 10.0.0.0/8 ! -o eth0 -p tcp -j MASQUERADE", &all[1..]),
        // By what leaves where, by sets, marks and states it is not known where packets go.
        ("-A POSTROUTING -o eth0 -j MASQUERADE", &[]),
        ("-A POSTROUTING -m set ! --match-set pools dst -j MASQUERADE", &[]),
        ("-A POSTROUTING -m mark --mark 0x1 -j MASQUERADE", &[]),
        ("-A POSTROUTING -m conntrack --ctstate NEW -j MASQUERADE", &[]),
        ("-A POSTROUTING -m statistic --mode random --probability 0.5 -j MASQUERADE", &[]),
        // One that names its destinations means them.
        ("-A POSTROUTING -d 10.0.0.0/8 -j MASQUERADE", &[]),
        // Earlier rules.
        (&format!("-A POSTROUTING -d 10.0.0.0/8 -j RETURN; {masquerade}"), &all[1..]),
        (&format!("-A POSTROUTING -s 10.8.0.0/16 -d 10.0.0.0/8 -j RETURN; {masquerade}"), &all),
        (&format!("-A POSTROUTING -m set --match-set x dst -j RETURN; {masquerade}"), &[]),
        (&format!("-A POSTROUTING -m mark --mark 0x4000/0x4000 -j RETURN; {masquerade}"), &all),
        (&format!("-A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN; {masquerade}"), &[]),
        // Chains, and ones that come back.
        (
            "-A POSTROUTING ! -d 10.0.0.0/8 -j OTHER; -A OTHER -d 172.16.0.0/12 -j ACCEPT; -A OTHER -j MASQUERADE",
            &all[2..],
        ),
        (&format!("-A POSTROUTING -j OTHER; {masquerade}; -A OTHER -d 10.0.0.0/8 -j RETURN"), &all),
        (&format!("-A POSTROUTING -j OTHER; -A OTHER -d 10.0.0.0/8 -j ACCEPT; {masquerade}"), &all[1..]),
        (&format!("-A POSTROUTING -g OTHER; {masquerade}"), &[]),
        // A chain nothing leads to, and one that leads to itself.
        ("-A OTHER -j MASQUERADE", &[]),
        (&format!("-A POSTROUTING -j OTHER; -A OTHER -j OTHER; {masquerade}"), &[]),
    ];
    for (rules, known) in table {
        assert_eq!(private(rules), *known, "{rules}");
    }
}

#[test]
fn few_ports_are_told_by_how_few() {
    let of =
        |ports: &str| kinds(vec![quiet(one_rule(&format!("-p udp -j MASQUERADE --to-ports {ports} --random-fully")))]);
    assert_eq!(of("1024-65535"), []);
    assert_eq!(of("10000-11023"), [Kind::NarrowRange]);
    assert_eq!(of("10000-11024"), []);
    assert_eq!(of("10000-10063"), [Kind::NarrowRange]);
    assert_eq!(of("10000"), [Kind::SinglePort]);
    let severity = |ports: &str| {
        let rule = one_rule(&format!("-p udp -j MASQUERADE --to-ports {ports} --random-fully"));
        audit(vec![quiet(rule)]).findings[0].severity
    };
    assert_eq!(severity("1-100"), Severity::High);
    assert_eq!(severity("1-101"), Severity::Medium);
}

#[test]
fn rules_nothing_has_matched_matter_little() {
    let severities = |packets: u64| -> Vec<_> {
        let rules = [
            "--to-ports 10000",
            "--to-ports 10000-10063",
            "--to-ports 10000-10063 --random-fully",
            "--to-ports 10000-10500 --random-fully",
        ];
        let rule = |ports| format!("[{packets}:0] -A POSTROUTING -p udp -j MASQUERADE {ports}\n");
        let table = format!("*nat\n:POSTROUTING ACCEPT [0:0]\n{}COMMIT\n", rules.map(rule).concat());
        let findings = audit(vec![quiet(saved(&table))]).findings;
        findings.iter().filter(|finding| finding.severity != Severity::Info).map(|finding| finding.severity).collect()
    };
    assert_eq!(severities(0), [Severity::Low; 5]);
    assert_eq!(severities(1), [[Severity::High; 4].as_slice(), &[Severity::Medium]].concat());
}

#[test]
fn commands_make_ports_many_and_leave_destinations_out() {
    let commands = |tables| -> Vec<_> {
        let commands = audit(vec![quiet(tables)]).findings.into_iter();
        commands
            .map(|finding| (finding.finding, finding.command.map(|words| words.join(" ")).unwrap_or_default()))
            .collect()
    };
    let iptables = commands(one_rule("-s 10.9.0.0/16 ! -d 10.0.0.0/8 -p udp -j MASQUERADE --to-ports 10000-10063"));
    let whole =
        "iptables-nft -w -t nat -R POSTROUTING 1 -s 10.9.0.0/16 '!' -d 10.0.0.0/8 -p udp -j MASQUERADE --random-fully";
    let exempt =
        "iptables-nft -w -t nat -I POSTROUTING 1 -s 10.9.0.0/16 -p udp -d 172.16.0.0/12,192.168.0.0/16 -j ACCEPT";
    let expected = [(Kind::NoRandomFully, whole), (Kind::NarrowRange, whole), (Kind::PrivateDestinations, exempt)];
    assert_eq!(iptables, expected.map(|(kind, command)| (kind, command.to_owned())));
    let nft = commands(listed("home"));
    let single = nft.iter().find(|(kind, _)| *kind == Kind::SinglePort).map(|(_, command)| command.as_str());
    assert_eq!(
        single,
        Some(
            "nft replace rule ip home servers handle 8 ip saddr 10.40.0.0/16 meta l4proto udp counter packets 0 bytes 0 snat to 192.0.2.1 fully-random"
        )
    );
}

#[test]
fn the_addresses_a_rule_takes_are_known_or_not_told() {
    let takes = |rule: &super::RuleShown| (rule.sources.clone(), rule.destinations.clone());
    let some = |text: &str| Some(text.split(' ').map(str::to_owned).collect::<Vec<_>>());
    let of = |rule: &str| takes(&audit(vec![quiet(one_rule(rule))]).rules[0]);
    assert_eq!(of("-o eth0 -j MASQUERADE"), (None, None));
    assert_eq!(of("-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"), (some("172.17.0.0-172.17.255.255"), None));
    assert_eq!(of("! -s 10.244.0.0/16 -d 10.244.0.0/16 -j MASQUERADE"), (None, some("10.244.0.0-10.244.255.255")));
    let but = some("0.0.0.0-9.255.255.255 11.0.0.0-255.255.255.255");
    assert_eq!(of("! -d 10.0.0.0/8 -j MASQUERADE"), (None, but));
    let nft = |condition: &str, right: &str| {
        let json = format!(
            r#"{{"nftables": [{{"table": {{"family": "ip", "name": "t", "handle": 1}}}},
            {{"set": {{"family": "ip", "table": "t", "name": "s", "elem": ["10.0.0.1"]}}}},
            {{"chain": {{"family": "ip", "table": "t", "name": "c", "type": "nat", "hook": "postrouting", "handle": 1}}}},
            {{"rule": {{"family": "ip", "table": "t", "chain": "c", "handle": 2, "expr": [
                {{"match": {{"op": "==", "left": {{"payload": {{"protocol": "ip", "field": "{condition}"}}}}, "right": {right}}}}},
                {{"masquerade": null}}]}}}}]}}"#
        );
        takes(&audit(vec![quiet(nft::parse(&json, "").unwrap())]).rules[0])
    };
    assert_eq!(nft("saddr", r#""10.0.0.1""#), (some("10.0.0.1"), None));
    assert_eq!(nft("daddr", r#"{"set": ["10.0.0.1", "10.0.0.3"]}"#), (None, some("10.0.0.1 10.0.0.3")));
    // What is in a set now may not have been when a race was.
    for condition in ["saddr", "daddr"] {
        assert_eq!(nft(condition, r#""@s""#), (None, None));
    }
}

#[test]
fn a_range_is_nearly_full_toward_a_destination() {
    let toward = |taken: &[u16]| Toward {
        protocol: Protocol::UDP,
        translated: "192.0.2.1".parse().unwrap(),
        destination: "198.51.100.7:53".parse().unwrap(),
        taken: taken.iter().copied().collect(),
    };
    let of = |rule: &str, taken: BTreeSet<u16>| {
        let taken: Vec<u16> = taken.into_iter().collect();
        let namespace = Namespace { towards: vec![toward(&taken)], ..quiet(one_rule(rule)) };
        let findings = audit(vec![namespace]).findings;
        findings
            .into_iter()
            .find(|finding| finding.finding == Kind::RangeNearlyFull)
            .map(|finding| (finding.severity, finding.what, finding.why))
    };
    let rule = "-p udp -j SNAT --to-source 192.0.2.1:10000-10099 --random-fully";
    assert_eq!(of(rule, (10_000..10_074).collect()), None);
    let (severity, what, why) = of(rule, (10_000..10_075).collect()).unwrap();
    assert_eq!(severity, Severity::Medium);
    assert_eq!(what, "75 of the 100 ports 10000-10099 of 192.0.2.1 are taken toward udp 198.51.100.7:53");
    // The first free one after 75 taken ones gets 76 of 100 beginnings: 0.76 squared and 24 of 0.01 squared.
    assert!(why.contains("in 58 % of cases"), "{why}");
    let (severity, _, why) = of(rule, (10_000..=10_099).collect()).unwrap();
    assert!(severity == Severity::High && why.contains("No port is left"), "{why}");
    // Another protocol, another address, another range.
    assert_eq!(of(&rule.replace("udp", "tcp"), (10_000..=10_099).collect()), None);
    assert_eq!(of(&rule.replace(".1:", ".2:"), (10_000..=10_099).collect()), None);
    assert_eq!(of(rule, (20_000..=20_099).collect()), None);
    // A rule that names no ports has all from 1024 on.
    let (severity, what, _) = of("-j MASQUERADE --random-fully", (1024..=60_000).collect()).unwrap();
    assert!(severity == Severity::High && what.starts_with("58977 of the 64512 ports 1024-65535"), "{what}");
}

#[test]
fn tables_kernels_and_senders() {
    let full = |entries| kinds(vec![Namespace { entries, ..quiet(Vec::new()) }]);
    assert_eq!(full(Some((74, 100))), []);
    assert_eq!(full(Some((75, 100))), [Kind::TableNearlyFull]);
    assert_eq!(full(Some((9, 0))), [], "no limit");
    assert_eq!(full(None), []);

    let random =
        |modern| kinds(vec![Namespace { counts_clashes: modern, ..quiet(one_rule("-j MASQUERADE --random")) }]);
    assert_eq!(
        (random(Some(true)), random(Some(false)), random(None)),
        (vec![], vec![Kind::RandomOnly], vec![Kind::RandomOnly])
    );

    let dns = |counts_clashes| {
        let kube = saved(&fixture("kube-proxy.iptables").replace("MASQUERADE", "MASQUERADE --random-fully"));
        kinds(vec![Namespace { counts_clashes, ..quiet(kube) }])
    };
    assert_eq!((dns(Some(true)), dns(None), dns(Some(false))), (vec![], vec![], vec![Kind::DnsOverDnat]));
    let of_nft = Namespace { counts_clashes: Some(false), ..quiet(listed("kube-proxy")) };
    assert_eq!(kinds(vec![of_nft]), [Kind::DnsOverDnat]);

    let few = |inum| Namespace { inum: NetnsInum(inum), local_ports: Some(40_000..=40_099), ..quiet(Vec::new()) };
    let with = |rule: &str| judge(&[quiet(one_rule(rule)), few(1), few(2)], Some(HOST)).0;
    assert_eq!(with("-j MASQUERADE --random-fully"), []);
    let findings = with("-o x -j MASQUERADE");
    let [keeps, ephemeral] = findings.as_slice() else { panic!("{findings:?}") };
    assert_eq!((keeps.finding, ephemeral.finding, ephemeral.netns), (Kind::NoRandomFully, Kind::EphemeralRange, 1));
    assert_eq!(ephemeral.what, "senders choose among 100 ports, 40000-40099, in 2 network namespaces");
}

#[test]
fn a_command_names_the_namespace_it_is_for() {
    let other = Namespace { inum: NetnsInum(7), ..quiet(one_rule("-o x -j MASQUERADE")) };
    let fixes = |namespaces: &[Namespace], own| -> Vec<_> {
        judge(namespaces, own).0.into_iter().map(|finding| finding.fix).collect()
    };
    let [add, there] =
        ["", "; to be run in network namespace 7"].map(|place| format!("add --random-fully to the rule{place}"));
    let both = [quiet(one_rule("-o x -j MASQUERADE")), other.clone()];
    assert_eq!(fixes(&both, Some(HOST)), [add, there.clone()]);
    // Alone, as evidence reads it, it is no more the caller's own.
    for own in [Some(HOST), None] {
        assert_eq!(fixes(std::slice::from_ref(&other), own), [there.as_str()]);
    }
}

#[test]
fn what_two_tools_print_is_there_once() {
    let json = r#"{"nftables": [
        {"table": {"family": "ip", "name": "nat", "handle": 1}},
        {"chain": {"family": "ip", "table": "nat", "name": "POSTROUTING", "handle": 1, "type": "nat", "hook": "postrouting"}},
        {"chain": {"family": "ip", "table": "nat", "name": "own", "handle": 2, "type": "nat", "hook": "postrouting"}},
        {"rule": {"family": "ip", "table": "nat", "chain": "POSTROUTING", "handle": 3,
                  "expr": [{"xt": {"type": "target", "name": "MASQUERADE"}}]}},
        {"rule": {"family": "ip", "table": "nat", "chain": "own", "handle": 4, "expr": [{"masquerade": null}]}}]}"#;
    let mut tables = nft::parse(json, "").unwrap();
    let hidden = kinds(vec![quiet(tables.clone())]);
    assert_eq!(hidden, [Kind::NoRandomFully, Kind::PrivateDestinations], "only of the one whose options nft tells");
    take_over(&mut tables, one_rule("-j MASQUERADE"));
    let rules: Vec<_> = tables.iter().flat_map(source_nat).map(|rule| (rule.tool, rule.chain.to_owned())).collect();
    assert_eq!(rules, [(Tool::Nft, "own".to_owned()), (Tool::IptablesNft, "POSTROUTING".to_owned())]);
}

#[test]
fn text_fits_80_columns_and_steers_no_terminal() {
    let hostile = "-m comment --comment \"\\\\\u{1b}[2J \u{202e}`reboot` $(reboot) 'x\" -j MASQUERADE";
    let mut tables = one_rule(hostile);
    tables[0].chains[0].name.push_str("\u{7}\u{9b}31m");
    for namespaces in [vec![quiet(tables)], vec![quiet(listed("home"))]] {
        let text = audit(namespaces).to_string();
        for line in text.lines() {
            // A single word can be longer.
            assert!(line.chars().count() <= 80 || line.trim().split(' ').count() == 1, "{line}");
            assert!(!line.chars().any(|character| character.is_control() || character == '\u{202e}'), "{line:?}");
        }
    }
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "(\\*nat\n|:POSTROUTING ACCEPT|\\[1:2\\] |-A POSTROUTING|-j |MASQUERADE|SNAT|--to-source|--to-ports|! |-d|[0-9./:-]{1,9}|\"|\\\\| |\n|\\PC){0,60}") {
        drop(audit(vec![quiet(saved(&text))]).to_string());
    }
}

#[test]
fn mutated_rules_are_survived() {
    let texts: Vec<String> = PROGRAMS.iter().map(|name| fixture(&format!("{name}.iptables"))).collect();
    let seeds: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
    survives("iptables-save", &seeds, |bytes| {
        drop(audit(vec![quiet(saved(&String::from_utf8_lossy(bytes)))]).to_string());
    });
    let texts = ["kube-proxy", "programs", "home"].map(|name| fixture(&format!("{name}.nft.json")));
    let (listing, seeds) = (fixture("home.nft.txt"), texts.each_ref().map(String::as_bytes));
    survives("nft-json", &seeds, |bytes| {
        if let Ok(tables) = nft::parse(&String::from_utf8_lossy(bytes), &listing) {
            drop(audit(vec![quiet(tables)]).to_string());
        }
    });
    let json = fixture("home.nft.json");
    survives("nft-text", &[listing.as_bytes()], |bytes| {
        drop(nft::parse(&json, &String::from_utf8_lossy(bytes)));
    });
}
