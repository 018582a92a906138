//! One question over CRI, the kubelet's way to speak to runtimes (kubernetes/cri-api, pkg/apis/runtime/v1/api.proto).

use std::collections::HashMap;
use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use http::{HeaderMap, Method, Request, StatusCode};
use prost::Message;
use tokio::net::UnixStream;

use super::key::Key;
use super::known::{Known, KubeletLabels, name};
use super::root::LONGEST;

const METHOD: &str = "http://localhost/runtime.v1.RuntimeService/ContainerStatus";

#[derive(Clone, Eq, Hash, Message, PartialEq)]
pub(super) struct ContainerStatusRequest {
    #[prost(string, tag = "1")]
    pub(super) container_id: String,
}

#[derive(Clone, Message, PartialEq)]
pub(super) struct ContainerStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<ContainerStatus>,
}

/// The fields that are needed.
#[derive(Clone, Message, PartialEq)]
pub(super) struct ContainerStatus {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(message, optional, tag = "2")]
    pub(super) metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "8")]
    pub(super) image: Option<ImageSpec>,
    #[prost(map = "string, string", tag = "12")]
    pub(super) labels: HashMap<String, String>,
}

#[derive(Clone, Eq, Hash, Message, PartialEq)]
pub(super) struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

#[derive(Clone, Eq, Hash, Message, PartialEq)]
pub(super) struct ImageSpec {
    #[prost(string, tag = "1")]
    pub(super) image: String,
    /// As it was asked for; the other may be the image's id. Not in older versions.
    #[prost(string, tag = "18")]
    pub(super) user_specified_image: String,
}

/// What a runtime says of a container: one message of gRPC.
///
/// # Errors
/// The connection's; and when the answer is too long, no gRPC or anything else but yes.
pub(super) async fn status(stream: UnixStream, id: &str) -> io::Result<Bytes> {
    let (requests, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
    tokio::select! {
        answer = unary(requests, id) => answer,
        end = connection => {
            end.map_err(io::Error::other)?;
            Err(wrong("the connection was closed"))
        }
    }
}

/// A question and an answer, as of <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.
async fn unary(requests: h2::client::SendRequest<Bytes>, id: &str) -> io::Result<Bytes> {
    let mut requests = requests.ready().await.map_err(io::Error::other)?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(METHOD)
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(())
        .map_err(io::Error::other)?;
    let (response, mut body) = requests.send_request(request, false).map_err(io::Error::other)?;
    let message = ContainerStatusRequest { container_id: id.to_owned() }.encode_to_vec();
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(length);
    framed.put_slice(&message);
    body.send_data(framed.freeze(), true).map_err(io::Error::other)?;
    let response = response.await.map_err(io::Error::other)?;
    if response.status() != StatusCode::OK {
        return Err(wrong(format!("the answer is {}", response.status())));
    }
    let said = grpc_status(response.headers());
    let (answer, trailers) = read(response.into_body()).await?;
    match said.or_else(|| trailers.as_ref().and_then(grpc_status)) {
        Some(0) => message_of(answer),
        Some(status) => Err(wrong(format!("the answer is status {status}"))),
        None => Err(wrong("the answer has no status")),
    }
}

/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The one message that is all of an answer.
fn message_of(mut answer: Bytes) -> io::Result<Bytes> {
    let message = answer.split_off(PREFIX.min(answer.len()));
    match *answer {
        [0, a, b, c, d] if u32::from_be_bytes([a, b, c, d]) as usize == message.len() => Ok(message),
        _ => Err(wrong("the answer is not one plain message")),
    }
}

fn grpc_status(fields: &HeaderMap) -> Option<u32> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}

async fn read(mut body: RecvStream) -> io::Result<(Bytes, Option<HeaderMap>)> {
    let mut answer = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(io::Error::other)?;
        if answer.len() + piece.len() > LONGEST {
            return Err(wrong("the answer is too long"));
        }
        body.flow_control().release_capacity(piece.len()).map_err(io::Error::other)?;
        answer.extend_from_slice(&piece);
    }
    Ok((answer.freeze(), body.trailers().await.map_err(io::Error::other)?))
}

/// A container as its runtime describes it, if it is the one that is meant, in the pod in whose cgroup it is.
pub(super) fn parse(message: &[u8], key: &Key) -> Option<Known> {
    let ContainerStatus { id, metadata, image, mut labels } = ContainerStatusResponse::decode(message).ok()?.status?;
    if id != key.id {
        return None;
    }
    let mut label = |name| labels.remove(name);
    let labels = KubeletLabels {
        container: label("io.kubernetes.container.name"),
        pod: label("io.kubernetes.pod.name"),
        namespace: label("io.kubernetes.pod.namespace"),
        uid: label("io.kubernetes.pod.uid"),
        docker_type: None,
    };
    let pod = labels.pod(key)?;
    let image = image.map(|image| match image.user_specified_image.is_empty() {
        true => image.image,
        false => image.user_specified_image,
    });
    Some(Known {
        runtime: None,
        name: name(metadata.map(|metadata| metadata.name).or(labels.container)),
        image: name(image),
        pod: Some(pod),
    })
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
