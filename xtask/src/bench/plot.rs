//! Cost against what grows, as pictures that need nothing to be looked at: two panels side by side, one of the path of a packet,
//! one of user space.

use std::fmt::Write as _;

use super::targets::{Point, spoken};
use super::words::{grouped, short};

/// A panel's drawing area, and what is around it: pixels.
const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 180.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 48.0;

/// Values further apart than this are set by their logarithms.
const WIDE: f64 = 20.0;

/// One curve.
struct Panel<'a> {
    title: &'a str,
    points: Vec<(f64, f64)>,
}

/// The picture of one axis.
pub(super) fn svg(axis: &str, points: &[Point]) -> String {
    let panels = [
        Panel {
            title: "BPF programs, ns per connection",
            points: points.iter().map(|point| (point.value, point.programs)).collect(),
        },
        Panel {
            title: "user side, CPU ms a second",
            points: points.iter().map(|point| (point.value, point.user)).collect(),
        },
    ];
    let (width, height) = (2.0 * (LEFT + WIDTH) + 24.0, TOP + HEIGHT + BOTTOM);
    let axis = spoken(axis);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>cost against {axis}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (number, panel) in panels.iter().enumerate() {
        let left = LEFT + if number == 0 { 0.0 } else { LEFT + WIDTH };
        _ = writeln!(svg, "<g transform=\"translate({left:.0} {TOP:.0})\">");
        panel.draw(&axis, &mut svg);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

impl Panel<'_> {
    fn draw(&self, axis: &str, svg: &mut String) {
        text(svg, (0.0, -16.0), "start", "#222222", self.title);
        text(svg, (WIDTH / 2.0, HEIGHT + 38.0), "middle", "#222222", axis);
        let top = ceiling(self.points.iter().map(|&(_, y)| y).fold(0.0, f64::max));
        let height = |y: f64| HEIGHT - y / top * HEIGHT;
        for step in 0..=4 {
            let y = top * f64::from(step) / 4.0;
            let at = height(y);
            _ = writeln!(svg, "<path d=\"M0 {at:.1}H{WIDTH:.0}\" stroke=\"#dddddd\"/>");
            text(svg, (-6.0, at + 4.0), "end", "#555555", &short(y));
        }
        let placed: Vec<(f64, f64)> = self.points.iter().map(|&(x, y)| (self.place(x), height(y))).collect();
        let path = placed.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ");
        _ = writeln!(svg, "<polyline points=\"{path}\" fill=\"none\" stroke=\"#1f6feb\" stroke-width=\"2\"/>");
        // Where the last label ends: those that would run into it are left out.
        let mut free = f64::MIN;
        for (&(x, y), &(across, down)) in self.points.iter().zip(&placed) {
            _ = writeln!(
                svg,
                "<circle cx=\"{across:.1}\" cy=\"{down:.1}\" r=\"3\" fill=\"#1f6feb\"><title>{}: {}</title></circle>",
                grouped(x),
                short(y)
            );
            let label = grouped(x);
            let half = 3.5 * label.len() as f64;
            if across - half > free {
                text(svg, (across, HEIGHT + 18.0), "middle", "#555555", &label);
                free = across + half + 4.0;
            }
        }
    }

    /// Where a value lies on the axis.
    fn place(&self, value: f64) -> f64 {
        let least = self.points.iter().map(|&(x, _)| x).fold(f64::INFINITY, f64::min);
        let most = self.points.iter().map(|&(x, _)| x).fold(f64::NEG_INFINITY, f64::max);
        let scaled = |value: f64| if most > WIDE * least { value.ln_1p() } else { value };
        let span = scaled(most) - scaled(least);
        if span > 0.0 { (scaled(value) - scaled(least)) / span * WIDTH } else { WIDTH / 2.0 }
    }
}

/// The next of 1, 2, 2.5, 5 and 10 times a power of ten.
fn ceiling(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(most.log10().floor());
    [1.0, 2.0, 2.5, 5.0].map(|step| step * power).into_iter().find(|&step| step >= most).unwrap_or(10.0 * power)
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, colour: &str, words: &str) {
    _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::super::figure::tests::cost;
    use super::*;

    fn panel(points: &[(f64, f64)]) -> Panel<'_> {
        Panel { title: "", points: points.to_vec() }
    }

    #[test]
    fn far_values_by_their_logarithms_and_near_ones_as_they_are() {
        let near = panel(&[(1000.0, 1.0), (2000.0, 1.0), (5000.0, 1.0)]);
        assert_eq!([1000.0, 2000.0, 5000.0].map(|value| near.place(value)), [0.0, WIDTH / 4.0, WIDTH]);
        let far = panel(&[(0.0, 1.0), (99.0, 1.0), (9999.0, 1.0)]);
        assert_eq!([0.0, 99.0, 9999.0].map(|value| far.place(value).round()), [0.0, WIDTH / 2.0, WIDTH]);
        assert_eq!(panel(&[(5.0, 1.0)]).place(5.0), WIDTH / 2.0);
    }

    #[test]
    fn a_scale_ends_where_a_reader_expects() {
        assert_eq!([0.0, 0.7, 1.0, 1.2, 2.2, 4200.0, 7500.0].map(ceiling), [1.0, 1.0, 1.0, 2.0, 2.5, 5000.0, 10_000.0]);
    }

    #[test]
    fn every_point_is_in_both_panels() {
        let cost = cost();
        let picture = svg("cgroups", &cost.growth("cgroups"));
        assert_eq!(picture.matches("<circle").count(), 6);
        for part in ["<title>10 000: 7 500</title>", "<title>1: 5 000</title>", ">cgroups<", ">10 000<"] {
            assert!(picture.contains(part), "no {part} in\n{picture}");
        }
    }
}
