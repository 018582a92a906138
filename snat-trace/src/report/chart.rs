//! Bars: as text, and as SVG that is readable in light, in dark and on paper.

use std::fmt::Write as _;

/// One bar: what stands below it, and what it is of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Bar {
    pub label: String,
    /// From the ground up, one for each series.
    pub values: Vec<u64>,
    /// What is marked beside it.
    pub mark: Option<u64>,
}

impl Bar {
    fn is_empty(&self) -> bool {
        self.values.iter().all(|&value| value == 0)
    }
}

/// A row of bars.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Chart {
    /// What it shows, for those who do not see it too.
    pub title: &'static str,
    /// What the values are of.
    pub series: Vec<&'static str>,
    /// What the marks are of.
    pub marks: Option<&'static str>,
    pub bars: Vec<Bar>,
}

/// Columns of the longest bar of text.
const COLUMNS: u64 = 40;
/// So many empty bars in a row are still shown one by one.
const EMPTY: usize = 3;
/// Characters of the series in text.
const SIGNS: [char; 2] = ['#', '+'];

/// Size of the picture, and of what is around the bars.
const WIDTH: u64 = 720;
const HEIGHT: u64 = 220;
const LEFT: u64 = 52;
const TOP: u64 = 12;
const BOTTOM: u64 = 24;
/// Width of a label's character, rather more than it has.
const CHARACTER: u64 = 7;
/// Labels below the bars, about so many.
const LABELS: usize = 6;

impl Chart {
    fn highest(&self) -> u64 {
        let tops = self.bars.iter().map(|bar| bar.values.iter().sum::<u64>().max(bar.mark.unwrap_or(0)));
        tops.max().unwrap_or(0).max(1)
    }

    /// Lines of text, a bar each. Long rows of bars without anything are one line.
    pub(super) fn lines(&self) -> Vec<String> {
        let highest = self.highest();
        let widest = self.bars.iter().map(|bar| bar.label.chars().count()).max().unwrap_or(0);
        let mut lines = Vec::new();
        for bars in self.bars.chunk_by(|one, next| one.is_empty() && next.is_empty()) {
            if bars.len() > EMPTY {
                lines.push(format!("{:>widest$}  {} steps without any", "...", bars.len()));
                continue;
            }
            for bar in bars {
                let mut line = format!("{:>widest$}  ", bar.label);
                for (&value, sign) in bar.values.iter().zip(SIGNS) {
                    // What there is any of is seen.
                    let length = usize::try_from((value * COLUMNS).div_ceil(highest)).unwrap_or(0);
                    line.extend(std::iter::repeat_n(sign, length));
                }
                let figures: Vec<_> = bar.values.iter().filter(|&&value| value > 0).map(u64::to_string).collect();
                lines.push(format!("{line} {}", figures.join(" + ")).trim_end().to_owned());
            }
        }
        if self.bars.iter().any(|bar| bar.values.iter().skip(1).any(|&value| value > 0)) {
            let keys: Vec<_> = self.series.iter().zip(SIGNS).map(|(series, sign)| format!("{sign} {series}")).collect();
            lines.push(keys.join(", "));
        }
        lines
    }

