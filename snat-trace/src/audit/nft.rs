//! What `nft -j list ruleset` prints (libnftables-json(5)), with each rule's text from `nft -a list ruleset`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde_json::Value;

use super::rules::{Action, Chain, Choice, Family, Matches, Ports, Rule, Table, Target, Tool, Translation};
use super::spans::{Span, without};
use crate::race::tuple::Protocol;

/// The output of `nft -j` is no ruleset.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the output of nft -j list ruleset could not be understood")]
pub(super) struct NotUnderstood;

/// By family, table, chain and handle.
type Texts = HashMap<(String, String, String, u64), String>;

/// Elements of named sets of addresses, by family, table and name.
type Sets = HashMap<(String, String, String), Vec<Span>>;

/// Reads tables of the families ip, ip6 and inet. `listing` is the text with handles; a rule that is not in it has its
/// expressions for a text.
pub(super) fn parse(json: &str, listing: &str) -> Result<Vec<Table>, NotUnderstood> {
    let ruleset: Value = serde_json::from_str(json).map_err(|_| NotUnderstood)?;
    let objects = ruleset["nftables"].as_array().ok_or(NotUnderstood)?;
    let texts = texts(listing);
    let mut tables: Vec<Table> = Vec::new();
    let mut sets = Sets::new();
    let place = |tables: &[Table], object: &Value| {
        let family = family(object)?;
        tables.iter().position(|table| table.family == family && object["table"] == table.name.as_str())
    };
    for object in objects {
        if let Some(table) = object.get("table")
            && let (Some(family), Some(name)) = (family(table), table["name"].as_str())
        {
            tables.push(Table { tool: Tool::Nft, program: "nft", family, name: name.to_owned(), chains: Vec::new() });
        } else if let Some(set) = object.get("set")
            && let (Some(key), Some(spans)) = (key(set, &set["name"]), spans(&set["elem"], &|_| None))
        {
            sets.insert(key, spans);
        } else if let Some(chain) = object.get("chain")
            && let (Some(at), Some(name)) = (place(&tables, chain), chain["name"].as_str())
        {
            let hook = chain["hook"].as_str().filter(|_| chain["type"] == "nat").map(str::to_owned);
            tables[at].chains.push(Chain { name: name.to_owned(), hook, rules: Vec::new() });
        }
    }
    // Sets and chains may stand after the rules that name them.
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let Some(at) = place(&tables, rule) else { continue };
        let chains = &mut tables[at].chains;
        if let Some(chain) = chains.iter_mut().find(|chain| rule["chain"] == chain.name.as_str()) {
            chain.rules.push(read(rule, &texts, &sets));
        }
    }
    Ok(tables)
}

fn family(object: &Value) -> Option<Family> {
    [Family::Ip, Family::Ip6, Family::Inet].into_iter().find(|family| object["family"] == family.name())
}

fn key(object: &Value, name: &Value) -> Option<(String, String, String)> {
    let owned = |value: &Value| value.as_str().map(str::to_owned);
    Some((owned(&object["family"])?, owned(&object["table"])?, owned(name)?))
}

/// Every rule of the listing: a line that ends in its handle, or several of them where a set is long.
fn texts(listing: &str) -> Texts {
    let mut texts = Texts::new();
    let (mut table, mut chain, mut begun, mut depth) = (None, None, String::new(), 0);
    for line in listing.lines() {
        let trimmed = line.trim();
        let (text, handle) = match trimmed.rsplit_once(" # handle ") {
            Some((text, handle)) => (text, handle.parse::<u64>().ok()),
            None => (trimmed, None),
        };
        let opened = text.strip_suffix(" {").filter(|_| begun.is_empty());
        if let Some(name) = opened.and_then(|text| text.strip_prefix("table ")) {
            (table, chain) = (name.split_once(' '), None);
        } else if let Some(name) = opened.and_then(|text| text.strip_prefix("chain ")) {
            chain = Some(name);
        } else if let (Some((family, table)), Some(chain)) = (table, chain) {
            if !begun.is_empty() {
                begun.push(' ');
            }
            begun.push_str(text);
            depth += text.matches('{').count().cast_signed() - text.matches('}').count().cast_signed();
            let Some(handle) = handle else {
                // `type nat hook ...`, `comment "..."` and `}` are no rules, nor the beginning of one.
                if depth <= 0 {
                    (begun, depth) = (String::new(), 0);
                }
                continue;
            };
            depth = 0;
            let key = (family.to_owned(), table.to_owned(), chain.to_owned(), handle);
            texts.insert(key, std::mem::take(&mut begun));
        }
    }
    texts
}

