//! Numbers as they are written.

/// A ratio with its interval.
pub(super) fn ratio([mean, low, high]: [f64; 3]) -> String {
    format!("{mean:.3} ({low:.3} to {high:.3})")
}

/// Rounded to a whole number, thousands apart: `2 000 000`.
pub(super) fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = String::from(if number <= -0.5 { "-" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// With as many digits as tell something: `0.25`, `12.5`, `6 213`.
pub(super) fn short(number: f64) -> String {
    match number.abs() {
        0.0 => "0".to_owned(),
        size if size < 0.01 => format!("{number:.4}"),
        size if size < 10.0 => format!("{number:.2}"),
        size if size < 100.0 => format!("{number:.1}"),
        _ => grouped(number),
    }
}

/// A power of two: `4 KiB`, `64 MiB`.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(
            [0.0, 999.0, 1000.4, 1_234_567.0, -12_345.0].map(grouped),
            ["0", "999", "1 000", "1 234 567", "-12 345"]
        );
        let short = [0.0, 0.001_23, 0.25, 1.0, 12.34, 6213.4].map(short);
        assert_eq!(short, ["0", "0.0012", "0.25", "1.00", "12.3", "6 213"]);
        assert_eq!([100, 4096, 65_536, 1 << 26].map(size), ["100 B", "4 KiB", "64 KiB", "64 MiB"]);
        assert_eq!(ratio([0.9534, 0.94, 1.0]), "0.953 (0.940 to 1.000)");
    }
}
