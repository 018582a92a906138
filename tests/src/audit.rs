//! What `audit` says of live rules, held against what their own tools print; and whether the command it gives is right.

use std::net::UdpSocket;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::node::{Node, command};
use crate::output::Lines;
use crate::scenario::{Numbers, Row, Scenario, whole};

/// The audit's.
pub const SCENARIOS: &[Scenario] = &[
    whole("audit: rules of three tools", three_tools),
    whole("audit: rules of programs", programs),
    whole("audit: a range nearly full", nearly_full),
];

/// Rules as programs make them, and by which name. Guests have no sources to read them from.
const PROGRAMS: [(&str, &str); 8] = [
    ("amazon-vpc-cni", include_str!("../../snat-trace/tests/data/rules/aws.iptables")),
    ("cilium", include_str!("../../snat-trace/tests/data/rules/cilium.iptables")),
    ("CNI plugins", include_str!("../../snat-trace/tests/data/rules/cni.iptables")),
    ("docker", include_str!("../../snat-trace/tests/data/rules/docker.iptables")),
    ("flannel", include_str!("../../snat-trace/tests/data/rules/flannel.iptables")),
    ("ip-masq-agent", include_str!("../../snat-trace/tests/data/rules/ip-masq-agent.iptables")),
    ("kube-proxy", include_str!("../../snat-trace/tests/data/rules/kube-proxy.iptables")),
    ("libvirt", include_str!("../../snat-trace/tests/data/rules/libvirt.iptables")),
];

/// Rules by each tool, one as it should not be and one with the flag, told by the net they are for.
const NFT: &str = "table ip audit {\n  chain post {\n    type nat hook postrouting priority 100; policy accept;\n    \
                   ip saddr 10.1.0.0/16 oifname != \"own\" counter masquerade comment \"it's $HOME\"\n    \
                   ip saddr 10.2.0.0/16 masquerade fully-random\n  }\n}\n";
const IPTABLES: [&str; 2] = [
    "-s 10.3.0.0/16 ! -d 10.0.0.0/8 -m comment --comment it's_$HOME -j MASQUERADE",
    "-s 10.4.0.0/16 -j MASQUERADE --random-fully",
];
const LEGACY: [&str; 2] =
    ["-s 10.5.0.0/16 -p udp -j SNAT --to-source 192.0.2.1:1024-65535", "-s 10.6.0.0/16 -j MASQUERADE --random-fully"];

/// Findings about one namespace, with the closing line.
fn audited(node: &Node) -> Result<(Vec<Value>, Value)> {
    let lines = Lines::of(&["audit"])?;
    let inum = node.inum()?;
    let findings = lines.all("audit-finding").filter(|finding| finding["netns"] == inum).cloned().collect();
    Ok((findings, lines.only("audit")?.clone()))
}

fn keeps_ports(findings: &[Value]) -> Vec<&Value> {
    findings.iter().filter(|finding| finding["finding"] == "no-random-fully").collect()
}

/// Adds rules to POSTROUTING.
fn add(program: &str, rules: [&str; 2]) -> Result<()> {
    for rule in rules {
        let words: Vec<&str> = "-w -t nat -A POSTROUTING".split(' ').chain(rule.split(' ')).collect();
        command(program, &words, "")?;
    }
    Ok(())
}

