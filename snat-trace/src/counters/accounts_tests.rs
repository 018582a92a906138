//! Real network namespaces and real counters, as root.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use super::super::netns::tests::{alone, new_netns};
use super::*;
use crate::skipped::skipped;

/// Two ends of a veth pair, and a rule that leaves every flow to port 53 the same single source port.
const ONE_PORT: &str = "
    ip link set lo up && ip link add va type veth peer name vb && ip addr add 192.0.2.1/24 dev va &&
    ip link set vb up && ip link set va up && ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev va &&
    nft 'add table ip t; add chain ip t p { type nat hook postrouting priority 100; };
         add rule ip t p udp dport 53 snat to 192.0.2.1:5000'";

/// A namespace in which the first flow is sent and each further one fails to be inserted; `None` says why it skips.
fn one_port() -> Option<OwnedFd> {
    if Command::new("nft").arg("--version").stdout(Stdio::null()).status().is_err() {
        skipped("nft is not installed");
        return None;
    }
    let fd = new_netns();
    let made = netns::in_netns(fd.as_fd(), || Command::new("sh").args(["-c", ONE_PORT]).status());
    assert!(made.unwrap().unwrap().success());
    Some(fd)
}

/// Sends one datagram of `count` new flows each.
fn send(fd: &OwnedFd, count: usize) {
    let sent = netns::in_netns(fd.as_fd(), || {
        for _ in 0..count {
            // The loser's own send fails with EPERM; the counters are what this is about.
            let _ = UdpSocket::bind("192.0.2.1:0").unwrap().send_to(b"x", "192.0.2.9:53");
        }
    });
    sent.unwrap();
}

fn inum(fd: &OwnedFd) -> NetnsInum {
    Netns::of(fd.as_fd()).unwrap().inum
}

fn of(deltas: &[Delta], inum: NetnsInum) -> Delta {
    deltas.iter().find(|delta| delta.netns == inum).cloned().unwrap()
}

fn at(nanoseconds: u64) -> KernelTime {
    KernelTime::from_record(nanoseconds).unwrap()
}

fn sampled(cookie: Option<u64>, reading: Reading) -> Sampled {
    Sampled { cookie, reading, taken: Taken { began: at(1), ended: at(2) } }
}

fn failed_and_dropped(delta: &Delta) -> (Option<u64>, Option<u64>) {
    let counters = delta.counters.as_ref().unwrap();
    (counters.insert_failed, counters.drop)
}

