//! Everything known of one race.

use std::fmt;

use super::{clock_time, duration};
use crate::output::escape;
use crate::race::event::{Flow, NatRule, Race};
use crate::race::time::WallClock;

/// The block below a race's line.
pub(super) struct Block<'a> {
    pub(super) race: &'a Race,
    pub(super) clock: WallClock,
    pub(super) zone: &'a jiff::tz::TimeZone,
}

impl fmt::Display for Block<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let race = self.race;
        let verdict = race.verdict.map_or("unknown", |verdict| verdict.name());
        write!(f, "    class      {}, {verdict}", race.class)?;
        if let Some(netns) = race.netns {
            write!(f, ", netns {}", netns.0)?;
        }
        writeln!(f, ", zone {}", race.zone)?;

        let contested = race.contested.ends();
        write!(f, "    contested  {} {} > {}", race.protocol, contested.source, contested.destination)?;
        match race.nat {
            None => writeln!(f)?,
            Some(NatRule { random, ports }) => {
                let random = if random { "random" } else { "no random flag" };
                match ports {
                    Some((min, max)) => writeln!(f, "; rule: ports {min}-{max}, {random}")?,
                    None => writeln!(f, "; rule: any port, {random}")?,
                }
            }
        }
        self.flow(f, "loser", &race.loser)?;
        self.flow(f, "winner", &race.winner)?;
        if let Some(overlap) = race.overlap {
            writeln!(f, "    overlap    {}, from the later allocation to the winner's insert", duration(overlap))?;
        }
        if !race.packet.is_empty() {
            write!(f, "    packet     ")?;
            race.packet.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Block<'_> {
    fn flow(&self, f: &mut fmt::Formatter<'_>, side: &str, flow: &Flow) -> fmt::Result {
        let ends = flow.original.ends();
        writeln!(f, "    {side:<9}  {} > {}", ends.source, ends.destination)?;
        let time = |time| {
            let wall = self.clock.wall(time);
            format!("{}{:06}", clock_time(wall, self.zone), wall.subsec_nanosecond() % 1_000_000)
        };
        let mut facts = Vec::new();
        if let Some(allocated) = flow.allocated {
            facts.push(format!("asked for a port {}", time(allocated)));
        }
        if let Some(cpu) = flow.cpu {
            facts.push(format!("CPU {cpu}"));
        }
        if let Some(inserted) = flow.inserted {
            facts.push(format!("inserted {}", time(inserted)));
        }
        if !facts.is_empty() {
            writeln!(f, "               {}", facts.join(", "))?;
        }
        let Some(owner) = &flow.owner else {
            return writeln!(f, "               owner unknown");
        };
        write!(f, "               {}[{}]", escape(&owner.comm), owner.pid)?;
        if let Some(tid) = owner.tid.filter(|&tid| tid != owner.pid) {
            write!(f, " thread {tid}")?;
        }
        if let Some(netns) = owner.netns {
            write!(f, ", netns {}", netns.0)?;
        }
        match (&owner.cgroup, owner.cgroup_id) {
            (Some(path), _) => write!(f, ", cgroup {}", escape(path))?,
            (None, Some(id)) => write!(f, ", cgroup id {id} (gone)")?,
            (None, None) => {}
        }
        if let Some(container) = &owner.container {
            write!(f, ", {} {}", container.runtime, escape(&container.id))?;
        }
        writeln!(f, " (by {})", owner.source.name())
    }
}
