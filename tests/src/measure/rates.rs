//! How much traffic gets through the node, watched and not: each way of watching between two stretches of nothing.

use std::time::Duration;

use anyhow::Result;

use super::figure::{Figure, Traffic};
use super::generator::{Amount, Generator, Sent};
use super::{Effort, ways};
use crate::statistics::{interval, mean};
use crate::ways::Way;

/// How often each way has its turn.
const TURNS: usize = 16;
/// Where in a turn the way that should cost nothing comes once more: it takes many pairs to tell that.
const ONCE_MORE: [usize; 4] = [2, 4, 6, 8];
/// One slice of one kind of traffic, and how many of each kind a stretch has, in turns: what else the machine does comes and
/// goes, and is to meet all kinds alike.
const SLICE: Duration = Duration::from_millis(50);
const SLICES: usize = 10;
/// The same before the first: an emulator translates code that is new to it, and the kernel tidies up, after attaching and
/// detaching.
const WARM_UP: Duration = Duration::from_millis(300);

/// All kinds of traffic in one go, in the order of [`Traffic::ALL`], each half a second.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    way: Way,
    rates: [f64; Traffic::ALL.len()],
}

/// Prints the rates of every way and kind of traffic.
pub(super) fn measure(effort: Effort) -> Result<()> {
    let (turns, slices) = (effort.of(TURNS, 1), effort.of(SLICES, 1));
    let mut generator = Generator::new()?;
    let ways = ways();
    let mut in_turn = ways.clone();
    for place in ONCE_MORE {
        if place <= in_turn.len() {
            in_turn.insert(place, Way::Minimal);
        }
    }
    let mut stretches = Vec::new();
    let mut watch = |way| stretch(&mut generator, way, slices).map(|stretch| stretches.push(stretch));
    let all = (0..turns).flat_map(|turn| in_turn.iter().cycle().skip(turn).take(in_turn.len()));
    let ended = watch(Way::Nothing)
        .and_then(|()| all.copied().try_for_each(|way| watch(way).and_then(|()| watch(Way::Nothing))));
    // Of a run that was cut short there is something to tell too.
    figures(&stretches, &ways).iter().try_for_each(Figure::tell)?;
    ended
}

fn stretch(generator: &mut Generator, way: Way, slices: usize) -> Result<Stretch> {
    // Before anybody watches: what is told of entries that go is no matter of new connections.
    generator.flush()?;
    let attached = way.attach(generator.node())?;
    for traffic in Traffic::ALL {
        generator.run(traffic, Amount::For(WARM_UP))?;
    }
    let mut sent = [Sent::default(); Traffic::ALL.len()];
    for _ in 0..slices {
        for (sent, traffic) in sent.iter_mut().zip(Traffic::ALL) {
            *sent += generator.run(traffic, Amount::For(SLICE))?;
        }
    }
    attached.end()?;
    Ok(Stretch { way, rates: sent.map(Sent::per_second) })
}

/// Of stretches of which every other is one of nothing, the first and the last among them.
fn figures(stretches: &[Stretch], ways: &[Way]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (index, traffic) in Traffic::ALL.into_iter().enumerate() {
        let rates: Vec<(Way, f64)> = stretches.iter().map(|stretch| (stretch.way, stretch.rates[index])).collect();
        let bare: Vec<(Way, f64)> = rates.iter().step_by(2).copied().collect();
        figures.extend(figure(traffic, Way::Nothing, &bare));
        figures.extend(ways.iter().filter_map(|way| figure(traffic, *way, &rates)));
    }
    figures
}

/// Of each rate of `way`, and its ratio to the mean of those before and after it; nothing where there is none with both.
fn figure(traffic: Traffic, way: Way, rates: &[(Way, f64)]) -> Option<Figure> {
    let (all, ratios): (Vec<f64>, Vec<f64>) = rates
        .windows(3)
        .filter(|triple| triple[1].0 == way)
        .map(|triple| (triple[1].1, (triple[1].1 / f64::midpoint(triple[0].1, triple[2].1)).ln()))
        .unzip();
    // As logarithms, where twice as fast and half as fast are as far from the same: their mean is not drawn upwards by a machine
    // that swings.
    let ratio = interval(&ratios).map(f64::exp);
    let figure = Figure::Rate { traffic, way: way.name(), pairs: all.len(), per_second: mean(&all), ratio };
    (!all.is_empty()).then_some(figure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_swings_draws_no_ratio_upwards() {
        let rates = [100.0, 200.0, 100.0, 50.0, 100.0].map(|rate| (Way::Full, rate));
        let Some(Figure::Rate { ratio: [mean, low, high], .. }) = figure(Traffic::UdpFlows, Way::Full, &rates) else {
            panic!("no figure");
        };
        // 2, 100/125 and 1/2, about which a mean of themselves would say 1.1.
        assert!((mean - 0.8f64.cbrt()).abs() < 1e-9 && 0.0 < low && low < mean && mean < high, "{low} {mean} {high}");
    }

    #[test]
    fn a_rate_is_held_against_its_neighbours() {
        let stretch = |way, rate: f64| Stretch { way, rates: [rate, 2.0 * rate, 100.0 * rate] };
        // The machine gets slower all the time, which is in no ratio.
        let stretches = [
            stretch(Way::Nothing, 100.0),
            stretch(Way::Full, 0.8 * 90.0),
            stretch(Way::Nothing, 80.0),
            stretch(Way::Conntrack, 0.5 * 70.0),
            stretch(Way::Nothing, 60.0),
            stretch(Way::Full, 0.8 * 50.0),
            stretch(Way::Nothing, 40.0),
        ];
        let figures = figures(&stretches, &[Way::Full, Way::Conntrack]);
        assert_eq!(figures.len(), 9);
        let of = |index: usize| match &figures[index] {
            Figure::Rate { traffic, way, pairs, per_second, ratio } => (*traffic, *way, *pairs, *per_second, ratio[0]),
            other => panic!("{other:?}"),
        };
        let close = |left: f64, right: f64| (left - right).abs() < 1e-9;
        let (traffic, way, pairs, per_second, ratio) = of(0);
        assert!((traffic, way, pairs) == (Traffic::UdpFlows, "nothing", 2) && close(per_second, 70.0));
        assert!(close(ratio, 1.0), "{ratio}");
        let (traffic, way, pairs, per_second, ratio) = of(4);
        assert!((traffic, way, pairs) == (Traffic::TcpFlows, "snat-trace full", 2) && close(per_second, 112.0));
        assert!(close(ratio, 0.8), "{ratio}");
        let (traffic, way, pairs, _, ratio) = of(8);
        assert!((traffic, way, pairs) == (Traffic::UdpDatagrams, "conntrack -E", 1) && close(ratio, 0.5));
    }
}