fn read(rule: &Value, texts: &Texts, sets: &Sets) -> Rule {
    let handle = rule["handle"].as_u64();
    let text = key(rule, &rule["chain"])
        .zip(handle)
        .and_then(|((family, table, chain), handle)| texts.get(&(family, table, chain, handle)).cloned());
    let mut read = Rule {
        text: text.unwrap_or_else(|| rule["expr"].to_string()),
        handle,
        packets: None,
        matches: Matches::default(),
        action: Action::Other,
    };
    let named = |name: &str| sets.get(&key(rule, &Value::from(name))?).cloned();
    for expression in rule["expr"].as_array().into_iter().flatten() {
        let Some((name, value)) = expression.as_object().and_then(|object| object.iter().next()) else {
            read.matches.unknown = true;
            continue;
        };
        match name.as_str() {
            "match" => condition(value, &mut read.matches, &named),
            "counter" => read.packets = value["packets"].as_u64(),
            "log" | "mangle" => {}
            "return" => read.action = Action::Return,
            "accept" | "drop" | "reject" | "redirect" => read.action = Action::End,
            "jump" | "goto" | "vmap" => {
                let mut chains = Vec::new();
                targets(expression, &mut chains, 0);
                read.matches.unknown |= name == "vmap";
                read.action = Action::Jump { chains, goto: name == "goto" };
            }
            "masquerade" => read.action = translation(Target::Masquerade, value),
            "snat" => read.action = translation(Target::Snat, value),
            "dnat" => read.action = Action::Dnat { port: value["port"].as_u64().and_then(|port| port.try_into().ok()) },
            "xt" => foreign(value, &mut read),
            _ => read.matches.unknown = true,
        }
    }
    read
}

/// What iptables made and nft knows the name of only.
fn foreign(value: &Value, rule: &mut Rule) {
    let target = match value["name"].as_str() {
        Some("MASQUERADE") => Target::Masquerade,
        Some("SNAT") => Target::Snat,
        Some("comment") => return,
        _ => {
            rule.matches.unknown = true;
            return;
        }
    };
    let (ports, choice) = (Ports::Unknown, Choice::Unknown);
    rule.action = Action::Translate(Translation { target, addresses: None, ports, choice, one_to_one: false });
}

/// Chains that a verdict leads to, wherever it stands. The depth is bounded by that of the JSON reader too.
fn targets(value: &Value, chains: &mut Vec<String>, depth: u8) {
    const DEEP_ENOUGH: u8 = 16;
    if depth == DEEP_ENOUGH {
        return;
    }
    match value {
        Value::Array(values) => values.iter().for_each(|value| targets(value, chains, depth + 1)),
        Value::Object(fields) => {
            for (name, value) in fields {
                match value["target"].as_str().filter(|_| name == "jump" || name == "goto") {
                    Some(chain) => chains.push(chain.to_owned()),
                    None => targets(value, chains, depth + 1),
                }
            }
        }
        _ => {}
    }
}

fn translation(target: Target, value: &Value) -> Action {
    let address = |value: &Value| value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
    let addresses = match &value["addr"]["range"] {
        Value::Array(range) if range.len() == 2 => address(&range[0]).zip(address(&range[1])),
        _ => address(&value["addr"]).map(|address| (address, address)),
    };
    let ports = match &value["port"] {
        Value::Null => Ports::Any,
        port => range(port).map_or(Ports::Unknown, Ports::Range),
    };
    // `null`, one word, or several (libnftables-json(5), NAT).
    let flags: Vec<&str> = match &value["flags"] {
        Value::Array(flags) => flags.iter().filter_map(Value::as_str).collect(),
        flag => flag.as_str().into_iter().collect(),
    };
    let choice = if flags.contains(&"fully-random") {
        Choice::FullyRandom
    } else if flags.contains(&"random") {
        Choice::Random
    } else {
        Choice::Kept
    };
    let one_to_one = flags.contains(&"netmap") || value["type_flags"] == "prefix";
    // A map may give ports as well as addresses (`snat ip to ip saddr map @m`, of addresses and ports).
    let ports = if value["addr"].get("map").is_some() && ports == Ports::Any { Ports::Unknown } else { ports };
    Action::Translate(Translation { target, addresses, ports, choice, one_to_one })
}

/// One number, or the first and last.
fn range(value: &Value) -> Option<RangeInclusive<u16>> {
    let number = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    let range = match &value["range"] {
        Value::Array(range) if range.len() == 2 => number(&range[0])?..=number(&range[1])?,
        _ => number(value)?..=number(value)?,
    };
    (!range.is_empty()).then_some(range)
}

