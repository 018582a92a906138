//! How long events wait, and what is asked again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;

/// A container's cgroup.
fn docker(number: usize) -> String {
    format!("/docker/{number:064x}")
}

/// Longer than a wait, also on a busy machine, and far less than a wait for each of some hundred containers.
const LONG: Duration = Duration::from_secs(10);

fn known(name: &str) -> Known {
    Known { name: Some(name.to_owned()), image: Some("image".to_owned()), ..Known::default() }
}

fn name_of(owner: &Owner) -> Option<&str> {
    owner.container.as_ref().unwrap().name.as_deref()
}

/// A worker that answers when it is allowed to, each question by a permit, and the permits.
fn hung() -> (impl FnMut(&Key) -> Known + Send + 'static, mpsc::Sender<()>) {
    let (permit, permits) = mpsc::channel();
    let look = move |key: &Key| match permits.recv() {
        Ok(()) => known(&key.id),
        Err(_) => Known::default(),
    };
    (look, permit)
}

#[test]
fn a_disk_that_hangs_holds_one_batch_back_and_not_for_long() {
    let (disk, permit) = hung();
    let mut names = Names::asking(disk, |_| Known::default()).unwrap();
    let start = Instant::now();
    let mut owners: Vec<Owner> = (0..100).map(|number| owner(&docker(number))).collect();
    names.complete(owners.iter_mut().filter_map(Owner::place), &mut { PATIENCE });
    let waited = start.elapsed();
    assert!(waited >= PATIENCE && waited < LONG, "{waited:?}");
    assert!(owners.iter().all(|owner| name_of(owner).is_none() && owner.container.is_some()));
    // It is late, so nothing waits for it any more.
    let start = Instant::now();
    for number in 100..1000 {
        assert_eq!(name_of(&named_in_time(&mut names, &docker(number))), None);
    }
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    assert!(names.remembered.len() <= 258, "{} are asked", names.remembered.len());
    // What it says at last is used.
    (0..1000).for_each(|_| permit.send(()).unwrap());
    settle(&mut names);
    assert_eq!(name_of(&named_in_time(&mut names, &docker(3))), Some(format!("{:064x}", 3).as_str()));
    // What was not even asked is asked now.
    assert_eq!(name_of(&named(&mut names, &docker(999))), Some(format!("{:064x}", 999).as_str()));
}

#[test]
fn a_runtime_that_is_stuck_holds_one_batch_back_and_no_disk() {
    let (sockets, permit) = hung();
    let disk = |key: &Key| if key.id.ends_with('7') { known("by disk") } else { Known::default() };
    let mut names = Names::asking(disk, sockets).unwrap();
    let start = Instant::now();
    assert_eq!(name_of(&named_in_time(&mut names, &docker(1))), None);
    assert!(start.elapsed() >= PATIENCE && start.elapsed() < LONG, "{:?}", start.elapsed());
    let start = Instant::now();
    for number in 0x10..0xf0 {
        let cgroup = docker(number);
        let _in_time = named_in_time(&mut names, &cgroup);
        while let State::Asked(Source::Disk) = names.remembered[&key(&cgroup)].state {
            let answer = names.answers.recv().unwrap();
            names.take(answer);
        }
        let by_disk = (number & 0xf == 7).then_some("by disk");
        assert_eq!(name_of(&named_in_time(&mut names, &cgroup)), by_disk, "{cgroup}");
    }
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    (0..1000).for_each(|_| permit.send(()).unwrap());
    assert_eq!(name_of(&named(&mut names, &docker(0x12))), Some(format!("{:064x}", 0x12).as_str()));
}

