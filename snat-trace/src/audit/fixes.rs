//! Commands that change a rule.

use super::iptables;
use super::reach::SourceNat;
use super::rules::{Family, Tool};
use super::shown::RuleShown;

/// Words of a rule more than this are no command for a person.
const LONG: usize = 64;

/// What is to be another in a rule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Edit {
    /// Its ports are chosen at random.
    Random,
    /// They are, and it names none.
    RandomOfAll,
}

/// The command, word by word and quoted for a shell; `None` where it is not known how to say it.
pub(super) fn edited(rule: &SourceNat<'_>, edit: Edit) -> Option<Vec<String>> {
    let mut command = vec![rule.program.to_owned()];
    match rule.tool {
        Tool::Nft => {
            let handle = rule.rule.handle?.to_string();
            let place = ["rule", rule.family.name(), rule.table, rule.chain, "handle", &handle].map(str::to_owned);
            let words = nft(&rule.rule.text, edit)?;
            // nft 1.0.6 aborts where a rule is replaced by one with ranges of addresses in braces; one behind it and the end
            // of the other are one change too.
            let has_set = words.iter().any(|word| word == "{");
            command.push(if has_set { "add" } else { "replace" }.to_owned());
            command.extend(place.iter().cloned().chain(words));
            if has_set {
                command.extend([";", "delete"].map(str::to_owned).into_iter().chain(place));
            }
        }
        Tool::IptablesNft | Tool::IptablesLegacy => {
            let position = rule.position.to_string();
            command.extend(["-w", "-t", "nat", "-R", rule.chain, &position].map(str::to_owned));
            command.extend(saved(iptables::words(&rule.rule.text), edit));
        }
    }
    shell(&command)
}

/// The command that leaves these destinations untranslated of what a rule takes, by another ahead of it; `None` where it is
/// not known how to say it. They may be addresses and networks.
pub(super) fn exempting(rule: &RuleShown, program: &str, destinations: &[&str]) -> Option<Vec<String>> {
    let (six, four): (Vec<&str>, Vec<&str>) = destinations.iter().partition(|destination| destination.contains(':'));
    let groups: Vec<(&str, Vec<&str>)> = [("ip", Family::Ip6, four), ("ip6", Family::Ip, six)]
        .into_iter()
        .filter(|(_, other, group)| rule.family != *other && !group.is_empty())
        .map(|(header, _, group)| (header, group))
        .collect();
    if groups.is_empty() {
        return None;
    }
    let mut command = vec![program.to_owned()];
    match rule.tool {
        Tool::Nft => {
            let words = split(&rule.text);
            let conditions = &words[..words.iter().position(|word| word == "masquerade" || word == "snat")?];
            let handle = rule.handle?.to_string();
            for (index, (header, group)) in groups.iter().enumerate() {
                if index > 0 {
                    command.push(";".to_owned());
                }
                let place = ["insert", "rule", rule.family.name(), &rule.table, &rule.chain, "handle", &handle];
                command.extend(place.map(str::to_owned));
                command.extend(without_counter(conditions));
                let group = match group.as_slice() {
                    [one] => (*one).to_owned(),
                    several => format!("{{ {} }}", several.join(", ")),
                };
                command.extend([header, "daddr", &group, "accept"].map(str::to_owned));
            }
        }
        Tool::IptablesNft | Tool::IptablesLegacy => {
            let position = rule.position.to_string();
            command.extend(["-w", "-t", "nat", "-I", &rule.chain, &position].map(str::to_owned));
            let words = iptables::words(&rule.text);
            // What its target is told stands behind it; a comment with the like in it stands ahead.
            let target = words.iter().rposition(|word| word == "-j")?;
            let mut conditions = words.get(2..target)?.to_vec();
            // There can be one such condition only, and these are among what it lets through.
            while let Some(at) = conditions.iter().position(|word| word == "-d") {
                let first = if at > 0 && conditions[at - 1] == "!" { at - 1 } else { at };
                conditions.drain(first..(at + 2).min(conditions.len()));
            }
            command.extend(conditions);
            let all: Vec<_> = groups.into_iter().flat_map(|(_, group)| group).collect();
            command.extend(["-d", &all.join(","), "-j", "ACCEPT"].map(str::to_owned));
        }
    }
    shell(&command)
}

/// Words as a shell takes them, if they are not too many.
fn shell(command: &[String]) -> Option<Vec<String>> {
    (command.len() <= LONG).then(|| command.iter().map(|word| quoted(word)).collect())
}

/// Without what a rule of nft has counted.
fn without_counter(words: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        if word != "counter" {
            kept.push(word.clone());
            continue;
        }
        for what in ["packets", "bytes"] {
            if words.next_if(|next| *next == what).is_some() {
                words.next();
            }
        }
    }
    kept
}

/// Addresses of a translation without the ports that stand behind them; nothing where there are ports only.
fn without_ports(to: &str) -> String {
    let addresses = match to.rsplit_once("]:") {
        Some((addresses, _)) => addresses,
        // An address of IPv6 without ports has more of them.
        None if to.matches(':').count() == 1 => to.split(':').next().unwrap_or_default(),
        None => to,
    };
    addresses.replace(['[', ']'], "")
}

/// A rule's words as iptables saves them, changed.
fn saved(words: Vec<String>, edit: Edit) -> Vec<String> {
    let mut changed = Vec::new();
    let mut words = words.into_iter().skip(2);
    while let Some(word) = words.next() {
        match word.as_str() {
            // There is no more than one, and it comes last.
            "--random-fully" => {}
            "--to-ports" if edit == Edit::RandomOfAll => {
                words.next();
            }
            "--to-source" if edit == Edit::RandomOfAll => {
                changed.push(word);
                changed.extend(words.next().map(|to| without_ports(&to)));
            }
            _ => changed.push(word),
        }
    }
    changed.push("--random-fully".to_owned());
    changed
}

