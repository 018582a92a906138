//! Scenarios of snat-trace against real kernels: each runs the real binary and holds what it says against what others
//! know.

pub mod audit;
pub mod churn;
pub mod classes;
pub mod collisions;
pub mod compared;
pub mod cost;
pub mod crosscheck;
pub mod evidence;
pub mod failures;
pub mod fallback;
pub mod instructions;
pub mod kfree_skb;
pub mod links;
pub mod live;
pub mod lives;
pub mod load;
pub mod loading;
pub mod measure;
pub mod modules;
pub mod node;
pub mod observe;
pub mod output;
pub mod owners;
pub mod places;
pub mod process;
pub mod races;
pub mod refusals;
pub mod scenario;
pub mod senders;
pub mod statistics;
pub mod storm;
pub mod tmux;
pub mod verdicts;
pub mod verifier;
pub mod ways;

use scenario::Scenario;

/// Every scenario, by group, in the order they run.
pub const GROUPS: &[&[Scenario]] = &[
    verifier::SCENARIOS,
    races::SCENARIOS,
    verdicts::SCENARIOS,
    collisions::SCENARIOS,
    classes::SCENARIOS,
    failures::SCENARIOS,
    refusals::SCENARIOS,
    fallback::SCENARIOS,
    places::SCENARIOS,
    evidence::SCENARIOS,
    compared::SCENARIOS,
    live::SCENARIOS,
    owners::SCENARIOS,
    senders::SCENARIOS,
    links::SCENARIOS,
    lives::SCENARIOS,
    load::SCENARIOS,
    cost::SCENARIOS,
    churn::SCENARIOS,
    audit::SCENARIOS,
    crosscheck::SCENARIOS,
    crosscheck::LAST,
    loading::SCENARIOS,
    modules::SCENARIOS,
    observe::SCENARIOS,
];

/// Every scenario.
pub fn scenarios() -> impl Iterator<Item = &'static Scenario> {
    GROUPS.iter().copied().flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn a_name_is_a_row_of_its_own() {
        let mut names = HashSet::new();
        for scenario in super::scenarios() {
            assert!(names.insert(scenario.name), "{} stands there twice", scenario.name);
        }
    }
}
