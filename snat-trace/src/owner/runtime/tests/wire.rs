//! An answer over CRI by its bytes, as protobuf's encoding has them for the numbers of fields in kubernetes/cri-api,
//! pkg/apis/runtime/v1/api.proto: nothing here is by the definitions that read it.

use prost::Message as _;

use super::*;
use crate::owner::Pod;
use crate::owner::runtime::cri::{ContainerStatusRequest, parse};

const ID: &str = "5e3fa1c0d2b44e6f8a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f7";
const UID: &str = "0f3ae9d2-1c55-4f6b-9f0e-2a7c1f1d9b11";

fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).unwrap());
    bytes
}

/// A field with a length: a string or a message.
fn field(number: usize, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    [&varint(number << 3 | 2)[..], &varint(content.len()), content].concat()
}

/// A field that is a number.
fn number(field: usize, value: usize) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

/// An entry of a map.
fn entry(of: usize, key: &str, value: &str) -> Vec<u8> {
    field(of, [field(1, key), field(2, value)].concat())
}

/// `ContainerStatusResponse`, every field of which is there.
fn answer(image: &[u8]) -> Vec<u8> {
    let status = [
        field(1, ID),
        // `ContainerMetadata`: name and attempt.
        field(2, [field(1, "app"), number(2, 3)].concat()),
        // State, and three times.
        number(3, 1),
        number(4, 1_700_000_000),
        number(5, 1_700_000_001),
        number(6, 0),
        number(7, 0),
        field(8, image),
        // Reference, reason and message.
        field(9, "sha256:9"),
        field(10, "reason"),
        field(11, "message"),
        entry(12, "io.kubernetes.container.name", "not the name"),
        entry(12, "io.kubernetes.pod.name", "cart-x2k4q"),
        entry(12, "io.kubernetes.pod.namespace", "shop"),
        entry(12, "io.kubernetes.pod.uid", UID),
        // An annotation, a mount, the log, resources, the image's id.
        entry(13, "io.kubernetes.pod.name", "of no label"),
        field(14, [field(1, "/etc/hosts"), field(2, "/var/lib/hosts")].concat()),
        field(15, "/var/log/pods/x/0.log"),
        field(16, field(1, number(1, 100_000))),
        field(17, "sha256:17"),
        // Of a later version.
        field(99, "later"),
    ];
    [field(1, status.concat()), entry(2, "info", "{}")].concat()
}

#[test]
fn an_answer_over_cri_is_read_by_the_numbers_of_its_fields() {
    let key = key(&format!("/kubepods/besteffort/pod{UID}/{ID}"));
    let of = |image: &[u8]| parse(&answer(image), &key).unwrap();
    let pod = Pod { namespace: "shop".to_owned(), name: "cart-x2k4q".to_owned(), uid: UID.to_owned() };
    let expected = |image: &str| {
        let (name, image) = (Some("app".to_owned()), Some(image.to_owned()));
        Known { runtime: None, name, image, pod: Some(pod.clone()) }
    };
    // `ImageSpec`: image, annotations, what was asked for, the runtime's handler.
    assert_eq!(of(&field(1, "nginx:1.27")), expected("nginx:1.27"));
    let asked_for = [field(1, "sha256:1"), entry(2, "a", "b"), field(18, "nginx:1.27"), field(19, "runc")].concat();
    assert_eq!(of(&asked_for), expected("nginx:1.27"));
}

#[test]
fn the_question_has_the_id_alone() {
    let question = ContainerStatusRequest { container_id: ID.to_owned() }.encode_to_vec();
    assert_eq!(question, field(1, ID));
}