/// A rule's words as nft lists them, changed.
fn nft(text: &str, edit: Edit) -> Option<Vec<String>> {
    let mut words = split(text);
    let at = words.iter().position(|word| word == "masquerade" || word == "snat")?;
    let mut end = at + 1;
    if words.get(end).is_some_and(|word| word == "ip" || word == "ip6") {
        end += 1;
    }
    if words.get(end).is_some_and(|word| word == "to") {
        // One word of addresses and ports; anything longer is a map or other expression.
        let plain = |word: &&mut String| word.bytes().all(|byte| byte.is_ascii_hexdigit() || b".:-[]".contains(&byte));
        let to = words.get_mut(end + 1).filter(plain)?;
        if edit == Edit::RandomOfAll {
            *to = without_ports(to);
        }
        if to.is_empty() {
            words.drain(end..end + 2);
        } else {
            end += 2;
        }
    }
    match words.get_mut(end) {
        Some(flags) if flags.split(',').all(|flag| ["random", "fully-random", "persistent"].contains(&flag)) => {
            if !flags.contains("fully-random") {
                flags.insert_str(0, "fully-random,");
            }
        }
        // A comment is all that may stand behind.
        None => words.push("fully-random".to_owned()),
        Some(word) if word == "comment" => words.insert(end, "fully-random".to_owned()),
        Some(_) => return None,
    }
    Some(words)
}

/// At spaces that are not in double quotes, which stay: nft wants them.
fn split(text: &str) -> Vec<String> {
    let mut quoted = false;
    let words = text.split(|character| {
        quoted ^= character == '"';
        character == ' ' && !quoted
    });
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// A word as a shell takes it for itself.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_./:,=+@%^-".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The words of a line that was made of such words, each quoted as it was.
pub(super) fn words(line: &str) -> Vec<String> {
    let (mut within, mut escaped) = (false, false);
    let words = line.split(|character| {
        let literal = std::mem::take(&mut escaped);
        match character {
            '\'' if !literal => within = !within,
            '\\' if !within => escaped = true,
            ' ' => return !within,
            _ => {}
        }
        false
    });
    words.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(text: &str) -> Option<String> {
        nft(text, Edit::Random).map(|words| words.join(" "))
    }

    #[test]
    fn the_flag_stands_where_nft_wants_it() {
        for (before, after) in [
            ("masquerade", "masquerade fully-random"),
            (
                "oifname \"eth 0\" masquerade comment \"a b\"",
                "oifname \"eth 0\" masquerade fully-random comment \"a b\"",
            ),
            (
                "meta l4proto tcp masquerade to :1-9 persistent",
                "meta l4proto tcp masquerade to :1-9 fully-random,persistent",
            ),
            ("snat ip to 192.0.2.1:1-3", "snat ip to 192.0.2.1:1-3 fully-random"),
            ("snat to [fd00::1]:1-3 random", "snat to [fd00::1]:1-3 fully-random,random"),
            ("masquerade fully-random", "masquerade fully-random"),
        ] {
            assert_eq!(made(before).as_deref(), Some(after));
        }
        for unknown in ["accept", "snat to ip saddr map { 10.0.0.1 : 1.2.3.4 }", "[{\"masquerade\":null}]", "snat to"] {
            assert_eq!(made(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn ports_are_taken_out() {
        for (before, after) in [
            ("masquerade to :1-9 fully-random", "masquerade fully-random"),
            ("masquerade to :7 persistent comment \"a b\"", "masquerade fully-random,persistent comment \"a b\""),
            ("snat ip to 192.0.2.1:1-3", "snat ip to 192.0.2.1 fully-random"),
            ("snat to 192.0.2.1-192.0.2.4:1-3", "snat to 192.0.2.1-192.0.2.4 fully-random"),
            ("snat to [fd00::1]:1-3 random", "snat to fd00::1 fully-random,random"),
            ("snat to fd00::1", "snat to fd00::1 fully-random"),
        ] {
            assert_eq!(nft(before, Edit::RandomOfAll).map(|words| words.join(" ")).as_deref(), Some(after));
        }
        for (before, after) in [
            ("-p udp -j MASQUERADE --to-ports 1-9 --random-fully", "-p udp -j MASQUERADE --random-fully"),
            (
                "-p udp -j SNAT --to-source 192.0.2.1:5 --persistent",
                "-p udp -j SNAT --to-source 192.0.2.1 --persistent --random-fully",
            ),
            ("-j SNAT --to-source [fd00::1-fd00::9]:5-7", "-j SNAT --to-source fd00::1-fd00::9 --random-fully"),
            ("-j SNAT --to-source fd00::1", "-j SNAT --to-source fd00::1 --random-fully"),
        ] {
            let words = iptables::words(&format!("-A POSTROUTING {before}"));
            assert_eq!(saved(words, Edit::RandomOfAll).join(" "), after);
        }
    }

    #[test]
    fn a_shell_takes_a_word_for_itself() {
        assert_eq!(quoted("10.0.0.0/8"), "10.0.0.0/8");
        assert_eq!(quoted("$(reboot)"), "'$(reboot)'");
        assert_eq!(quoted("it's `x`"), "'it'\\''s `x`'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("!"), "'!'");
    }

    proptest::proptest! {
        #[test]
        fn a_line_is_its_words(command in proptest::collection::vec("[ -~]{0,9}", 1..6)) {
            let command: Vec<String> = command.iter().map(|word| quoted(word)).collect();
            proptest::prop_assert_eq!(words(&command.join(" ")), command);
        }
    }
}
