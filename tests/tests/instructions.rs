//! What the BPF programs cost, in instructions: a gate that asks no clock and no kernel.
//!
//! The tables say the present numbers. A program may grow by a twentieth, as compilers differ; who changes one writes the
//! new number down. The figures are for `docs/COST.md` too: `cargo xtask bench` reads them.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use snat_trace::probe::OBJECT;
use snat_trace_common::Counter;
use snat_trace_tests::instructions::{Executed, Packet, Programs, Scene};
use snat_trace_tests::measure::figure::Figure;

/// The longest path through each program, and whether it has a loop, each turn of which comes on top.
const LONGEST: [(&str, u32, bool); 19] = [
    ("allocate_begins", 57, false),
    ("allocate_ends", 931, true),
    ("allocation", 647, true),
    ("cgroup_removed", 117, true),
    ("check_insert_begins", 47, false),
    ("check_insert_ends", 335, false),
    ("clash", 1373, true),
    ("confirm_begins", 66, false),
    ("confirm_ends", 1098, true),
    ("early_drop_ends", 17, false),
    ("insertion", 14, false),
    ("insertion_at_confirm", 24, false),
    ("note_process", 286, true),
    ("owner_ipv4", 319, false),
    ("owner_ipv6", 347, false),
    ("owner_raw", 384, false),
    ("owner_raw6", 389, false),
    ("owner_tcp", 332, false),
    ("verdict", 71, false),
];

/// What the programs execute when a socket for datagrams over IPv6 is bound, before all others.
const BOUND: &[Executed] = &[("owner_ipv6", 21)];

/// What each program executes for a new connection of a process that has sent before, at full detail. `allocation` runs twice.
const NEW_CONNECTION: [(Packet, &[Executed]); 9] = [
    (Packet::Udp, &[("allocation", 7), ("allocation", 282), ("insertion", 14)]),
    (Packet::Udp6, &[("allocation", 7), ("allocation", 310), ("insertion", 14)]),
    (Packet::Connected, &[("owner_ipv4", 145), ("allocation", 7), ("allocation", 121), ("insertion", 14)]),
    (Packet::Unbound, &[("allocation", 7), ("allocation", 327), ("insertion", 14)]),
    (Packet::Unbound6, &[("allocation", 7), ("allocation", 372), ("insertion", 14)]),
    (Packet::Tcp, &[("owner_tcp", 132), ("allocation", 7), ("allocation", 71), ("insertion", 14)]),
    (Packet::Tcp6, &[("owner_tcp", 156), ("allocation", 7), ("allocation", 71), ("insertion", 14)]),
    (Packet::Ping, &[("owner_raw", 202), ("allocation", 7), ("allocation", 71), ("insertion", 14)]),
    (Packet::Ping6, &[("owner_raw6", 207), ("allocation", 7), ("allocation", 71), ("insertion", 14)]),
];

/// What comes on top for the first packet of a process, which is noted with all it runs.
const NEW_PROCESS: u32 = 379;

/// What a new connection is to execute fewer than.
const TARGET: u32 = 400;

/// With the room that compilers need.
fn budget(number: u32) -> u32 {
    number + number / 20
}

/// On a line of its own, whatever the test's runner has begun to print.
fn tell(figure: &Figure) -> Result<()> {
    println!();
    figure.tell()
}

/// The same programs, in the same order, none over its budget.
#[track_caller]
fn hold(what: &str, present: &[Executed], table: &[Executed]) {
    let sum = |all: &[Executed]| all.iter().map(|(_, number)| number).sum::<u32>();
    println!("{what}: {} instructions, {present:?}", sum(present));
    assert!(
        present.iter().map(|(program, _)| program).eq(table.iter().map(|(program, _)| program)),
        "{what} ran {present:?}, and the table says {table:?}"
    );
    for ((program, number), (_, known)) in present.iter().zip(table) {
        assert!(*number <= budget(*known), "{program} has grown: {number} instructions for {what}, and it was {known}");
    }
}

