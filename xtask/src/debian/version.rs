//! Order of Debian package versions.

use std::cmp::Ordering;

/// Compares two versions as dpkg does (deb-version(7)): epoch, upstream, revision; `~` sorts before everything.
pub(crate) fn compare(left: &str, right: &str) -> Ordering {
    let (left_epoch, left) = epoch(left);
    let (right_epoch, right) = epoch(right);
    let (left_upstream, left_revision) = left.rsplit_once('-').unwrap_or((left, ""));
    let (right_upstream, right_revision) = right.rsplit_once('-').unwrap_or((right, ""));
    left_epoch
        .cmp(&right_epoch)
        .then_with(|| compare_part(left_upstream, right_upstream))
        .then_with(|| compare_part(left_revision, right_revision))
}

fn epoch(version: &str) -> (u64, &str) {
    version.split_once(':').map_or((0, version), |(epoch, rest)| (epoch.parse().unwrap_or(0), rest))
}

/// Alternates between a run of other characters and a number, as dpkg's `verrevcmp`.
fn compare_part(mut left: &str, mut right: &str) -> Ordering {
    while !left.is_empty() || !right.is_empty() {
        let (left_text, left_rest) = split_at_digit(left, true);
        let (right_text, right_rest) = split_at_digit(right, true);
        let (left_number, left_rest) = split_at_digit(left_rest, false);
        let (right_number, right_rest) = split_at_digit(right_rest, false);
        let order = compare_text(left_text, right_text).then_with(|| number(left_number).cmp(&number(right_number)));
        if order.is_ne() {
            return order;
        }
        (left, right) = (left_rest, right_rest);
    }
    Ordering::Equal
}

fn split_at_digit(text: &str, digit: bool) -> (&str, &str) {
    text.split_at(text.find(|c: char| c.is_ascii_digit() == digit).unwrap_or(text.len()))
}

fn number(digits: &str) -> u64 {
    digits.parse().unwrap_or(0)
}

fn compare_text(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.chars(), right.chars());
    loop {
        let (a, b) = (left.next(), right.next());
        let order = weight(a).cmp(&weight(b));
        if order.is_ne() || a.is_none() {
            return order;
        }
    }
}

/// `~` before the end of the text, the end before letters, letters before everything else.
fn weight(c: Option<char>) -> (u8, u32) {
    match c {
        Some('~') => (0, 0),
        None => (1, 0),
        Some(c) if c.is_ascii_alphabetic() => (2, u32::from(c)),
        Some(c) => (3, u32::from(c)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each is older than the next.
    const ASCENDING: [&[&str]; 4] = [
        &["5.10.218-1", "5.10.251-5", "6.1.170-3", "6.1.176-1", "6.1.192-1", "6.1.192-2", "6.12.74-2~bpo12+1"],
        &["6.12.100-1~deb12u1", "6.12.100-1", "6.12.117-1~deb12u1", "6.12.117-1", "7.3~rc7-1~exp1", "7.3.4-1~bpo13+1"],
        &["1.85.0+dfsg3-1", "1.95.0", "1.96.0+dfsg1-1~deb12u2", "1:0.1-1"],
        &["1.0~~", "1.0~", "1.0", "1.0a", "1.0+", "1.0.1"],
    ];

    #[test]
    fn order_is_dpkgs() {
        for row in ASCENDING {
            for (i, left) in row.iter().enumerate() {
                for (j, right) in row.iter().enumerate() {
                    assert_eq!(compare(left, right), i.cmp(&j), "{left} and {right}");
                }
            }
        }
    }

    #[test]
    fn dpkg_agrees() {
        for row in ASCENDING {
            for pair in row.windows(2) {
                let Ok(status) =
                    std::process::Command::new("dpkg").args(["--compare-versions", pair[0], "lt", pair[1]]).status()
                else {
                    println!("skipped: no dpkg here");
                    return;
                };
                assert!(status.success(), "dpkg: {} is not older than {}", pair[0], pair[1]);
            }
        }
    }
}