/// Each rule without the flag is told once, in its tool's words, and none that has it; and the command given for it is
/// taken by its tool and is all it takes.
///
/// # Errors
///
/// Anything else is told.
pub fn three_tools() -> Result<Row> {
    let count = |closing: &Value| closing["rules"].as_u64().context("rules are counted");
    let before = count(Lines::of(&["audit"])?.only("audit")?)?;
    let node = Node::new("audit", &[], NFT)?;
    // Not every kernel has the old tables.
    let list = Command::new("unshare").args(["-n", "iptables-legacy", "-w", "-t", "nat", "-L", "-n"]).output();
    let legacy = list.is_ok_and(|output| output.status.success());
    // What each tool prints, for its program's name in the findings.
    let printed = node.inside(|| {
        add("iptables-nft", IPTABLES)?;
        if legacy {
            add("iptables-legacy", LEGACY)?;
        }
        let mut printed = vec![
            ("nft", command("nft", &["list", "table", "ip", "audit"], "")?),
            ("iptables-nft", command("iptables-nft-save", &["-t", "nat"], "")?),
        ];
        if legacy {
            printed.push(("iptables-legacy", command("iptables-legacy-save", &["-t", "nat"], "")?));
        }
        Ok(printed)
    })?;

    let (findings, closing) = audited(&node)?;
    let rules = count(&closing)? - before;
    ensure!(rules == 2 * printed.len() as u64, "{rules} rules of {} tools, each of which has two", printed.len());
    let kept = keeps_ports(&findings);
    ensure!(kept.len() == printed.len(), "{} rules are told, not {}: {findings:?}", kept.len(), printed.len());
    for ((tool, printed), net) in printed.iter().zip(["10.1.0.0/16", "10.3.0.0/16", "10.5.0.0/16"]) {
        let rule = |finding: &&&Value| finding["rule"]["tool"] == *tool;
        let finding = kept.iter().find(rule).with_context(|| format!("none of {tool}: {kept:?}"))?;
        let text = finding["rule"]["text"].as_str().context("a rule has a text")?;
        ensure!(text.contains(net), "another rule of {tool}: {text}");
        ensure!(printed.lines().any(|line| line.trim() == text), "{tool} does not print {text}:\n{printed}");
    }
    for (index, finding) in findings.iter().enumerate() {
        let text = finding["rule"]["text"].as_str().unwrap_or_default();
        let has_flag = ["10.2.0.0/16", "10.4.0.0/16", "10.6.0.0/16"].iter().any(|net| text.contains(net));
        ensure!(!has_flag, "of a rule with the flag: {finding}");
        ensure!(!findings[..index].contains(finding), "twice: {finding}");
    }

    for finding in &kept {
        let fix = finding["command"].as_str().context("a finding has a command")?;
        node.inside(|| command("sh", &["-c", fix], ""))?;
    }
    let (after, closing_after) = audited(&node)?;
    ensure!(after.is_empty(), "the commands were run, and yet: {after:?}");
    ensure!(closing["rules"] == closing_after["rules"], "the commands left {closing_after}, not {closing}");
    let comments = node.inside(|| {
        let nft = command("nft", &["list", "table", "ip", "audit"], "")?;
        Ok(nft + &command("iptables-nft-save", &["-t", "nat"], "")?)
    })?;
    ensure!(comments.contains("it's $HOME") && comments.contains("\"it\\'s_$HOME\""), "comments changed: {comments}");

    let told = kept.len() as u64;
    let numbers = Numbers { expected: Some(printed.len() as u64), seen: Some(told), ..Numbers::default() };
    Ok(Row { text: if legacy { String::new() } else { "no ip_tables here".to_owned() }, numbers })
}

/// In a network namespace of their own, the rules of each program are known for that program's. Those of calico name sets of
/// ipset, which are not to be had.
///
/// # Errors
///
/// One that the kernel takes is not told, or by another name. Fewer than half are taken.
pub fn programs() -> Result<Row> {
    println!("audit: calico's rules are not tried live: they name sets of ipset");
    let (mut known, mut refused) = (0, Vec::new());
    for (program, rules) in PROGRAMS {
        let node = Node::new("audit-programs", &[], "")?;
        // Not every kernel has every match.
        if let Err(error) = node.inside(|| command("iptables-nft-restore", &["--counters"], rules)) {
            println!("audit: rules of {program} are not tried: {error:#}");
            refused.push(program);
            continue;
        }
        let (findings, _) = audited(&node)?;
        let kept = keeps_ports(&findings);
        let known_for = kept.iter().filter(|finding| finding["owner"] == program).count();
        ensure!(known_for > 0, "no rule is known for {program}'s: {findings:?}");
        // One in a chain that is everybody's may be nobody's, and never another program's.
        let other = kept.iter().find(|finding| !finding["owner"].is_null() && finding["owner"] != program);
        ensure!(other.is_none(), "taken for another's than {program}'s: {other:?}");
        known += 1;
    }
    ensure!(2 * known >= PROGRAMS.len(), "of {refused:?} the kernel takes no rules");
    let without = if refused.is_empty() { String::new() } else { format!("; not taken here: {}", refused.join(", ")) };
    Ok(Row::said(format!("{known} programs{without}")))
}

/// Of four ports three are taken toward a destination.
///
/// # Errors
///
/// It is not told, or not how likely the last one is for both of two.
pub fn nearly_full() -> Result<Row> {
    let rules = "table ip audit {\n  chain post {\n    type nat hook postrouting priority 100; policy accept;\n    \
                 ip saddr 10.9.0.1 udp dport 9000 snat to 10.9.0.3:7000-7003 fully-random\n  }\n}\n";
    let node = Node::new("audit-full", &["10.9.0.1/32", "10.9.0.2/32", "10.9.0.3/32"], rules)?;
    let _held = node.inside(|| {
        let mut held = vec![UdpSocket::bind("10.9.0.2:9000")?];
        for _ in 0..3 {
            let sender = UdpSocket::bind("10.9.0.1:0")?;
            sender.send_to(b"x", "10.9.0.2:9000")?;
            held.push(sender);
        }
        Ok(held)
    })?;
    let (findings, _) = audited(&node)?;
    let full = |finding: &&Value| finding["finding"] == "range-nearly-full";
    let finding = findings.iter().find(full).with_context(|| format!("not told: {findings:?}"))?;
    let what = finding["what"].as_str().context("a finding says what")?;
    ensure!(what == "3 of the 4 ports 7000-7003 of 10.9.0.3 are taken toward udp 10.9.0.2:9000", "{what}");
    ensure!(finding["why"].as_str().is_some_and(|why| why.contains("in 100 % of cases")), "{finding}");
    ensure!(finding["severity"] == "medium", "{finding}");
    ensure!(keeps_ports(&findings).is_empty(), "a rule with the flag: {findings:?}");
    Ok(Row::said(what.to_owned()))
}
