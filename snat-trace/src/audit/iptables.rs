//! What `iptables-save -c` and its like print, of either backend: the table `nat`.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::rules::{Action, Chain, Choice, Family, Matches, Ports, Rule, Table, Target, Tool, Translation};
use super::spans::Span;
use crate::race::tuple::Protocol;

/// Reads the table `nat`; what is not understood is passed over, or unknown in its rule. `program` changes what was
/// printed. A table that has rules only nft can make is not printed at all, but for a comment that says so.
pub(super) fn parse(text: &str, tool: Tool, program: &'static str, family: Family) -> Vec<Table> {
    let mut tables = Vec::new();
    let mut table: Option<Table> = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.extend(table.take());
            let new = || Table { tool, program, family, name: name.to_owned(), chains: Vec::new() };
            table = (name == "nat").then(new);
        } else if line == "COMMIT" {
            tables.extend(table.take());
        } else if let Some(table) = &mut table {
            add(table, line);
        }
    }
    tables.extend(table);
    tables
}

fn add(table: &mut Table, line: &str) {
    if let Some(chain) = line.strip_prefix(':') {
        let name = chain.split(' ').next().unwrap_or_default();
        let built_in = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"].contains(&name);
        let hook = built_in.then(|| name.to_ascii_lowercase());
        table.chains.push(Chain { name: name.to_owned(), hook, rules: Vec::new() });
        return;
    }
    let (packets, text) = match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((counters, text)) => (counters.split(':').next().and_then(|packets| packets.parse().ok()), text),
        None => (None, line),
    };
    let words = words(text);
    let [append, chain, rest @ ..] = words.as_slice() else { return };
    if append != "-A" {
        return;
    }
    let is_chain = |name: &str| table.chains.iter().any(|chain| chain.name == name);
    let (matches, action) = Reader::read(rest, is_chain);
    let rule = Rule { text: text.to_owned(), handle: None, packets, matches, action };
    if let Some(chain) = table.chains.iter_mut().find(|known| known.name == *chain) {
        chain.rules.push(rule);
    }
}

/// Words as iptables quotes them: in double quotes, with a backslash before a quote or backslash (libxtables,
/// `xtables_save_string`).
pub(super) fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(characters.next()),
            ' ' | '\t' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

/// Reads options one after another.
struct Reader<'a> {
    matches: Matches,
    target: Option<&'a str>,
    goto: bool,
    /// Ports or addresses and ports, as the target's option has them.
    to: Option<&'a str>,
    choice: Choice,
}

impl<'a> Reader<'a> {
    fn read(words: &'a [String], is_chain: impl Fn(&str) -> bool) -> (Matches, Action) {
        let mut reader =
            Self { matches: Matches::default(), target: None, goto: false, to: None, choice: Choice::Kept };
        let mut words = words.iter().map(String::as_str).peekable();
        let mut negated = false;
        while let Some(word) = words.next() {
            if word == "!" {
                negated = true;
                continue;
            }
            if word.starts_with('-') {
                let mut values = Vec::new();
                // An option's values; each begins with another character, or the next option begins.
                while let Some(value) = words.next_if(|next| !next.starts_with('-') && *next != "!") {
                    values.push(value);
                }
                // A comment may begin with anything.
                if word == "--comment" && values.is_empty() {
                    words.next();
                }
                reader.option(word, negated, &values);
            } else {
                reader.matches.unknown = true;
            }
            negated = false;
        }
        let action = reader.action(is_chain);
        (reader.matches, action)
    }

