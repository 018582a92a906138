//! One question to docker's API, which podman has too.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::root::LONGEST;

/// Header fields of the longest answer that is understood; docker sends nine.
const FIELDS: usize = 64;

/// What docker says of a container, in JSON (moby, api/swagger.yaml, `ContainerInspect`).
///
/// # Errors
/// The connection's; and when the answer is too long, is no HTTP or is anything else but yes.
pub(super) async fn inspect(mut stream: UnixStream, id: &str) -> io::Result<Vec<u8>> {
    // To version 1.0 of the protocol the answer is in one piece, and ends with the connection. An id is hexadecimal.
    let question = format!("GET /containers/{id}/json HTTP/1.0\r\nHost: docker\r\nAccept: application/json\r\n\r\n");
    stream.write_all(question.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST as u64 + 1).read_to_end(&mut answer).await?;
    if answer.len() > LONGEST {
        return Err(wrong("the answer is too long"));
    }
    let head = head_of(&answer)?;
    answer.drain(..head);
    Ok(answer)
}

/// Bytes of the head of an answer that says yes.
fn head_of(answer: &[u8]) -> io::Result<usize> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    match response.parse(answer) {
        Ok(httparse::Status::Complete(head)) if response.code == Some(200) => Ok(head),
        Ok(httparse::Status::Complete(_)) => Err(wrong(format!("the answer is {}", response.code.unwrap_or(0)))),
        Ok(httparse::Status::Partial) => Err(wrong("the answer is cut")),
        Err(error) => Err(wrong(format!("the answer is no HTTP: {error}"))),
    }
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