#[test]
fn only_what_happens_after_opening_counts() {
    let Some(_alone) = alone() else { return };
    let Some(fd) = one_port() else { return };
    send(&fd, 4);
    let (early, inum) = (KernelTime::now(), inum(&fd));
    let mut accounts = Accounts::open_with(&[fd.as_fd()]).unwrap();
    let opened = KernelTime::now();
    send(&fd, 2);
    accounts.sample([inum]).unwrap();
    send(&fd, 3);
    let windows = accounts.windows();
    let sent = KernelTime::now();
    let closed = accounts.close([]).unwrap();
    let delta = of(&closed.deltas, inum);
    assert_eq!(failed_and_dropped(&delta), (Some(5), Some(5)));
    assert_eq!(delta.caveat, None);

    let window = |windows: &Windows| windows.of(inum);
    let Window { from: Some(first), to: None } = window(&windows) else { panic!("{windows:?}") };
    let Window { from, to: Some(last) } = window(&closed.windows) else { panic!("{closed:?}") };
    assert_eq!(from, Some(first));
    let times = [early, first.began, first.ended, opened, sent, last.began, last.ended, KernelTime::now()];
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn both_sources_agree() {
    let Some(_alone) = alone() else { return };
    let Some(fd) = one_port() else { return };
    send(&fd, 3);
    let (ctnetlink, procfs) = netns::in_netns(fd.as_fd(), || (netlink::read(), procfs::read())).unwrap();
    let ctnetlink = ctnetlink.unwrap();
    assert_eq!(delta(&Reading::new(), &ctnetlink).insert_failed, Some(2));
    match procfs {
        Ok(procfs) => assert_eq!(procfs, ctnetlink),
        Err(error) => eprintln!("only one source here: {error}"),
    }
}

#[test]
fn a_namespace_made_later_counts_from_zero() {
    let Some(_alone) = alone() else { return };
    let mut accounts = Accounts::open().unwrap();
    let Some(fd) = one_port() else { return };
    send(&fd, 3);
    accounts.sample([inum(&fd)]).unwrap();
    assert_eq!(failed_and_dropped(&of(&accounts.close([]).unwrap().deltas, inum(&fd))), (Some(2), Some(2)));
}

#[test]
fn a_namespace_that_goes_keeps_its_last_figures() {
    let Some(_alone) = alone() else { return };
    let Some(fd) = one_port() else { return };
    let inum = inum(&fd);
    let mut accounts = Accounts::open_with(&[fd.as_fd()]).unwrap();
    send(&fd, 3);
    accounts.sample([inum]).unwrap();
    assert!(accounts.involved());
    drop(fd);
    // Found to be gone, it is not looked for every second from then on.
    accounts.sample([]).unwrap();
    assert!(!accounts.involved());
    // Nothing of ours may keep it alive; its number may go to another test's namespace, so ask for what was held.
    let closed = accounts.close([]).unwrap();
    let delta = of(&closed.deltas, inum);
    assert_eq!(failed_and_dropped(&delta), (Some(2), Some(2)));
    assert!(delta.caveat.is_some());
    assert!(closed.ended >= 1);
}

#[test]
fn another_namespace_with_the_same_number_starts_at_zero() {
    let netns = Netns::current().unwrap();
    let with = |insert_failed| {
        let tally = Tally { insert_failed: Some(insert_failed), ..Tally::default() };
        let counters = super::super::figures::CpuCounters { tally, ..Default::default() };
        Reading::from([(0, counters)])
    };
    let mut accounts = Accounts::default();
    accounts.record(&netns, Ok(sampled(Some(1), with(10))));
    accounts.record(&netns, Ok(sampled(Some(1), with(12))));
    accounts.record(&netns, Ok(sampled(Some(2), with(13))));
    let watched = &accounts.watched[&netns.inum];
    assert_eq!(watched.counted.as_ref().unwrap().sum.insert_failed, Some(12 + 13));
    assert_eq!((watched.caveat(), accounts.replaced), (Some(Caveat::Restarted), 1));
    // Without cookies, going back tells.
    accounts.record(&netns, Ok(sampled(None, with(1))));
    assert_eq!(accounts.watched[&netns.inum].counted.as_ref().unwrap().sum.insert_failed, Some(12 + 13 + 1));
}

#[test]
fn one_that_is_found_again_is_not_gone() {
    let netns = Netns::current().unwrap();
    let mut accounts = Accounts::default();
    accounts.record(&netns, Ok(sampled(Some(1), Reading::new())));
    accounts.watched.get_mut(&netns.inum).unwrap().gone = true;
    assert_eq!(accounts.watched[&netns.inum].caveat(), Some(Caveat::Ended));
    accounts.record(&netns, Ok(sampled(Some(1), Reading::new())));
    assert_eq!((accounts.watched[&netns.inum].caveat(), accounts.replaced), (None, 0));
}

#[test]
fn without_a_baseline_there_are_no_figures() {
    let netns = Netns::current().unwrap();
    let mut accounts = Accounts::default();
    accounts.record(&netns, Err("no".into()));
    accounts.record(&netns, Ok(sampled(None, Reading::new())));
    assert_eq!(accounts.watched[&netns.inum].counted.as_ref().unwrap_err(), "no");
}

#[test]
fn a_namespace_that_goes_before_it_is_sampled_is_counted() {
    let Some(_alone) = alone() else { return };
    let fd = new_netns();
    let inum = inum(&fd);
    let accounts = Accounts::open_with(&[fd.as_fd()]).unwrap();
    drop(fd);
    let closed = accounts.close([]).unwrap();
    assert!(of(&closed.deltas, inum).caveat.is_some());
    assert!(closed.ended >= 1);
}

#[test]
fn one_that_had_its_first_race_just_before_the_end_is_searched_for() {
    let Some(_alone) = alone() else { return };
    let accounts = || Accounts::open_with(&[]).unwrap();
    let (with, without) = (accounts(), accounts());
    let fd = new_netns();
    let inum = inum(&fd);
    assert!(without.close([]).unwrap().deltas.iter().all(|delta| delta.netns != inum), "a list has it");
    assert!(of(&with.close([inum]).unwrap().deltas, inum).counters.is_ok());
    drop(fd);
}

#[test]
fn nothing_is_held_open() {
    let Some(_alone) = alone() else { return };
    let fd = new_netns();
    let inum = inum(&fd);
    let accounts = Accounts::open_with(&[fd.as_fd()]).unwrap();
    drop(fd);
    netns::search(BTreeSet::from([inum]), |netns| panic!("{netns:?} is still there")).unwrap();
    drop(accounts);
}

/// Without a race: those there at the start, up to the bound, and how many are beyond it.
#[test]
fn every_namespace_is_sampled_within_the_bound() {
    let Some(_alone) = alone() else { return };
    let Some(fd) = one_port() else { return };
    let mut accounts = Accounts::open_with(&[fd.as_fd()]).unwrap();
    // However many others there are.
    accounts.watched.retain(|&netns, _| netns == inum(&fd));
    let counted = |accounts: &Accounts| {
        let found = accounts.so_far().into_iter().find(|&(netns, _)| netns == inum(&fd));
        found.map(|(_, counters)| counters.insert_failed)
    };
    accounts.sample_all([]).unwrap();
    assert_eq!((counted(&accounts), accounts.left_out()), (Some(Some(0)), 0));
    send(&fd, 3);
    accounts.sample_all([]).unwrap();
    assert_eq!(counted(&accounts), Some(Some(2)));
    // Given as one with races it is in there once.
    accounts.sample_all([inum(&fd)]).unwrap();
    assert_eq!(accounts.so_far().iter().filter(|&&(netns, _)| netns == inum(&fd)).count(), 1);
}

#[test]
fn of_too_many_namespaces_the_rest_is_counted() {
    let here = Netns::current().unwrap();
    let watched = |number| {
        let counted = Counted { cookie: None, last: Reading::new(), sum: Tally::default() };
        (NetnsInum(number), Watched::new(here.clone(), Ok(counted), Window { from: None, to: None }))
    };
    let mut accounts = Accounts { watched: (0..).take(SAMPLED + 6).map(watched).collect(), ..Accounts::default() };
    accounts.sample_all([]).unwrap();
    assert_eq!((accounts.so_far().len(), accounts.left_out()), (SAMPLED, 6));
}
