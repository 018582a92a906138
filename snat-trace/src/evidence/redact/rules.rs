//! Rules and what is said of them, without names and addresses. A rule is free text of its tool: of its words those stay that
//! are known to be the tool's own.

use std::net::{IpAddr, SocketAddr};

use super::super::rules::Rules;
use super::Redactor;
use crate::audit::{Audit, Finding, Kind, RuleShown};

/// Words of nft and iptables, and of the programs whose chains are known by their names, which tell whose a rule is.
const KNOWN: &str = "! != --comment --ctproto --ctstate --destination --dport --dports --dst-type --limit-iface-in --limit-iface-out \
    --mark --match-set --persistent --random --random-fully --reject-with --set-mark --set-xmark --source --sport \
    --sports --src-type --to --to-destination --to-ports --to-source -A -d -g -i -j -m -o -p -s == ACCEPT AGENT AWS \
    CHAIN CILIUM CNI DNAT DOCKER DROP FLANNEL HOSTPORT INPUT IP KUBE LIBVIRT LOCAL MARK MASQ MASQUERADE NETAVARK \
    OUTPUT POSTROUTING POSTRTG PREROUTING PRT RETURN ROUTER SEP SERVICES SNAT SVC UNICAST accept addr addrtype and \
    bytes cali comment conntrack counter ct daddr dnat dport drop dst established fib fully-random goto icmp icmpv6 \
    iif iifname inet ip ip6 jump l4proto local map mark masquerade meta multiport nat new nfproto oif oifname or \
    packets persistent postrouting prerouting random related return saddr sctp set snat sport src state status tcp \
    th to type udp vmap xor";
/// What may stand around a word.
const AROUND: [char; 9] = ['"', '\'', '{', '}', ',', '(', ')', ';', '@'];

fn is_known(word: &str) -> bool {
    KNOWN.split(' ').any(|known| known == word)
}

impl Redactor {
    /// The rules of a network namespace.
    pub(in crate::evidence) fn rules(&self, rules: &Rules) -> Rules {
        let audit = &rules.audit;
        let audit = Audit {
            findings: audit.findings.iter().map(|finding| self.finding(finding)).collect(),
            rules: audit.rules.iter().map(|rule| self.rule(rule)).collect(),
            namespaces: audit.namespaces,
            // In the words of a tool, or of the system.
            not_read: audit
                .not_read
                .iter()
                .map(|_| "something, for a reason that is left out here".to_owned())
                .collect(),
        };
        Rules { audit, redacted: true, ..*rules }
    }

    fn rule(&self, rule: &RuleShown) -> RuleShown {
        RuleShown {
            table: self.text(&rule.table),
            chain: self.text(&rule.chain),
            // Of more than one, those between are not between what the ends are exchanged for.
            addresses: rule.addresses.filter(|(first, last)| first == last).map(|(only, _)| {
                let only = self.address(only);
                (only, only)
            }),
            // Nor is a network what its first address is exchanged for.
            sources: None,
            destinations: None,
            text: self.text(&rule.text),
            ..rule.clone()
        }
    }

    fn finding(&self, finding: &Finding) -> Finding {
        // Only what was found is about this node; why and what to do about it are the audit's own words.
        let what = match (finding.finding, finding.what.split_once(", by ")) {
            (Kind::DnsOverDnat, Some((what, rule))) => format!("{what}, by {}", self.text(rule)),
            _ => self.words_by(&finding.what, str::to_owned),
        };
        // A command that changes a rule has the rule in it, whoever made that, and one with other names in it is of no use.
        let names = |program: &String| ["nft", "iptables", "ip6tables"].iter().any(|tool| program.starts_with(tool));
        let command = finding.command.clone().filter(|words| !words.first().is_some_and(names));
        Finding { what, command, rule: finding.rule.as_ref().map(|rule| self.rule(rule)), ..finding.clone() }
    }

    /// A rule as its tool prints it: addresses are exchanged, known words and numbers stay, all else goes as names do.
    fn text(&self, text: &str) -> String {
        self.words_by(text, |word| {
            let number = word.strip_prefix("0x").unwrap_or(word);
            // Two of them, as in a range or a mask, and no more, as in the address of a network card.
            let is_number = number.split(['-', ':', '/']).count() <= 2
                && number.bytes().all(|byte| byte.is_ascii_digit() || b"-:/".contains(&byte));
            if is_number || is_known(word) { word.to_owned() } else { self.name(word) }
        })
    }

    /// A name, part by part, of which known ones stay.
    fn name(&self, word: &str) -> String {
        let parts = word.split('-').map(|part| if is_known(part) { part.to_owned() } else { self.words(part) });
        parts.collect::<Vec<_>>().join("-")
    }

