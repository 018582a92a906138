//! Which functions the kernel has under their exact names, and where a variable stands.

use std::io::{self, BufRead};

/// Where a function is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Location(Option<String>);

impl Location {
    /// Its module; `None` for the kernel image.
    #[must_use]
    pub fn module(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// What `/proc/kallsyms` says of a few names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Symbols {
    functions: Vec<(&'static str, Vec<Location>)>,
    variable: Option<u64>,
}

impl Symbols {
    /// Reads lines as they stand in `/proc/kallsyms` (`ADDRESS TYPE NAME`, for a module a tab and `[MODULE]` after it)
    /// once, and keeps the functions named in `wanted`, and the address of one `variable`. Those of functions are not
    /// looked at: `kptr_restrict` hides them, not the names.
    ///
    /// A kernel has some 200 000 such lines, so a line that is not wanted costs no more than its length and a few
    /// comparisons.
    ///
    /// # Errors
    ///
    /// When `kallsyms` cannot be read.
    pub fn read(
        mut kallsyms: impl BufRead,
        wanted: impl IntoIterator<Item = &'static str>,
        variable: &str,
    ) -> Result<Self, io::Error> {
        let mut found: Vec<(&'static str, Vec<Location>)> = Vec::new();
        for name in wanted {
            if !found.iter().any(|(known, _)| *known == name) {
                found.push((name, Vec::new()));
            }
        }
        let mut addresses = Vec::new();
        let mut line = Vec::with_capacity(256);
        while kallsyms.read_until(b'\n', &mut line)? != 0 {
            let Some(Symbol { address, kind, name, module }) = symbol(&line) else {
                line.clear();
                continue;
            };
            if matches!(kind, b'b' | b'B' | b'd' | b'D') && name == variable.as_bytes() {
                addresses.extend(std::str::from_utf8(address).ok().and_then(|hex| u64::from_str_radix(hex, 16).ok()));
            }
            if matches!(kind, b't' | b'T' | b'w' | b'W')
                && let Some((_, locations)) = found.iter_mut().find(|(wanted, _)| wanted.as_bytes() == name)
            {
                locations.push(Location(module.map(|module| String::from_utf8_lossy(module).into_owned())));
            }
            line.clear();
        }
        let variable = match addresses.as_slice() {
            &[address] => Some(address).filter(|&address| address != 0),
            _ => None,
        };
        Ok(Self { functions: found, variable })
    }

    /// Where the variable stands, if there is one of that name and no other, and its address is not hidden.
    #[must_use]
    pub fn variable(&self) -> Option<u64> {
        self.variable
    }

    /// Every function of exactly this name; none for a name that was not looked for.
    #[must_use]
    pub fn locations(&self, name: &str) -> &[Location] {
        self.functions.iter().find(|(known, _)| *known == name).map_or(&[], |(_, locations)| locations)
    }
}

/// The parts of a line.
struct Symbol<'a> {
    /// Hexadecimal.
    address: &'a [u8],
    /// As `nm` has it.
    kind: u8,
    name: &'a [u8],
    module: Option<&'a [u8]>,
}

/// `None` for anything that is no such line.
fn symbol(line: &[u8]) -> Option<Symbol<'_>> {
    let space = line.iter().position(|&byte| byte == b' ')?;
    let (address, [_, kind, b' ', rest @ ..]) = line.split_at(space) else { return None };
    let rest = rest.strip_suffix(b"\n").unwrap_or(rest);
    let symbol = |name, module| Symbol { address, kind: *kind, name, module };
    // Most lines are of no module, and need not be searched for its beginning.
    let Some(rest) = rest.strip_suffix(b"]") else { return Some(symbol(rest, None)) };
    let tab = rest.iter().rposition(|&byte| byte == b'\t')?;
    let module = rest[tab + 1..].strip_prefix(b"[")?;
    Some(symbol(&rest[..tab], Some(module)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutate::survives;

    fn modules(kallsyms: &str, name: &'static str) -> Vec<Option<String>> {
        let symbols = Symbols::read(kallsyms.as_bytes(), [name], "").unwrap();
        symbols.locations(name).iter().map(|location| location.module().map(str::to_owned)).collect()
    }

    #[test]
    fn a_name_is_matched_whole() {
        let lookalikes = "ffffffffc0a01000 t tcp_connect.part.0\t[m]\n\
                          ffffffffc0a01000 t tcp_connect.isra.0\n\
                          ffffffffc0a01000 t tcp_connect.cold\n\
                          ffffffffc0a01000 t mptcp_connect\n\
                          ffffffffc0a01000 t tcp_connec\n\
                          ffffffffc0a01000 d tcp_connect\n\
                          ffffffffc0a01000 r tcp_connect\t[m]\n";
        assert_eq!(modules(lookalikes, "tcp_connect"), []);
        let present = format!("{lookalikes}ffffffff81a01000 T tcp_connect\n");
        assert_eq!(modules(&present, "tcp_connect"), [None]);
    }

    #[test]
    fn module_and_ambiguity() {
        let kallsyms = "0000000000000000 t early_drop\t[nf_conntrack]\n0000000000000000 t early_drop\t[other]";
        assert_eq!(modules(kallsyms, "early_drop"), [Some("nf_conntrack".to_owned()), Some("other".to_owned())]);
    }

    #[test]
    fn hidden_addresses_do_not_matter() {
        // kptr_restrict=2, and a 32-bit kernel.
        assert_eq!(modules("0000000000000000 T tcp_connect\n", "tcp_connect"), [None]);
        assert_eq!(modules("c0a01000 T tcp_connect\n", "tcp_connect"), [None]);
    }

    #[test]
    fn a_variable_is_one_and_not_hidden() {
        for (kallsyms, address) in [
            ("ffffffffc023d168 d genid\t[m]\n", Some(0xffff_ffff_c023_d168)),
            ("ffffffffc023d168 B genid", Some(0xffff_ffff_c023_d168)),
            ("0000000000000000 d genid\t[m]\n", None),
            ("ffffffffc023d168 t genid\t[m]\n", None),
            ("ffffffffc023d168 d genid2\t[m]\n", None),
            ("ffffffffc023d168 d genid\t[m]\nffffffffc023d160 b genid\t[n]\n", None),
            ("x d genid\n", None),
            ("", None),
        ] {
            assert_eq!(Symbols::read(kallsyms.as_bytes(), [], "genid").unwrap().variable(), address, "{kallsyms}");
        }
    }

    #[test]
    fn a_name_asked_for_twice_is_one_name() {
        let symbols = Symbols::read(&b"0 T tcp_connect\n"[..], ["tcp_connect", "tcp_connect"], "").unwrap();
        assert_eq!(symbols.locations("tcp_connect").len(), 1);
        assert_eq!(symbols.locations("never_asked").len(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            Symbols::read(&bytes[..], ["tcp_connect"], "genid").unwrap();
        }

        #[test]
        fn any_printable_lines_are_read(text in "([0-9a-f ]{0,4}[ tT\t\\[\\]a\n]{0,6}){0,40}") {
            Symbols::read(text.as_bytes(), ["a"], "a").unwrap();
        }
    }

    #[test]
    fn mutated_lists_are_survived() {
        let list = std::fs::read(crate::kernel::fixture::data("6.12").join("kallsyms")).unwrap();
        survives("kallsyms", &[&list], |bytes| {
            drop(Symbols::read(bytes, ["tcp_connect", "nf_ct_resolve_clash"], "nf_conntrack_max"));
        });
    }
}