    /// A picture that takes its colours from the page.
    pub(super) fn svg(&self) -> String {
        let highest = self.highest();
        let (inner_width, inner_height) = (WIDTH - LEFT, HEIGHT - TOP - BOTTOM);
        let count = self.bars.len().max(1) as u64;
        let x = |index: u64| LEFT + index * inner_width / count;
        let height = |value: u64| (value * inner_height).div_ceil(highest);
        let ground = TOP + inner_height;
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n<title>{}</title>\n",
            self.title, self.title
        );
        for value in [0, highest.div_ceil(2), highest] {
            let y = ground - height(value);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y}\" y2=\"{y}\"/><text class=\"axis\" x=\"{}\" y=\"{}\" \
                 text-anchor=\"end\">{value}</text>",
                LEFT - 6,
                y + 4
            );
        }
        for (index, bar) in (0_u64..).zip(&self.bars) {
            let (left, right) = (x(index), x(index + 1));
            let width = (right - left).saturating_sub(if right - left > 6 { 2 } else { 0 }).max(1);
            let mut top = ground;
            for (series, &value) in bar.values.iter().enumerate().filter(|(_, value)| **value > 0) {
                top -= height(value).min(top - TOP);
                let _ = writeln!(
                    svg,
                    "<rect class=\"bar{series}\" x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{}\"><title>{}: {value} {}</title></rect>",
                    height(value),
                    super::html::escaped(&bar.label),
                    self.series.get(series).copied().unwrap_or_default()
                );
            }
            if let Some(mark) = bar.mark {
                let y = ground - height(mark);
                let _ = writeln!(
                    svg,
                    "<line class=\"mark\" x1=\"{left}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\"><title>{}: {mark} counted</title></line>",
                    left + width,
                    super::html::escaped(&bar.label)
                );
            }
        }
        let every = self.bars.len().div_ceil(LABELS).max(1);
        for (index, bar) in (0_u64..).zip(&self.bars).step_by(every) {
            let label = super::html::escaped(&bar.label);
            // One that would leave the picture ends where its bar does.
            let room = WIDTH - x(index);
            let (at, anchor) = match label.chars().count() as u64 * CHARACTER > room {
                true => (x(index + 1), " text-anchor=\"end\""),
                false => (x(index), ""),
            };
            let _ = writeln!(svg, "<text class=\"axis\" x=\"{at}\" y=\"{}\"{anchor}>{label}</text>", HEIGHT - 8);
        }
        svg.push_str("</svg>\n");
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(label: &str, values: &[u64], mark: Option<u64>) -> Bar {
        Bar { label: label.to_owned(), values: values.to_vec(), mark }
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let none = bar("none", &[0, 0], None);
        let mut bars = vec![bar("one", &[1, 0], Some(1)), bar("eighty", &[60, 20], Some(79)), none.clone()];
        bars.extend([
            bar("one", &[0, 1], None),
            none.clone(),
            none.clone(),
            none.clone(),
            none,
            bar("two", &[2, 0], None),
        ]);
        let chart = Chart { title: "Races", series: vec!["dropped", "other"], marks: Some("counted"), bars };
        assert_eq!(
            chart.lines(),
            [
                "   one  # 1",
                &format!("eighty  {}{} 60 + 20", "#".repeat(30), "+".repeat(10)),
                "  none",
                "   one  + 1",
                "   ...  4 steps without any",
                "   two  # 2",
                "# dropped, + other"
            ]
        );
    }

    #[test]
    fn nothing_leaves_the_picture() {
        let bars: Vec<_> = (0..200).map(|value| bar("<&>", &[value, u64::from(u32::MAX)], Some(value))).collect();
        let svg = Chart { title: "Races", series: vec!["dropped", "other"], marks: None, bars }.svg();
        assert!(!svg.contains("<&>") && svg.contains("&lt;&amp;&gt;"));
        for attribute in ["y=\"", "y1=\"", "height=\""] {
            let values =
                svg.split(attribute).skip(1).map(|rest| rest.split('"').next().unwrap().parse::<u64>().unwrap());
            assert!(values.clone().count() > 0 && values.into_iter().all(|value| value <= HEIGHT), "{attribute}");
        }
        // Of every number of bars, the last label ends within the picture.
        for count in 1..=60 {
            let bars: Vec<_> = (0..count).map(|value| bar("08:43:48", &[value], None)).collect();
            let svg = Chart { title: "Races", series: vec!["dropped"], marks: None, bars }.svg();
            let last = svg.rsplit_once("<text class=\"axis\" x=\"").unwrap().1;
            let at: u64 = last.split('"').next().unwrap().parse().unwrap();
            let right = if last.contains("text-anchor=\"end\"") { at } else { at + 8 * CHARACTER };
            assert!(right <= WIDTH, "{count} bars: {right}");
        }
        let empty = Chart { title: "Races", series: vec![], marks: None, bars: vec![] };
        assert!(empty.svg().ends_with("</svg>\n") && empty.lines().is_empty());
    }
}
