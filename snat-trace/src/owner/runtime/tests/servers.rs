//! Sockets with somebody behind them, who answers, or something else.

use std::collections::HashMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::Sender;
use std::thread;

use bytes::Bytes;
use prost::Message as _;
use tempfile::TempDir;

use super::*;
use crate::owner::Pod;
use crate::owner::runtime::cri::{
    ContainerMetadata, ContainerStatus, ContainerStatusRequest, ContainerStatusResponse, ImageSpec,
};

const ID: &str = "5e3fa1c0d2b44e6f8a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f7";
const UID: &str = "0f3ae9d2-1c55-4f6b-9f0e-2a7c1f1d9b11";
const DOCKER: &str = "run/docker.sock";
const CONTAINERD: &str = "run/containerd/containerd.sock";

/// A node with nothing but a socket, at which each connection is `serve`d.
struct Node {
    root: TempDir,
    /// What was asked over raw sockets.
    questions: Receiver<String>,
}

impl Node {
    fn new(path: &str, mut serve: impl FnMut(UnixStream, &Sender<String>) + Send + 'static) -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(path).unwrap();
        let (asked, questions) = mpsc::channel();
        // Ends with the test: nobody connects any more.
        thread::spawn(move || listener.incoming().for_each(|stream| serve(stream.unwrap(), &asked)));
        Self { root, questions }
    }

    fn sockets(&self) -> Sockets {
        Sockets::new(Root::at(self.root.path()).unwrap()).unwrap()
    }

    /// Its answer to a question about a container.
    fn ask(&self, cgroup: &str) -> Known {
        self.sockets().ask(&key(cgroup))
    }
}

/// Answers each question with these bytes.
fn saying(path: &str, answer: Vec<u8>) -> Node {
    Node::new(path, move |mut stream, asked| {
        let mut question = vec![0; 4096];
        let length = stream.read(&mut question).unwrap_or(0);
        let _ = asked.send(String::from_utf8_lossy(&question[..length]).into_owned());
        // It may be gone before it has read everything.
        let _ = stream.write_all(&answer);
    })
}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.0 {status}\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\n\r\n{body}").into_bytes()
}

fn inspected(id: &str) -> String {
    let labels = serde_json::json!({"maintainer": "somebody"});
    serde_json::json!({"Id": id, "Name": "/web", "Config": {"Image": "nginx:1.27", "Labels": labels}}).to_string()
}

fn docker() -> String {
    format!("/docker/{ID}")
}

fn pods() -> String {
    format!("/kubepods/besteffort/pod{UID}/{ID}")
}

#[test]
fn docker_is_asked_by_id() {
    let node = saying(DOCKER, http("200 OK", &inspected(ID)));
    let (name, image) = (Some("web".to_owned()), Some("nginx:1.27".to_owned()));
    assert_eq!(node.ask(&docker()), Known { runtime: Some("docker"), name, image, pod: None });
    let question = node.questions.recv().unwrap();
    assert!(question.starts_with(&format!("GET /containers/{ID}/json HTTP/1.0\r\n")), "{question}");
    assert!(question.ends_with("\r\n\r\n"), "{question}");
    // As an event has it: the file is not there, the socket is.
    let mut names = Names::start(Root::at(node.root.path()));
    assert_eq!(told(&named(&mut names, &docker()))[1].as_deref(), Some("web"));
}

#[test]
fn podman_is_asked_as_docker_is() {
    let node = saying("run/podman/podman.sock", http("200 OK", &inspected(ID)));
    let (name, image) = (Some("web".to_owned()), Some("nginx:1.27".to_owned()));
    let known = Known { runtime: Some("podman"), name, image, pod: None };
    assert_eq!(node.ask(&format!("/machine.slice/libpod-{ID}.scope/container")), known);
    assert!(node.questions.recv().unwrap().starts_with(&format!("GET /containers/{ID}/json HTTP/1.0\r\n")));
    // Of docker's it is not asked.
    assert_eq!(node.ask(&docker()), Known::default());
    assert!(node.questions.try_recv().is_err());
}

