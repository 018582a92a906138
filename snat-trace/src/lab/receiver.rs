//! The external host: who arrives here has not lost. It is the truth that tracing is compared with.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, recvfrom, sockopt};

use super::error::{Doing, LabError};
use super::netns::{Netns, enter};
use super::rules::SECOND_BACKEND;
use super::transport::Transport;
use super::tunnel;
use super::wire::{Arrival, Stamp, pair, tell};
use super::{KEPT_ROUNDS, MAX_PODS, Setup};

/// Connections kept open after their hello: as many as the pods keep.
const KEPT_CONNECTIONS: usize = KEPT_ROUNDS as usize * MAX_PODS;

/// Bytes that may wait for the receiver in each socket of datagrams: a scenario that does not wait for arrivals sends on while
/// the receiver has no CPU, and what does not fit would be lost without the node having a part in it. A datagram of the lab
/// takes less than 1 KiB (`truesize`), and a pod sends some thousand in the time a CPU may be away.
const WAITING_BYTES: usize = 16 << 20;

/// A thread that lives in the external namespace.
#[derive(Debug)]
pub(super) struct Receiver {
    /// Arrivals are heard here; closing it ends the thread. `None` only while being dropped.
    arrivals: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Opens the sockets and starts the thread.
    pub(super) fn start(setup: &Setup, external: &Netns) -> Result<Self, LabError> {
        let (arrivals, log) = pair().doing("make a socket pair")?;
        let netns = external.as_fd().try_clone_to_owned().doing("duplicate a namespace's fd")?;
        let sockets = external.inside(|| {
            let address = setup.listener();
            let transport = setup.scenario.transport();
            let open = || -> io::Result<_> {
                let second = SocketAddr::new(address.ip(), SECOND_BACKEND);
                let (udp, tcp) = ([UdpSocket::bind(address)?, UdpSocket::bind(second)?], TcpListener::bind(address)?);
                for socket in &udp {
                    socket.set_nonblocking(true)?;
                    sockopt::set_socket_recv_buffer_size_force(socket, WAITING_BYTES)?;
                }
                tcp.set_nonblocking(true)?;
                Ok((udp, tcp, transport.raw(setup.family)?.map(|socket| (transport, socket))))
            };
            open().doing("open the receiver's sockets")
        })?;
        let thread = thread::Builder::new().name("lab-receiver".to_owned()).spawn(move || {
            let (udp, tcp, raw) = sockets;
            // Ending closes `log`, which the lab sees and names.
            let _ended = enter(netns.as_fd()).is_ok()
                && Sink { udp, tcp, raw, log, waiting: Vec::new(), greeted: VecDeque::new() }.serve().is_ok();
        });
        Ok(Self { arrivals: Some(arrivals), thread: Some(thread.doing("start the receiver")?) })
    }

    /// Where to hear [`Arrival`]s.
    pub(super) fn arrivals(&self) -> Result<BorrowedFd<'_>, LabError> {
        self.arrivals.as_ref().map(AsFd::as_fd).ok_or(LabError::Ended("receiver"))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.arrivals.take());
        // A panic of the thread has been printed by then.
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

#[derive(Debug)]
struct Sink {
    udp: [UdpSocket; 2],
    tcp: TcpListener,
    raw: Option<(Transport, OwnedFd)>,
    log: OwnedFd,
    /// Accepted, hello not read yet.
    waiting: Vec<(TcpStream, SocketAddr)>,
    greeted: VecDeque<TcpStream>,
}

impl Sink {
    fn serve(mut self) -> io::Result<()> {
        loop {
            let mut fds = vec![
                PollFd::new(&self.log, PollFlags::empty()),
                PollFd::new(&self.udp[0], PollFlags::IN),
                PollFd::new(&self.udp[1], PollFlags::IN),
                PollFd::new(&self.tcp, PollFlags::IN),
            ];
            fds.extend(self.raw.iter().map(|(_, socket)| PollFd::new(socket, PollFlags::IN)));
            fds.extend(self.waiting.iter().map(|(stream, _)| PollFd::new(stream, PollFlags::IN)));
            rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
            // Nothing is ever written to this end's other side: any event is its close.
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
            self.datagrams()?;
            self.raw_packets()?;
            self.hellos()?;
            self.accept()?;
        }
    }

    fn datagrams(&self) -> io::Result<()> {
        let mut bytes = [0; tunnel::HEADERS + Stamp::LENGTH + 1];
        for socket in &self.udp {
            let at = socket.local_addr()?.port();
            while let Some((length, source)) = ready(socket.recv_from(&mut bytes))? {
                let received = &bytes[..length];
                // Nothing of a pod's own is that long.
                self.arrived(received.get(tunnel::HEADERS..).unwrap_or(received), source, at)?;
            }
        }
        Ok(())
    }

    fn raw_packets(&self) -> io::Result<()> {
        let Some((transport, socket)) = &self.raw else { return Ok(()) };
        let mut bytes = [0; 256];
        loop {
            let received = recvfrom(socket, bytes.as_mut_slice(), RecvFlags::empty()).map_err(io::Error::from);
            let Some((length, _, source)) = ready(received)? else { return Ok(()) };
            let source = source.and_then(|source| SocketAddr::try_from(source).ok());
            let first = source.and_then(|source| transport.read(&bytes[..length], source.ip()));
            if let Some((source, stamp)) = first {
                tell(&self.log, Arrival { stamp, source, at: 0 })?;
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        while let Some((stream, source)) = ready(self.tcp.accept())? {
            stream.set_nonblocking(true)?;
            self.waiting.push((stream, source));
        }
        Ok(())
    }

    fn hellos(&mut self) -> io::Result<()> {
        for (mut stream, source) in std::mem::take(&mut self.waiting) {
            let mut bytes = [0; Stamp::LENGTH];
            // A hello is one segment: it is there whole or not at all.
            match stream.read(&mut bytes) {
                Ok(length) => {
                    self.arrived(&bytes[..length], source, 0)?;
                    self.greeted.push_back(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.waiting.push((stream, source)),
                // The pod closed it before its hello.
                Err(_) => {}
            }
        }
        while self.greeted.len() > KEPT_CONNECTIONS {
            self.greeted.pop_front();
        }
        Ok(())
    }

    fn arrived(&self, bytes: &[u8], source: SocketAddr, at: u16) -> io::Result<()> {
        // Not from a pod: nobody else can reach this namespace, so it was cut short on its way.
        let Some(stamp) = Stamp::decode(bytes) else { return Ok(()) };
        tell(&self.log, Arrival { stamp, source, at })
    }
}

/// `None` when there is nothing more to read.
fn ready<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