/// Addresses on the right of a comparison, or elements of a set.
fn spans(value: &Value, named: &dyn Fn(&str) -> Option<Vec<Span>>) -> Option<Vec<Span>> {
    if let Some(text) = value.as_str() {
        return match text.strip_prefix('@') {
            Some(set) => named(set),
            None => Span::parse(text).map(|span| vec![span]),
        };
    }
    if let Value::Array(elements) = value {
        let all: Option<Vec<_>> = elements.iter().map(|element| spans(element, named)).collect();
        return all.map(|all| all.concat());
    }
    // An element with a comment, a counter or a timeout.
    if let Some(element) = value.get("elem") {
        return spans(&element["val"], named);
    }
    if let Some(set) = value.get("set") {
        return spans(set, named);
    }
    let address = |value: &Value| value.as_str()?.parse().ok();
    if let Some(prefix) = value.get("prefix") {
        let length = prefix["len"].as_u64()?.try_into().ok()?;
        return Span::prefix(address(&prefix["addr"])?, length).map(|span| vec![span]);
    }
    let range = value.get("range")?.as_array().filter(|range| range.len() == 2)?;
    Span::between(address(&range[0])?, address(&range[1])?).map(|span| vec![span])
}

fn condition(value: &Value, matches: &mut Matches, named: &dyn Fn(&str) -> Option<Vec<Span>>) {
    let (left, right) = (&value["left"], &value["right"]);
    let negated = match value["op"].as_str() {
        Some("==" | "in") => false,
        Some("!=") => true,
        _ => {
            matches.unknown = true;
            return;
        }
    };
    let payload = |name: &str| left["payload"][name].as_str().unwrap_or_default();
    let (header, field, meta) = (payload("protocol"), payload("field"), left["meta"]["key"].as_str());
    if matches!(header, "ip" | "ip6") {
        version(header, matches);
        matches.changing |= spans(right, &|_| None).is_none() && spans(right, named).is_some();
    }
    match (header, field, meta) {
        ("ip" | "ip6", "daddr", _) => matches.destination(negated, spans(right, named)),
        ("ip" | "ip6", "saddr", _) if !negated => matches.sources = spans(right, named),
        ("ip" | "ip6", "saddr", _) | ("tcp" | "udp" | "sctp" | "th", "sport", _) => {}
        ("tcp" | "udp" | "sctp" | "th", "dport", _) if !negated => {
            let list = match &right["set"] {
                Value::Array(ports) => ports.iter().map(range).collect::<Option<Vec<_>>>(),
                _ => range(right).map(|range| vec![range]),
            };
            matches.unknown |= list.is_none();
            matches.ports.extend(list.into_iter().flatten());
            if header != "th" {
                protocol(header, matches);
            }
        }
        (_, _, Some("l4proto")) if !negated => protocol(right.as_str().unwrap_or_default(), matches),
        ("ip", "protocol", _) if !negated => protocol(right.as_str().unwrap_or_default(), matches),
        (_, _, Some("nfproto")) => version(if right == "ipv6" { "ip6" } else { "ip" }, matches),
        // Where packets come from, and where they are not to leave.
        (_, _, Some("iif" | "iifname")) => {}
        (_, _, Some("oif" | "oifname")) if negated => {}
        // `meta mark X`, or `meta mark and X == Y`; 0 is what packets without a mark have.
        _ if meta == Some("mark") || left["&"][0]["meta"]["key"] == "mark" => {
            matches.marked |= negated == (right == &Value::from(0));
        }
        _ if left["fib"]["result"] == "type" && left["fib"]["flags"][0] == "daddr" && negated && right == "local" => {}
        _ => matches.unknown = true,
    }
}

/// Leaves out the destinations of the other version of IP.
fn version(header: &str, matches: &mut Matches) {
    let four = Span::parse("0.0.0.0/0");
    match header {
        "ip6" => matches.except.extend(four),
        _ => matches.except.extend(without(&[Span::ALL], &Vec::from_iter(four))),
    }
}

fn protocol(name: &str, matches: &mut Matches) {
    let known = [("tcp", Protocol::TCP), ("udp", Protocol::UDP), ("sctp", Protocol::SCTP), ("icmp", Protocol::ICMP)];
    matches.protocol = known.into_iter().find_map(|(known, protocol)| (known == name).then_some(protocol));
    matches.unknown |= matches.protocol.is_none();
}