#[test]
fn an_answer_of_docker_that_is_none_names_nobody() {
    let long = "x".repeat(10 << 20);
    let fields: String = (0..200).map(|number| format!("X-{number}: y\r\n")).collect();
    for (what, answer) in [
        ("an error", http("500 Internal Server Error", &inspected(ID))),
        ("not found", http("404 Not Found", r#"{"message":"No such container"}"#)),
        ("another container", http("200 OK", &inspected(&ID.replace('5', "6")))),
        ("no JSON", http("200 OK", "<html>")),
        ("cut JSON", http("200 OK", &inspected(ID)[..40])),
        ("ten megabytes", http("200 OK", &inspected(ID).replace("somebody", &long))),
        ("ten megabytes of head", format!("HTTP/1.0 200 OK\r\nX: {long}").into_bytes()),
        ("many fields", format!("HTTP/1.0 200 OK\r\n{fields}\r\n{}", inspected(ID)).into_bytes()),
        ("no HTTP", b"\0\xff\x1b[2J\n\n\r\n\r\n".to_vec()),
        ("half a head", b"HTTP/1.0 200 OK\r\nA".to_vec()),
        ("nothing", Vec::new()),
    ] {
        assert_eq!(saying(DOCKER, answer).ask(&docker()), Known::default(), "{what}");
    }
    let node = Node::new(DOCKER, |stream, _| drop(stream));
    assert_eq!(node.ask(&docker()), Known::default(), "closed at once");
}

#[test]
fn a_socket_that_is_none_or_has_nobody_behind_it_names_nobody() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join(DOCKER);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let sockets = Sockets::new(Root::at(root.path()).unwrap()).unwrap();
    assert_eq!(sockets.ask(&key(&docker())), Known::default());
    fs::write(&path, "a file").unwrap();
    assert_eq!(sockets.ask(&key(&docker())), Known::default());
    fs::remove_file(&path).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(sockets.ask(&key(&docker())), Known::default());
}

/// Takes a connection and says nothing, or a byte whenever the test wants; and whom it has taken.
fn stuck(path: &str) -> (Node, Receiver<UnixStream>) {
    let (taken, taken_in) = mpsc::channel();
    (Node::new(path, move |stream, _| drop(taken.send(stream))), taken_in)
}

#[test]
fn a_stuck_runtime_is_left_alone_for_a_while() {
    let asking = [(DOCKER, docker()), (CONTAINERD, pods())].map(|(path, cgroup)| {
        thread::spawn(move || {
            let (node, taken) = stuck(path);
            let sockets = node.sockets();
            let start = Instant::now();
            assert_eq!(sockets.ask(&key(&cgroup)), Known::default(), "{path}");
            assert!(start.elapsed() < Duration::from_secs(10), "{path}: {:?}", start.elapsed());
            let connection = taken.try_recv().unwrap();
            assert_eq!(sockets.ask(&key(&cgroup)), Known::default(), "{path}");
            assert!(taken.try_recv().is_err(), "{path}: asked again");
            drop(connection);
        })
    });
    asking.into_iter().for_each(|asking| asking.join().unwrap());
}

#[test]
fn a_stuck_runtime_holds_an_event_back_no_longer_than_is_said() {
    let (node, _taken) = stuck(DOCKER);
    let mut names = Names::start(Root::at(node.root.path()));
    let start = Instant::now();
    let owner = named_in_time(&mut names, &docker());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(told(&owner), [Some("docker".to_owned()), None, None, None]);
}

/// What a fake of CRI does with a question.
#[derive(Clone)]
enum Cri {
    Status(Box<ContainerStatus>),
    Bytes(Bytes),
    Refuse(u32),
    Http(u16),
    /// Frames without end.
    Endless,
}

/// A runtime that speaks HTTP/2 as gRPC wants it, by the server of the same library; what it says is not by our code.
fn cri(path: &str, behaviour: Cri) -> Node {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    Node::new(path, move |stream, asked| {
        stream.set_nonblocking(true).unwrap();
        runtime.block_on(async {
            let stream = tokio::net::UnixStream::from_std(stream).unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                let (asked, behaviour) = (asked.clone(), behaviour.clone());
                tokio::spawn(async move {
                    let _ = answer(request, respond, behaviour, &asked).await;
                });
            }
        });
    })
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    behaviour: Cri,
    asked: &Sender<String>,
) -> Result<(), h2::Error> {
    let fields = ["te", "content-type"].map(|name| request.headers()[name].to_str().unwrap().to_owned());
    let (head, mut body) = request.into_parts();
    let framed = body.data().await.unwrap()?;
    let id = ContainerStatusRequest::decode(&framed[5..]).unwrap().container_id;
    assert_eq!(framed[..5], [0, 0, 0, 0, u8::try_from(framed.len() - 5).unwrap()]);
    asked.send(format!("{} {} {fields:?} {id}", head.method, head.uri.path())).unwrap();
    let with = |status| http::Response::builder().status(status).header("content-type", "application/grpc");
    let trailers = |status: u32| http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.into())]);
    let bytes = match behaviour {
        Cri::Http(status) => return respond.send_response(with(status).body(()).unwrap(), true).map(drop),
        Cri::Refuse(status) => {
            let response = with(200).header("grpc-status", status).body(()).unwrap();
            return respond.send_response(response, true).map(drop);
        }
        Cri::Endless => {
            let mut body = respond.send_response(with(200).body(()).unwrap(), false)?;
            loop {
                body.reserve_capacity(1 << 16);
                let Some(Ok(room)) = std::future::poll_fn(|context| body.poll_capacity(context)).await else {
                    return Ok(());
                };
                body.send_data(vec![0; room].into(), false)?;
            }
        }
        Cri::Bytes(bytes) => bytes,
        Cri::Status(status) => {
            let message = ContainerStatusResponse { status: Some(*status) }.encode_to_vec();
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            [&[0], &length[..], &message].concat().into()
        }
    };
    let mut body = respond.send_response(with(200).body(()).unwrap(), false)?;
    body.send_data(bytes, false)?;
    body.send_trailers(trailers(0))
}