    fn option(&mut self, name: &str, negated: bool, values: &[&'a str]) {
        let first = values.first().copied();
        let matches = &mut self.matches;
        match name {
            "-s" if !negated => matches.sources = first.and_then(Span::parse).map(|span| vec![span]),
            "-s" | "-i" | "-m" | "--comment" | "--src-type" | "--src-range" | "--sport" | "--sports"
            | "--source-ports" | "--icmp-type" => {}
            "-d" => matches.destination(negated, first.and_then(Span::parse).map(|span| vec![span])),
            "--dst-range" => matches.destination(negated, first.and_then(Span::parse).map(|span| vec![span])),
            "-p" if !negated => {
                matches.protocol = first.and_then(protocol);
                matches.unknown |= matches.protocol.is_none();
            }
            // Where packets are not to leave says nothing about where they go.
            "-o" if negated => {}
            "--dport" | "--dports" | "--destination-ports" if !negated => {
                let ports: Option<Vec<_>> = first.unwrap_or_default().split(',').map(|part| ports(part, ':')).collect();
                matches.unknown |= ports.is_none();
                matches.ports.extend(ports.into_iter().flatten());
            }
            // The node's own addresses are no destinations of what it sends on.
            "--dst-type" if negated && first == Some("LOCAL") => {}
            // Whether packets have no mark is asked of those that have one.
            "--mark" => matches.marked |= !negated,
            "--match-set" if values.get(1) == Some(&"src") => {}
            "-j" | "-g" => (self.target, self.goto) = (first, name == "-g"),
            "--to-ports" | "--to-source" | "--to-destination" => self.to = first,
            "--random" if self.choice == Choice::Kept => self.choice = Choice::Random,
            "--random-fully" => self.choice = Choice::FullyRandom,
            "--random" | "--persistent" => {}
            // Options of other targets come after the target and narrow nothing.
            _ if self.target.is_some() => {}
            _ => matches.unknown = true,
        }
    }

    fn action(&self, is_chain: impl Fn(&str) -> bool) -> Action {
        match self.target {
            Some("MASQUERADE") => {
                let ports = self.to.map_or(Ports::Any, |to| ports(to, '-').map_or(Ports::Unknown, Ports::Range));
                self.translate(Target::Masquerade, None, ports)
            }
            Some("SNAT") => {
                let (addresses, ports) = self.to.map_or((None, Ports::Unknown), destination);
                self.translate(Target::Snat, addresses, ports)
            }
            Some("DNAT") => {
                let port = match self.to.map(destination) {
                    Some((_, Ports::Range(ports))) if ports.start() == ports.end() => Some(*ports.start()),
                    _ => None,
                };
                Action::Dnat { port }
            }
            Some("RETURN") => Action::Return,
            Some("ACCEPT" | "DROP" | "REDIRECT" | "NETMAP") => Action::End,
            Some(chain) if is_chain(chain) => Action::Jump { chains: vec![chain.to_owned()], goto: self.goto },
            _ => Action::Other,
        }
    }

    fn translate(&self, target: Target, addresses: Option<(IpAddr, IpAddr)>, ports: Ports) -> Action {
        Action::Translate(Translation { target, addresses, ports, choice: self.choice, one_to_one: false })
    }
}

fn protocol(text: &str) -> Option<Protocol> {
    let known = [("tcp", Protocol::TCP), ("udp", Protocol::UDP), ("sctp", Protocol::SCTP), ("icmp", Protocol::ICMP)];
    known
        .into_iter()
        .find_map(|(name, protocol)| (name == text).then_some(protocol))
        .or_else(|| text.parse().ok().map(Protocol))
}

/// `PORT` or two of them.
fn ports(text: &str, between: char) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once(between).unwrap_or((text, text));
    let range = first.parse().ok()?..=last.parse().ok()?;
    (!range.is_empty()).then_some(range)
}

/// `[ADDRESS[-ADDRESS]][:PORT[-PORT]]`; an address of IPv6 before a port is in brackets.
fn destination(text: &str) -> (Option<(IpAddr, IpAddr)>, Ports) {
    let (addresses, to) = match text.rsplit_once("]:") {
        Some((addresses, to)) => (addresses, Some(to)),
        None if text.matches(':').count() == 1 => {
            text.split_once(':').map_or((text, None), |(addresses, to)| (addresses, Some(to)))
        }
        None => (text, None),
    };
    let addresses: String = addresses.chars().filter(|character| !"[]".contains(*character)).collect();
    let (first, last) = addresses.split_once('-').unwrap_or((&addresses, &addresses));
    let addresses = first.parse().ok().zip(last.parse().ok());
    (addresses, to.map_or(Ports::Any, |to| ports(to, '-').map_or(Ports::Unknown, Ports::Range)))
}