#[test]
fn no_program_has_a_longer_path_than_it_had() -> Result<()> {
    let programs = Programs::parse(OBJECT)?;
    let names: BTreeSet<&str> = programs.names().collect();
    assert_eq!(names, LONGEST.iter().map(|(name, ..)| *name).collect(), "programs of the object, and of the table");
    for (name, known, loops) in LONGEST {
        let longest = programs.longest_path(name)?;
        println!("{name}: {longest:?}");
        let number = longest.instructions;
        tell(&Figure::Instructions { program: name.to_owned(), longest: number })?;
        assert!(
            number <= budget(known),
            "{name} has grown: its longest path has {number} instructions, and it had {known}"
        );
        assert_eq!(longest.has_loop, loops, "whether {name} has a loop");
    }
    Ok(())
}

#[test]
fn a_new_connection_costs_what_it_did() -> Result<()> {
    let programs = Programs::in_full()?;
    for (packet, table) in NEW_CONNECTION {
        let mut scene = Scene::new(&programs)?;
        let sender = scene.sender(100)?;
        scene.send(sender, packet, 1000)?;
        scene.translate()?;
        let present = [scene.send(sender, packet, 1001)?, scene.translate()?].concat();
        hold(&format!("a new {packet:?}"), &present, table);
        let sum: u32 = present.iter().map(|(_, number)| number).sum();
        tell(&Figure::Executed { connection: spoken(packet), instructions: sum })?;
        assert!(sum < TARGET, "a new {packet:?} executes {sum} instructions");
        // It is the way of one that succeeds.
        assert_eq!((scene.entries("OWNERS")?, scene.entries("PROCESSES")?, scene.entries("ALLOCATIONS")?), (2, 1, 2));
        for counter in [Counter::OwnerUnreadable, Counter::OwnerNotKept, Counter::AllocationNotKept] {
            assert_eq!(scene.counted(counter)?, 0, "{counter:?} of a new {packet:?}");
        }
        assert_eq!(scene.counted(Counter::Connection)?, 2);
    }
    Ok(())
}

/// For the document.
fn spoken(packet: Packet) -> &'static str {
    match packet {
        Packet::Udp => "UDP, of a socket bound to an address and a port",
        Packet::Udp6 => "UDP over IPv6, the same",
        Packet::Connected => "UDP, of a socket that was connected",
        Packet::Unbound => "UDP, of a socket bound to a port: the flows of this document",
        Packet::Unbound6 => "UDP over IPv6, the same",
        Packet::Tcp => "TCP",
        Packet::Tcp6 => "TCP over IPv6",
        Packet::Ping => "ICMP",
        Packet::Ping6 => "ICMP over IPv6",
    }
}

#[test]
fn a_socket_that_is_bound_costs_what_it_did() -> Result<()> {
    let programs = Programs::in_full()?;
    let mut scene = Scene::new(&programs)?;
    let present = scene.bind(1000)?;
    hold("a socket that is bound", &present, BOUND);
    let instructions = present.iter().map(|(_, number)| number).sum();
    tell(&Figure::Bound { instructions })?;
    assert_eq!(scene.entries("OWNERS")?, 0);
    Ok(())
}

#[test]
fn a_new_process_costs_what_it_did() -> Result<()> {
    let programs = Programs::in_full()?;
    let mut scene = Scene::new(&programs)?;
    let sender = scene.sender(100)?;
    let mut sum =
        |port| Ok::<_, anyhow::Error>(scene.send(sender, Packet::Tcp, port)?.iter().map(|(_, n)| n).sum::<u32>());
    let (first, second) = (sum(1000)?, sum(1001)?);
    hold("a new process", &[("note_process", first - second)], &[("note_process", NEW_PROCESS)]);
    assert_eq!(scene.entries("PROCESSES")?, 1);
    Ok(())
}

#[test]
fn what_is_executed_is_no_longer_than_the_longest_path() -> Result<()> {
    let (built, programs) = (Programs::parse(OBJECT)?, Programs::in_full()?);
    let mut scene = Scene::new(&programs)?;
    let sender = scene.sender(100)?;
    scene.send(sender, Packet::Tcp, 1000)?;
    for (packet, _) in NEW_CONNECTION {
        for port in [1001, 1001] {
            for (program, number) in [scene.send(sender, packet, port)?, scene.translate()?].concat() {
                let longest = built.longest_path(program).context("a program that ran")?.instructions;
                assert!(number <= longest, "{program} executed {number} instructions, its longest path has {longest}");
            }
        }
    }
    Ok(())
}