fn status() -> ContainerStatus {
    let labels = [
        ("io.kubernetes.container.name", "app"),
        ("io.kubernetes.pod.name", "cart-7d4b9c6f5-x2k4q"),
        ("io.kubernetes.pod.namespace", "shop"),
        ("io.kubernetes.pod.uid", UID),
    ];
    ContainerStatus {
        id: ID.to_owned(),
        metadata: Some(ContainerMetadata { name: "app".to_owned() }),
        image: Some(ImageSpec { image: "registry.example/shop/cart:1.4".to_owned(), ..ImageSpec::default() }),
        labels: labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
    }
}

#[test]
fn a_runtime_is_asked_over_cri() {
    let pod = Pod { namespace: "shop".to_owned(), name: "cart-7d4b9c6f5-x2k4q".to_owned(), uid: UID.to_owned() };
    let sockets = [
        ("run/containerd/containerd.sock", "containerd"),
        ("run/k3s/containerd/containerd.sock", "containerd"),
        ("var/snap/microk8s/common/run/containerd.sock", "containerd"),
        ("run/crio/crio.sock", "cri-o"),
        ("run/cri-dockerd.sock", "docker"),
    ];
    for (path, runtime) in sockets {
        let node = cri(path, Cri::Status(Box::new(status())));
        let (name, image) = (Some("app".to_owned()), Some("registry.example/shop/cart:1.4".to_owned()));
        let expected = Known { runtime: Some(runtime), name, image, pod: Some(pod.clone()) };
        assert_eq!(node.ask(&pods()), expected, "{path}");
        let asked = node.questions.recv().unwrap();
        let method = "POST /runtime.v1.RuntimeService/ContainerStatus";
        assert_eq!(asked, format!(r#"{method} ["trailers", "application/grpc"] {ID}"#));
        let mut names = Names::start(Root::at(node.root.path()));
        assert_eq!(named(&mut names, &pods()).pod.as_ref(), Some(&pod), "{path}");
    }
    // Another runtime's socket does not know it.
    let node = cri(CONTAINERD, Cri::Status(Box::new(status())));
    assert_eq!(node.ask(&format!("/kubepods/pod{UID}/crio-{ID}")), Known::default());
    assert!(node.questions.try_recv().is_err());
}

#[test]
fn an_answer_over_cri_that_is_none_names_nobody() {
    let labels = |name: &str, value: &str| {
        let mut labels = status().labels;
        labels.insert(name.to_owned(), value.to_owned());
        Cri::Status(Box::new(ContainerStatus { labels, ..status() }))
    };
    let framed = |kind: u8, length: u32, rest: &[u8]| [&[kind], &length.to_be_bytes()[..], rest].concat().into();
    for (what, behaviour) in [
        ("not found", Cri::Refuse(5)),
        ("not there", Cri::Refuse(12)),
        ("an error", Cri::Http(500)),
        ("nothing", Cri::Bytes(Bytes::new())),
        ("an empty message", Cri::Bytes(framed(0, 0, b""))),
        ("no message", Cri::Bytes(framed(0, 3, b"\xff\xff\xff"))),
        ("a message cut short", Cri::Bytes(framed(0, 100, b"\x0a\x02"))),
        ("two messages", Cri::Bytes(framed(0, 0, b"\0\0\0\0\0"))),
        ("a compressed message", Cri::Bytes(framed(1, 0, b""))),
        ("ten megabytes", Cri::Bytes(framed(0, 10 << 20, &vec![0; 10 << 20]))),
        ("no end", Cri::Endless),
        ("another container", Cri::Status(Box::new(ContainerStatus { id: ID.replace('5', "6"), ..status() }))),
        ("another pod", labels("io.kubernetes.pod.uid", "0f3ae9d2-1c55-4f6b-9f0e-2a7c1f1d9b12")),
        ("no pod", Cri::Status(Box::new(ContainerStatus { labels: HashMap::new(), ..status() }))),
        ("a pod without a name", labels("io.kubernetes.pod.name", "")),
        ("a long name", labels("io.kubernetes.pod.namespace", &"x".repeat(4097))),
    ] {
        let node = cri(CONTAINERD, behaviour);
        let known = node.ask(&pods());
        // Which runtime has the socket is known all the same, of an answer that is one.
        assert_eq!(Known { runtime: None, ..known }, Known::default(), "{what}");
    }
    for garbage in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"", &[0xff; 4096], &[0; 4096]] {
        assert_eq!(saying(CONTAINERD, garbage.to_vec()).ask(&pods()), Known::default(), "{garbage:?}");
    }
    let node = Node::new(CONTAINERD, |stream, _| drop(stream));
    assert_eq!(node.ask(&pods()), Known::default(), "closed at once");
}

#[test]
fn hostile_names_over_a_socket_stay_as_they_are() {
    let hostile = "a\x1b[2J\n\u{202e}";
    let mut status = status();
    status.metadata = Some(ContainerMetadata { name: hostile.to_owned() });
    status.labels.insert("io.kubernetes.pod.name".to_owned(), hostile.to_owned());
    let known = cri(CONTAINERD, Cri::Status(Box::new(status))).ask(&pods());
    assert_eq!((known.name.as_deref(), known.pod.map(|pod| pod.name).as_deref()), (Some(hostile), Some(hostile)));
}
