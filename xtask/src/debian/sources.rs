//! The machine's own package sources: the mirror it uses is the mirror we use.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

/// Debian's archive keys, for entries that do not name their own.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite of one mirror.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Source {
    /// Mirror.
    pub(crate) uri: String,
    /// Suite, such as `bookworm-security`.
    pub(crate) suite: String,
    /// File of the keys that sign it, when the entry names one.
    pub(crate) signed_by: Option<String>,
}

impl Source {
    /// The same mirror, another suite.
    fn with_suite(&self, suite: &str) -> Self {
        Self { suite: suite.to_owned(), ..self.clone() }
    }

    /// As a line of a `sources.list`.
    pub(crate) fn line(&self) -> String {
        let keyring = self.signed_by.as_deref().unwrap_or(KEYRING);
        format!("deb [signed-by={keyring}] {} {} main\n", self.uri, self.suite)
    }
}

/// Every suite this machine gets packages from.
#[derive(Clone, Debug)]
pub(crate) struct Sources(Vec<Source>);

impl Sources {
    /// Reads what apt reads.
    pub(crate) fn read() -> Self {
        let mut sources = Vec::new();
        let mut files = vec![Path::new("/etc/apt/sources.list").to_path_buf()];
        let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
        files.extend(parts.map(|entry| entry.path()));
        files.sort();
        for file in files {
            // An unreadable file is one apt would complain about; the others may do.
            let Ok(text) = fs::read_to_string(&file) else { continue };
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("list") => sources.extend(parse_list(&text)),
                Some("sources") => sources.extend(parse_deb822(&text)),
                _ => {}
            }
        }
        Self(sources)
    }

    /// Where `suite` is to be had: the machine's own entry for it, else the mirror it takes its own release from.
    ///
    /// # Errors
    /// There is no Debian mirror among the machine's sources.
    pub(crate) fn of(&self, suite: &str) -> Result<Source> {
        if let Some(own) = self.0.iter().find(|source| source.suite == suite) {
            return Ok(own.clone());
        }
        let security = suite.ends_with("-security");
        let model = self.0.iter().find(|source| {
            RELEASES.iter().any(|release| match source.suite.strip_prefix(release) {
                Some("") => !security,
                Some("-security") => security,
                _ => false,
            })
        });
        let Some(model) = model else {
            bail!(
                "no Debian mirror for {suite} among this machine's package sources: add an entry for {suite} to \
                 /etc/apt/sources.list.d (kernels for the virtual machines are Debian packages)"
            );
        };
        Ok(model.with_suite(suite))
    }
}

/// Releases whose mirror has the other releases too.
const RELEASES: [&str; 8] = ["bullseye", "bookworm", "trixie", "forky", "stable", "testing", "sid", "unstable"];

/// The one-line format of sources.list(5).
fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by=")).map(str::to_owned);
    let mut words = rest.split_whitespace();
    Some(Source { uri: words.next()?.to_owned(), suite: words.next()?.to_owned(), signed_by })
}

/// The deb822 format of sources.list(5): stanzas of fields, separated by empty lines.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut stanza: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(stanza_sources(&stanza));
            stanza.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((field, value)) = line.split_once(':') {
            stanza.push((field.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn stanza_sources(stanza: &[(String, String)]) -> Vec<Source> {
    let field = |name: &str| stanza.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str());
    let words = |name: &str| field(name).unwrap_or("").split_whitespace();
    if field("enabled").is_some_and(|value| value.eq_ignore_ascii_case("no")) || !words("types").any(|t| t == "deb") {
        return Vec::new();
    }
    // A key may stand in the file itself, instead of a path.
    let signed_by = field("signed-by").filter(|value| value.starts_with('/')).map(str::to_owned);
    let mut sources = Vec::new();
    for uri in words("uris") {
        for suite in words("suites") {
            sources.push(Source { uri: uri.to_owned(), suite: suite.to_owned(), signed_by: signed_by.clone() });
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb deb-src
# where it was taken from
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.test/debian-security
Suites:
 bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.test/debian
Suites: trixie

Types: deb-src
URIs: http://src.test/debian
Suites: trixie

Types: deb
URIs: https://other.test/repo
Suites: nodistro
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
";

    const LIST: &str = "\
# deb http://off.test/debian trixie main
deb http://mirror.test/debian bookworm main contrib # ours
deb-src http://mirror.test/debian bookworm main
deb [arch=amd64 signed-by=/keys/a.gpg] https://mirror.test/debian-security bookworm-security main
deb\thttp://archive.test/debian\tbuster main
";

    fn source(uri: &str, suite: &str, signed_by: Option<&str>) -> Source {
        Source { uri: uri.to_owned(), suite: suite.to_owned(), signed_by: signed_by.map(str::to_owned) }
    }

    #[test]
    fn deb822_format() {
        let keyring = Some("/usr/share/keyrings/debian-archive-keyring.gpg");
        assert_eq!(
            parse_deb822(DEB822),
            [
                source("http://mirror.test/debian", "bookworm", keyring),
                source("http://mirror.test/debian", "bookworm-updates", keyring),
                source("http://mirror.test/debian-security", "bookworm-security", None),
                source("https://other.test/repo", "nodistro", None),
            ]
        );
    }

    #[test]
    fn one_line_format() {
        assert_eq!(
            parse_list(LIST),
            [
                source("http://mirror.test/debian", "bookworm", None),
                source("https://mirror.test/debian-security", "bookworm-security", Some("/keys/a.gpg")),
                source("http://archive.test/debian", "buster", None),
            ]
        );
    }

    #[test]
    fn a_suite_is_taken_from_its_own_entry_or_its_kind_of_mirror() {
        let sources = Sources(parse_list(LIST));
        assert_eq!(sources.of("trixie-backports").unwrap().uri, "http://mirror.test/debian");
        assert_eq!(sources.of("bullseye-security").unwrap().uri, "https://mirror.test/debian-security");
        assert_eq!(sources.of("buster").unwrap().uri, "http://archive.test/debian");
        assert_eq!(
            sources.of("trixie-security").unwrap().line(),
            "deb [signed-by=/keys/a.gpg] https://mirror.test/debian-security trixie-security main\n"
        );
    }

    #[test]
    fn another_distribution_is_told_what_is_missing() {
        let sources = Sources(parse_list("deb http://mirror.test/other noble main\n"));
        let error = sources.of("trixie-security").unwrap_err().to_string();
        assert!(error.contains("trixie-security") && error.contains("sources.list.d"), "{error}");
    }
}