    /// A text with its addresses exchanged, and what `other` makes of any other word.
    fn words_by(&self, text: &str, other: impl Fn(&str) -> String) -> String {
        let words = text.split(' ').map(|word| {
            let inner = word.trim_matches(AROUND);
            let Some(at) = word.find(inner).filter(|_| !inner.is_empty()) else { return word.to_owned() };
            let exchanged = self.place(inner).unwrap_or_else(|| other(inner));
            format!("{}{exchanged}{}", &word[..at], &word[at + inner.len()..])
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// An address, or a network, a range of addresses, or an address with ports, exchanged; `None` for anything else.
    fn place(&self, word: &str) -> Option<String> {
        if let Ok(address) = word.parse::<IpAddr>() {
            return Some(self.address(address).to_string());
        }
        if let Ok(end) = word.parse::<SocketAddr>() {
            return Some(SocketAddr::new(self.address(end.ip()), end.port()).to_string());
        }
        if let Some((address, length)) = word.split_once('/')
            && let (Ok(address), Ok(length)) = (address.parse::<IpAddr>(), length.parse::<u32>())
        {
            return Some(format!("{}/{length}", self.network(address, length)));
        }
        if let Some((first, last)) = word.split_once('-')
            && let (Some(first), Some(last)) = (self.place(first), self.place(last))
        {
            return Some(format!("{first}-{last}"));
        }
        // ADDRESS:PORT-PORT and [ADDRESS]:PORT-PORT, before and after a range of them too.
        let (address, ports) = word.rsplit_once(':')?;
        let is_ports = !ports.is_empty() && ports.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        let bare = address.trim_matches(['[', ']']);
        let exchanged = self.place(bare).filter(|_| is_ports)?;
        Some(if bare == address { format!("{exchanged}:{ports}") } else { format!("[{exchanged}]:{ports}") })
    }

    /// The address of a network: none of its bits say more than those of the one it is exchanged for.
    fn network(&self, address: IpAddr, length: u32) -> IpAddr {
        match self.address(address) {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32_u32.saturating_sub(length)).unwrap_or(0);
                IpAddr::V4((address.to_bits() & mask).into())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length)).unwrap_or(0);
                IpAddr::V6((address.to_bits() & mask).into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rule_keeps_its_tools_words() {
        let redactor = Redactor::new().unwrap();
        let text = redactor.text(
            "-A KUBE-SVC-ACMEPROD -s 10.1.2.3/32 ! -d 10.244.0.0/16 -o acme0 -p tcp -m comment --comment \"acme/payroll\" -j \
             SNAT --to-source 198.51.100.7:1024-2047 --random-fully",
        );
        assert!(text.starts_with("-A KUBE-SVC-x"), "{text}");
        assert!(text.contains(" -j SNAT --to-source ") && text.ends_with(":1024-2047 --random-fully"), "{text}");
        assert!(text.contains("/16 -o x") && text.contains(" -p tcp -m comment --comment \"x"), "{text}");
        // Whole addresses only: a network of a short prefix becomes itself once in a while, by right.
        for secret in ["acme", "ACMEPROD", "payroll", "10.1.2.3", "198.51.100.7"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        let of_nft =
            redactor.text("ip daddr { 10.0.0.0/8, 192.0.2.1-192.0.2.9 } snat to [2001:db8::1]:1-9 comment \"secret\"");
        assert!(of_nft.starts_with("ip daddr { 10.0.0.0/8, ") && of_nft.contains("]:1-9 comment \"x"), "{of_nft}");
        for secret in ["192.0.2.1-", "192.0.2.9", "2001:db8::1", "secret"] {
            assert!(!of_nft.contains(secret), "{secret}: {of_nft}");
        }
    }

    #[test]
    fn an_address_is_the_one_it_is_elsewhere() {
        let redactor = Redactor::new().unwrap();
        let address = "198.51.100.7".parse().unwrap();
        let text = redactor.text("snat to 198.51.100.7:5000");
        assert_eq!(text, format!("snat to {}:5000", redactor.address(address)));
        let sentence = redactor
            .words_by("3 of the 4 ports 1-4 of 198.51.100.7 are taken toward udp 198.51.100.7:53", str::to_owned);
        let other = redactor.address(address);
        assert_eq!(sentence, format!("3 of the 4 ports 1-4 of {other} are taken toward udp {other}:53"));
    }

    #[test]
    fn a_rule_is_not_told_by_the_command_that_changes_it() {
        let redactor = Redactor::new().unwrap();
        for name in ["docker", "aws", "home"] {
            let audit = crate::audit::tests::of(name);
            let commands = |findings: &[Finding]| -> Vec<_> {
                findings.iter().filter_map(|finding| finding.command.as_ref()).map(|words| words[0].clone()).collect()
            };
            let before = commands(&audit.findings);
            let after: Vec<_> = audit.findings.iter().map(|finding| redactor.finding(finding)).collect();
            assert!(!before.is_empty(), "{name}");
            let expected: Vec<_> = before.into_iter().filter(|program| program == "kubectl").collect();
            assert_eq!(commands(&after), expected, "{name}");
        }
    }

    proptest! {
        /// A word that is in no list of words does not come through, wherever it stands.
        #[test]
        fn no_other_word_stays(before in "[ -~]{0,20}", word in "[b-z]{9,12}", after in "[ -~]{0,20}") {
            let redactor = Redactor::new().unwrap();
            prop_assume!(!is_known(&word) && !super::super::KEPT.contains(&word.as_str()));
            for text in [format!("{before} {word} {after}"), format!("\"{word}\" {after}")] {
                let exchanged = redactor.text(&text);
                prop_assert!(!exchanged.contains(&word), "{}", exchanged);
            }
            let _any = redactor.text(&format!("{before}{word}{after}"));
        }
    }
}
