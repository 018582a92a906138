//! Which functions the kernel has under their exact names.

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
pub struct Symbols(Vec<(&'static str, Vec<Location>)>);

impl Symbols {
    /// Reads lines as they stand in `/proc/kallsyms` (`ADDRESS TYPE NAME`, for a module a tab and `[MODULE]` after it)
    /// once, and keeps the functions named in `wanted`. Addresses are not looked at: `kptr_restrict` hides them, not
    /// the names.
    ///
    /// A kernel has some 200 000 such lines, so a line that is not wanted costs no more than its length and a few
    /// comparisons.
    ///
    /// # Errors
    ///
    /// When `kallsyms` cannot be read.
    pub fn read(mut kallsyms: impl BufRead, wanted: impl IntoIterator<Item = &'static str>) -> Result<Self, io::Error> {
        let mut found: Vec<(&'static str, Vec<Location>)> = Vec::new();
        for name in wanted {
            if !found.iter().any(|(known, _)| *known == name) {
                found.push((name, Vec::new()));
            }
        }
        let mut line = Vec::with_capacity(256);
        while kallsyms.read_until(b'\n', &mut line)? != 0 {
            if let Some((name, module)) = function(&line)
                && let Some((_, locations)) = found.iter_mut().find(|(wanted, _)| wanted.as_bytes() == name)
            {
                locations.push(Location(module.map(|module| String::from_utf8_lossy(module).into_owned())));
            }
            line.clear();
        }
        Ok(Self(found))
    }

    /// Every function of exactly this name; none for a name that was not looked for.
    #[must_use]
    pub fn locations(&self, name: &str) -> &[Location] {
        self.0.iter().find(|(known, _)| *known == name).map_or(&[], |(_, locations)| locations)
    }
}

/// Name and module of a function; `None` for data and for anything that is no such line.
fn function(line: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let space = line.iter().position(|&byte| byte == b' ')?;
    let [kind, b' ', rest @ ..] = line.get(space + 1..)? else { return None };
    if !matches!(kind, b't' | b'T' | b'w' | b'W') {
        return None;
    }
    let rest = rest.strip_suffix(b"\n").unwrap_or(rest);
    let Some(tab) = rest.iter().position(|&byte| byte == b'\t') else { return Some((rest, None)) };
    let module = rest[tab + 1..].strip_prefix(b"[")?.strip_suffix(b"]")?;
    Some((&rest[..tab], Some(module)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutate::survives;

    fn modules(kallsyms: &str, name: &'static str) -> Vec<Option<String>> {
        let symbols = Symbols::read(kallsyms.as_bytes(), [name]).unwrap();
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
    fn a_name_asked_for_twice_is_one_name() {
        let symbols = Symbols::read(&b"0 T tcp_connect\n"[..], ["tcp_connect", "tcp_connect"]).unwrap();
        assert_eq!(symbols.locations("tcp_connect").len(), 1);
        assert_eq!(symbols.locations("never_asked").len(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            Symbols::read(&bytes[..], ["tcp_connect"]).unwrap();
        }

        #[test]
        fn any_printable_lines_are_read(text in "([0-9a-f ]{0,4}[ tT\t\\[\\]a\n]{0,6}){0,40}") {
            Symbols::read(text.as_bytes(), ["a"]).unwrap();
        }
    }

    #[test]
    fn mutated_lists_are_survived() {
        let list = std::fs::read(crate::kernel::fixture::data("6.12").join("kallsyms")).unwrap();
        survives("kallsyms", &[&list], |bytes| drop(Symbols::read(bytes, ["tcp_connect", "nf_ct_resolve_clash"])));
    }
}