#[test]
fn what_is_missing_is_asked_again_after_a_while_and_what_is_known_never() {
    let asked = Arc::new(AtomicUsize::new(0));
    let there = Arc::new(Mutex::new(Known::default()));
    let disk = {
        let (asked, there) = (Arc::clone(&asked), Arc::clone(&there));
        move |_: &Key| {
            asked.fetch_add(1, Ordering::Relaxed);
            there.lock().unwrap().clone()
        }
    };
    let mut names = Names::asking(disk, |_| Known::default()).unwrap();
    let mut at = |now| {
        let mut owner = owner(&docker(1));
        names.complete_at(now, owner.place().into_iter(), &mut { PATIENCE });
        settle(&mut names);
        names.complete_at(now, owner.place().into_iter(), &mut { PATIENCE });
        let container = owner.container.unwrap();
        (container.name, container.image, asked.load(Ordering::Relaxed))
    };
    let start = Instant::now();
    assert_eq!(at(start), (None, None, 1));
    // Half of it is there.
    *there.lock().unwrap() = Known { image: None, ..known("web") };
    assert_eq!(at(start), (None, None, 1));
    let later = Instant::now() + AGAIN;
    assert_eq!(at(later), (Some("web".to_owned()), None, 2));
    // The container has gone, or somebody calls it something else: it was called that.
    *there.lock().unwrap() = known("another");
    let later = Instant::now() + AGAIN;
    assert_eq!(at(later), (Some("web".to_owned()), Some("image".to_owned()), 3));
    *there.lock().unwrap() = Known::default();
    let later = Instant::now() + 100 * AGAIN;
    assert_eq!(at(later), (Some("web".to_owned()), Some("image".to_owned()), 3));
}

#[test]
fn sockets_are_asked_for_what_files_do_not_tell_and_only_that() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let sockets = {
        let asked = Arc::clone(&asked);
        move |key: &Key| {
            asked.lock().unwrap().push(key.id.clone());
            Known { pod: None, ..known("by socket") }
        }
    };
    let disk = |key: &Key| match key.id.as_bytes().last() {
        Some(b'1') => known("by disk"),
        Some(b'2') => Known { image: None, ..known("by disk") },
        _ => Known::default(),
    };
    let mut names = Names::asking(disk, sockets).unwrap();
    let mut told = |cgroup: &str| told(&named(&mut names, cgroup))[1..3].to_vec();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(told(&docker(1)), [some("by disk"), some("image")]);
    assert_eq!(asked.lock().unwrap().len(), 0);
    assert_eq!(told(&docker(2)), [some("by disk"), some("image")]);
    assert_eq!(told(&docker(3)), [some("by socket"), some("image")]);
    assert_eq!(asked.lock().unwrap().len(), 2);
    assert_eq!(told(&format!("/machine.slice/libpod-{:064x}.scope", 5)), [some("by socket"), some("image")]);
    assert_eq!(asked.lock().unwrap().len(), 3);
    // No socket knows these.
    for cgroup in [
        format!("/user.slice/user-1000.slice/libpod-{:064x}.scope", 4),
        format!("/user.slice/user-1000.slice/docker-{:064x}.scope", 4),
        format!("/default/{:064x}", 4),
        "/default/web".to_owned(),
        "/machine.slice/machine-web.scope".to_owned(),
        "/system.slice/ssh.service".to_owned(),
    ] {
        assert_eq!(told(&cgroup), [None, None], "{cgroup}");
    }
    assert_eq!(asked.lock().unwrap().len(), 3);
}

#[test]
fn no_more_is_remembered_than_is_said() {
    let mut names = Names::asking(|key| known(&key.id), |_| Known::default()).unwrap();
    for first in (0..REMEMBERED * 2).step_by(128) {
        let mut owners: Vec<Owner> = (first..first + 128).map(|number| owner(&docker(number))).collect();
        names.complete(owners.iter_mut().filter_map(Owner::place), &mut { PATIENCE });
        assert!(names.remembered.len() <= REMEMBERED);
    }
    settle(&mut names);
    let last = docker(REMEMBERED * 2 - 1);
    assert_eq!(name_of(&named(&mut names, &last)), last.strip_prefix("/docker/"));
}

#[test]
fn without_a_root_nothing_is_known_and_nothing_waits() {
    let mut names = Names::start(Err(io::Error::other("none")));
    let start = Instant::now();
    (0..1000).for_each(|number| assert_eq!(name_of(&named(&mut names, &docker(number))), None));
    assert!(start.elapsed() < LONG);
}
