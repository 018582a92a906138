//! The command that makes a rule choose ports at random.

use super::iptables;
use super::reach::SourceNat;
use super::rules::Tool;

/// Words of a rule more than this are no command for a person.
const LONG: usize = 64;

/// The command, word by word and quoted for a shell; `None` where it is not known how to say it.
pub(super) fn random_fully(rule: &SourceNat<'_>) -> Option<Vec<String>> {
    let mut command = vec![rule.program.to_owned()];
    match rule.tool {
        Tool::Nft => {
            let handle = rule.rule.handle?.to_string();
            let place = ["replace", "rule", rule.family.name(), rule.table, rule.chain, "handle", &handle];
            command.extend(place.map(str::to_owned));
            command.extend(nft(&rule.rule.text)?);
        }
        Tool::IptablesNft | Tool::IptablesLegacy => {
            let position = rule.position.to_string();
            command.extend(["-w", "-t", "nat", "-R", rule.chain, &position].map(str::to_owned));
            command.extend(iptables::words(&rule.rule.text).into_iter().skip(2));
            command.push("--random-fully".to_owned());
        }
    }
    (command.len() <= LONG).then(|| command.iter().map(|word| quoted(word)).collect())
}

/// A rule's words with the flag after its translation.
fn nft(text: &str) -> Option<Vec<String>> {
    let mut words = split(text);
    let at = words.iter().position(|word| word == "masquerade" || word == "snat")?;
    let mut end = at + 1;
    if words.get(end).is_some_and(|word| word == "ip" || word == "ip6") {
        end += 1;
    }
    if words.get(end).is_some_and(|word| word == "to") {
        // One word of addresses and ports; anything longer is a map or other expression.
        end += 2;
        let plain = |word: &String| word.bytes().all(|byte| byte.is_ascii_hexdigit() || b".:-[]".contains(&byte));
        words.get(end - 1).filter(|word| plain(word))?;
    }
    match words.get_mut(end) {
        Some(flags) if flags.split(',').all(|flag| ["random", "persistent"].contains(&flag)) => {
            flags.insert_str(0, "fully-random,");
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
        nft(text).map(|words| words.join(" "))
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
        ] {
            assert_eq!(made(before).as_deref(), Some(after));
        }
        for unknown in ["accept", "snat to ip saddr map { 10.0.0.1 : 1.2.3.4 }", "[{\"masquerade\":null}]", "snat to"] {
            assert_eq!(made(unknown), None, "{unknown}");
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
