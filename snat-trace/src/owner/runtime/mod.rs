//! What containers and pods are called, by what their runtimes and the kubelet have on disk, and by their sockets where the
//! files did not tell.
//!
//! Right or not at all: a name belongs to a container by its full id, and a pod to it only if it is the one in whose cgroup
//! it is. Both are asked in the background, and no event waits for longer than [`PATIENCE`].

mod cri;
mod disk;
mod docker;
mod docker_api;
mod homes;
mod key;
mod known;
mod kubelet;
mod machine;
mod oci;
mod podman;
mod root;
mod sockets;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use super::Place;
use key::Key;
use known::Known;
use root::Root;
use sockets::Sockets;
use worker::{Answer, Source, Worker};

/// How long a batch of events waits for all names in it together. A source that was late is not waited for again until it
/// has answered.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);
/// After how long what was not found is looked for again, if it is still seen.
const AGAIN: Duration = Duration::from_secs(10);
/// Containers remembered before all are forgotten.
const REMEMBERED: usize = 4096;

/// Names of containers and pods. What was found once stays, also after the container has gone: an id is never used twice.
#[derive(Debug)]
pub(super) struct Names {
    remembered: HashMap<Key, Entry>,
    disk: Option<Worker>,
    sockets: Option<Worker>,
    answers: Receiver<Answer>,
}

#[derive(Debug)]
struct Entry {
    known: Known,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Asked, and not answered yet.
    Asked(Source),
    /// Something is not known, and is not asked again before this.
    Until(Instant),
    /// All there is to know.
    Complete,
}

impl Names {
    /// Of this node.
    pub(super) fn new() -> Self {
        Self::start(Root::of_node())
    }

    /// Of the node with this root; where there is none nothing is known.
    fn start(root: io::Result<Root>) -> Self {
        let started = root.and_then(|root| {
            let sockets = Sockets::new(root.try_clone()?)?;
            Self::asking(move |key| disk::look(&root, key), move |key| sockets.ask(key))
        });
        started.unwrap_or_else(|error| {
            tracing::warn!("containers and pods have no names: {error}");
            Self { remembered: HashMap::new(), disk: None, sockets: None, answers: mpsc::channel().1 }
        })
    }

    /// Of a node whose disks tell nothing, and take long for it.
    #[cfg(test)]
    pub(super) fn slow(after: Duration) -> Self {
        let look = move |_: &Key| {
            std::thread::sleep(after);
            Known::default()
        };
        Self::asking(look, |_| Known::default()).unwrap()
    }

    fn asking(
        disk: impl FnMut(&Key) -> Known + Send + 'static,
        sockets: impl FnMut(&Key) -> Known + Send + 'static,
    ) -> io::Result<Self> {
        let (answer, answers) = mpsc::channel();
        let disk = Some(Worker::start(Source::Disk, answer.clone(), disk)?);
        let sockets = Some(Worker::start(Source::Sockets, answer, sockets)?);
        Ok(Self { remembered: HashMap::new(), disk, sockets, answers })
    }

    /// Names containers and pods. Waits no longer than there is patience for, of which it takes away how long it waited.
    pub(super) fn complete<'a>(&mut self, places: impl Iterator<Item = Place<'a>>, patience: &mut Duration) {
        self.complete_at(Instant::now(), places, patience);
    }

    fn complete_at<'a>(&mut self, now: Instant, places: impl Iterator<Item = Place<'a>>, patience: &mut Duration) {
        let places: Vec<_> = places.filter_map(|place| Some((Key::of(place.cgroup)?, place))).collect();
        // Of what is inside another container there is only the pod around it to be known.
        let wanted = places.iter().filter(|((key, itself), _)| *itself || key.pod_uid.is_some());
        let keys: Vec<Key> = wanted.map(|((key, _), _)| key.clone()).collect();
        while let Ok(answer) = self.answers.try_recv() {
            self.take(answer);
        }
        for key in &keys {
            self.ask(key, now);
        }
        let start = Instant::now();
        // Without any nobody is called late.
        if !patience.is_zero() {
            self.wait(&keys, start + *patience);
        }
        *patience = patience.saturating_sub(start.elapsed());
        for ((key, itself), mut place) in places {
            if let Some(entry) = self.remembered.get(&key) {
                fill(&mut place, &entry.known, itself);
            }
        }
    }

    /// Asks for what is not known, unless it was asked for of late.
    fn ask(&mut self, key: &Key, now: Instant) {
        let due = match self.remembered.get(key).map(|entry| &entry.state) {
            None => true,
            Some(State::Until(time)) => *time <= now,
            Some(State::Asked(_) | State::Complete) => false,
        };
        // Where too much is asked already, the next event asks.
        if !due || !self.disk.as_mut().is_some_and(|disk| disk.ask(key)) {
            return;
        }
        if self.remembered.len() >= REMEMBERED && !self.remembered.contains_key(key) {
            self.remembered.clear();
        }
        let state = State::Asked(Source::Disk);
        match self.remembered.get_mut(key) {
            Some(entry) => entry.state = state,
            None => drop(self.remembered.insert(key.clone(), Entry { known: Known::default(), state })),
        }
    }

    fn take(&mut self, Answer { source, key, known }: Answer) {
        if let Some(worker) = self.worker(source) {
            worker.has_answered();
        }
        let asks_sockets = source == Source::Disk && sockets::know(&key);
        let Some(entry) = self.remembered.get_mut(&key) else { return };
        entry.known = std::mem::take(&mut entry.known).or(known);
        entry.state = if entry.known.is_all(&key) {
            State::Complete
        } else if asks_sockets && self.sockets.as_mut().is_some_and(|sockets| sockets.ask(&key)) {
            State::Asked(Source::Sockets)
        } else {
            State::Until(Instant::now() + AGAIN)
        };
    }

    /// Waits until everything is answered, but for what is late already, and not beyond `deadline`.
    fn wait(&mut self, keys: &[Key], deadline: Instant) {
        while keys.iter().any(|key| self.awaited(key).is_some()) {
            match self.answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(answer) => self.take(answer),
                Err(_) => break,
            }
        }
        for key in keys {
            if let Some(source) = self.awaited(key)
                && let Some(worker) = self.worker(source)
            {
                worker.is_late();
            }
        }
    }

    /// Who is about to answer, if it is worth waiting for.
    fn awaited(&self, key: &Key) -> Option<Source> {
        let State::Asked(source) = self.remembered.get(key)?.state else { return None };
        let worker = match source {
            Source::Disk => &self.disk,
            Source::Sockets => &self.sockets,
        };
        worker.as_ref().is_some_and(Worker::is_in_time).then_some(source)
    }

    fn worker(&mut self, source: Source) -> Option<&mut Worker> {
        match source {
            Source::Disk => self.disk.as_mut(),
            Source::Sockets => self.sockets.as_mut(),
        }
    }
}

/// Adds what is known. What is inside another container shares that one's pod, and nothing else.
fn fill(place: &mut Place<'_>, known: &Known, itself: bool) {
    let Known { runtime, name, image, pod } = known;
    place.pod.clone_from(pod);
    if let Some(container) = place.container.as_mut().filter(|_| itself) {
        container.name.clone_from(name);
        container.image.clone_from(image);
        if let (Some(runtime), "cri" | "oci") = (runtime, &*container.runtime) {
            container.runtime = (*runtime).into();
        }
    }
}
