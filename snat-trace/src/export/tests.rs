use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use serde_json::Value;

use super::*;
use crate::audit;
use crate::evidence::{Existing, Limits, Recorder, Redactor, read};
use crate::output::Sink as _;
use crate::output::golden;
use crate::output::json::JsonSink;
use crate::race::tuple::Protocol;
use crate::skipped::skipped;

/// The head of a datagram from one end to the other, of which `there` bytes are there; written by hand from RFC 791, 8200, 768.
fn datagram(race: &Race, there: usize) -> Bytes {
    let ends = race.contested.ends();
    let mut packet = match (ends.source.ip(), ends.destination.ip()) {
        (std::net::IpAddr::V4(source), std::net::IpAddr::V4(destination)) => {
            let head = [0x45, 0, 2, 0, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0];
            [&head[..], &source.octets(), &destination.octets()].concat()
        }
        (std::net::IpAddr::V6(source), std::net::IpAddr::V6(destination)) => {
            let head = [0x60, 0, 0, 0, 1, 0xd8, 17, 64];
            [&head[..], &source.octets(), &destination.octets()].concat()
        }
        _ => panic!("{ends:?}"),
    };
    // Of 512 bytes, the header of IPv4 or IPv6 included, the datagram has the rest.
    let length = u16::try_from(512 - packet.len()).unwrap();
    for number in [ends.source.port(), ends.destination.port(), length, 0x1111] {
        packet.extend(number.to_be_bytes());
    }
    packet.resize(there, b'x');
    packet.into()
}

/// Races whose packets are such as the kernel has, and two without.
fn races() -> Vec<Race> {
    let mut races = golden::every_kind();
    for race in &mut races {
        race.protocol = Protocol::UDP;
        if !race.packet.is_empty() {
            race.packet = datagram(race, PACKET_LEN);
        }
    }
    races[0].packet = Bytes::from_static(b"??? is no packet of IP, but long enough for one");
    races
}

/// How many of those there are with a packet.
const PACKETS: usize = 8;

fn record(path: &Path, races: &[Race], sessions: usize) {
    for _ in 0..sessions {
        let shown = Box::new(JsonSink::new(io::sink()));
        let mut recorder =
            Recorder::open(path, Existing::Append, Limits::default(), false, |_| audit::tests::home(), shown).unwrap();
        recorder.session(&golden::session()).unwrap();
        races.iter().for_each(|race| recorder.race(race, golden::clock()).unwrap());
        recorder.summary(&golden::summaries()[0].1).unwrap();
    }
}

fn export(path: &Path, redactor: Option<&Redactor>) -> (Survey, Vec<u8>) {
    let open = || read(File::open(path).unwrap());
    let survey = Survey::of(open()).unwrap();
    let items = open().map(|item| match redactor {
        Some(redactor) => item.map(|item| redactor.item(item)),
        None => item,
    });
    let mut out = Vec::new();
    pcapng(&survey, items, redactor.is_some(), &mut out).unwrap();
    (survey, out)
}

/// Type and body of every block, each of which must be whole and of a length that is said twice.
fn blocks(mut file: &[u8]) -> Vec<(u32, &[u8])> {
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    let mut blocks = Vec::new();
    while !file.is_empty() {
        let length = number(&file[4..8]) as usize;
        assert!(length.is_multiple_of(4) && length >= 12);
        let (block, rest) = file.split_at(length);
        assert_eq!(number(&block[length - 4..]) as usize, length);
        blocks.push((number(&block[..4]), &block[8..length - 4]));
        file = rest;
    }
    blocks
}

const SECTION: u32 = 0x0A0D_0D0A;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;

#[test]
fn a_loser_is_a_packet_and_a_recording_a_section() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evidence");
    record(&path, &races(), 2);
    let (survey, file) = export(&path, None);
    assert_eq!((survey.packets, survey.without, survey.cut), (2 * PACKETS as u64, 6, Cut::No));
    let kinds: Vec<u32> = blocks(&file).iter().map(|&(kind, _)| kind).collect();
    let section = [&[SECTION, INTERFACE][..], &[PACKET; PACKETS]].concat();
    assert_eq!(kinds, [&section[..], &section].concat());
    let (_, head) = blocks(&file)[0];
    let head = String::from_utf8_lossy(head);
    for text in ["x86_64", "Linux 6.12.1-test", "snat-trace 0.", "16 packets; 6 losers without."] {
        assert!(head.contains(text), "{text}: {head}");
    }
}

#[test]
fn a_file_without_races_is_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evidence");
    record(&path, &[], 1);
    let (survey, file) = export(&path, None);
    assert_eq!((survey.packets, survey.without), (0, 0));
    assert_eq!(blocks(&file).iter().map(|&(kind, _)| kind).collect::<Vec<_>>(), [SECTION]);
    // What has no head, as no snat-trace writes it, has a section all the same.
    let mut out = Vec::new();
    pcapng(&survey, std::iter::empty(), false, &mut out).unwrap();
    assert_eq!(blocks(&out).len(), 1);
}

#[test]
fn what_is_cut_says_so_and_what_is_added_meanwhile_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evidence");
    record(&path, &races(), 1);
    let whole = Survey::of(read(File::open(&path).unwrap())).unwrap();
    record(&path, &races(), 1);
    let mut out = Vec::new();
    pcapng(&whole, read(File::open(&path).unwrap()), false, &mut out).unwrap();
    assert_eq!(blocks(&out).iter().filter(|&&(kind, _)| kind == PACKET).count(), PACKETS);

    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let (survey, file) = export(&path, None);
    assert_eq!((survey.packets, survey.cut), (PACKETS as u64, Cut::Torn));
    assert!(String::from_utf8_lossy(&file).contains("cut short or damaged"));
}

#[test]
fn text_from_outside_is_harmless_and_has_an_end() {
    let hostile = golden::every_kind().pop().unwrap();
    let comment = comment(&hostile);
    assert!(!comment.contains(|character: char| character != '\n' && character.is_control()), "{comment:?}");
    assert!(comment.contains("loser: 10.244.1.9:41234 > 198.51.100.7:443, a\\u{1b}[2Jb"), "{comment:?}");
    assert_eq!(bounded(&"ä".repeat(5000)), format!("{}~", "ä".repeat(256)));
    assert_eq!(bounded(&"a".repeat(256)), "a".repeat(256));
}

#[test]
fn what_is_behind_an_address_is_not_called_the_senders() {
    let comment = comment(&golden::forwarded());
    assert!(comment.contains("\nanswers to the winner go into pod: shop/cart-7d4b9c6f5-x2k4q, uid "), "{comment}");
    assert!(comment.contains("\nanswers to the winner go into container: containerd "), "{comment}");
    assert!(!comment.contains("winner's") && !comment.contains("loser's"), "{comment}");
}

#[test]
fn comments() {
    let comments: Vec<String> = golden::every_kind().iter().map(comment).collect();
    insta::assert_snapshot!(comments.join("\n\n"));
}

#[test]
fn lengths_are_those_of_the_header() {
    let v4 = |total: u8| [&[0x45, 0, 0, total][..], &[0; 36]].concat();
    assert_eq!([v4(60), v4(40), v4(0)].map(|packet| length(&packet)), [Some(60), Some(40), Some(40)]);
    let v6 = |payload: u8| [&[0x60, 0, 0, 0, 0, payload][..], &[0; 42]].concat();
    assert_eq!([v6(100), v6(0)].map(|packet| length(&packet)), [Some(140), Some(48)]);
    for none in [&[][..], &[0x45; 19], &[0x60; 39], &[0x75; 60]] {
        assert_eq!(length(none), None);
    }
}

/// Nothing of the original gets out, of whatever kind of line; what is redacted already may be so again.
#[test]
fn redacted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evidence");
    record(&path, &races(), 1);
    let [open, hidden] = [None, Some(Redactor::new().unwrap())].map(|redactor| export(&path, redactor.as_ref()).1);
    let addresses: [&[u8]; 3] = [&[192, 0, 2, 10], &[198, 51, 100, 7], &[0x20, 1, 0xd, 0xb8]];
    let names =
        ["10.244.1.9", "198.51.100.", "fd00:10:244", "2001:db8", "curl", "node[", "5e3fa1c0d2b4", "evil", "xxxx"];
    for secret in addresses.into_iter().chain(names.iter().map(|name| name.as_bytes())) {
        let has = |file: &[u8]| file.windows(secret.len()).any(|window| window == secret);
        assert!(has(&open) && !has(&hidden), "{secret:?}");
    }
    let count = |file: &[u8], wanted| blocks(file).iter().filter(|&&(kind, _)| kind == wanted).count();
    assert_eq!(count(&hidden, PACKET), count(&open, PACKET));
    let (one, other) = (Redactor::new().unwrap(), Redactor::new().unwrap());
    for item in read(File::open(&path).unwrap()) {
        let shape = |item: &Item| std::mem::discriminant(item);
        let item = item.unwrap();
        let before = shape(&item);
        assert_eq!(shape(&other.item(one.item(item))), before);
    }
}

/// What Wireshark makes of it, field by field; `None` where it is not installed.
fn tshark(file: &Path, fields: &[&str]) -> Option<Vec<Value>> {
    let mut command = Command::new("tshark");
    command.args(["-T", "json", "-r"]).arg(file).args(fields.iter().flat_map(|field| ["-e", field]));
    let output = match command.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            skipped("what tshark says: it is not installed (Debian: tshark)");
            return None;
        }
        output => output.unwrap(),
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let complaints: Vec<&str> = said.lines().filter(|line| !line.starts_with("Running as user \"root\"")).collect();
    assert!(output.status.success() && complaints.is_empty(), "{}: {said}", output.status);
    let packets: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    Some(packets.into_iter().map(|mut packet| packet["_source"]["layers"].take()).collect())
}

#[test]
fn tshark_reads_what_was_recorded() {
    const FIELDS: [&str; 14] = [
        "frame.number",
        "frame.time_epoch",
        "frame.len",
        "frame.cap_len",
        "frame.comment",
        "frame.interface_name",
        "frame.section_number",
        "ip.src",
        "ip.dst",
        "ipv6.src",
        "udp.srcport",
        "udp.dstport",
        "_ws.expert.severity",
        "_ws.malformed",
    ];

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    record(&path("evidence"), &races(), 2);
    for (name, redactor) in [("open", None), ("redacted", Some(Redactor::new().unwrap()))] {
        let (_, file) = export(&path("evidence"), redactor.as_ref());
        fs::write(path(name), file).unwrap();
        let Some(packets) = tshark(&path(name), &FIELDS) else { return };
        assert_eq!(packets.len(), 2 * PACKETS);
        let of_ip = races().into_iter().filter(|race| length(&race.packet).is_some());
        for (index, (packet, race)) in packets.iter().zip(of_ip.clone().chain(of_ip)).enumerate() {
            let said = |field: &str| packet[field][0].as_str().map(str::to_owned);
            let ends = race.contested.ends();
            // Boot and the time of every golden race: 2026-03-01T12:00:00Z and 271.2040059 s later.
            assert_eq!(said("frame.time_epoch").as_deref(), Some("1772366671.204005900"));
            assert_eq!(said("frame.section_number"), Some((index / PACKETS + 1).to_string()));
            assert_eq!([said("frame.len"), said("frame.cap_len")], [512, PACKET_LEN].map(|n| Some(n.to_string())));
            assert_eq!(said("frame.interface_name").as_deref(), Some("netns-4026531840"));
            assert_eq!(said("udp.srcport"), Some(ends.source.port().to_string()));
            assert_eq!(said("udp.dstport"), Some(ends.destination.port().to_string()));
            let address = if ends.source.is_ipv4() { said("ip.src") } else { said("ipv6.src") };
            let told = ends.source.ip().to_string();
            assert_eq!(address == Some(told), redactor.is_none(), "{packet}");
            let text = said("frame.comment").unwrap();
            assert!(text.starts_with(race.class.name()) && text.contains("winner: "), "{text}");
            // Our comment is all that it points out, and of IPv6 that a checksum is missing, which redaction takes away
            // (epan/proto.h, PI_COMMENT and PI_ERROR).
            let mut severities = vec![0x0010_0000.to_string()];
            severities.extend((redactor.is_some() && ends.source.is_ipv6()).then(|| 0x0080_0000.to_string()));
            assert_eq!(packet["_ws.expert.severity"], Value::from(severities), "{packet}");
            assert_eq!(said("_ws.malformed"), None, "{packet}");
        }
    }
    record(&path("no races"), &[], 1);
    fs::write(path("empty"), export(&path("no races"), None).1).unwrap();
    assert_eq!(tshark(&path("empty"), &FIELDS), Some(Vec::new()));
}

/// What stands before the packets, by the program that comes with tshark for that.
#[test]
fn capinfos_reads_where_it_was_captured() {
    let folder = tempfile::tempdir().unwrap();
    let (evidence, file) = (folder.path().join("evidence"), folder.path().join("file"));
    record(&evidence, &races(), 1);
    fs::write(&file, export(&evidence, None).1).unwrap();
    let output = match Command::new("capinfos").arg("-M").arg(&file).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            skipped("what capinfos says: it is not installed (Debian: wireshark-common)");
            return;
        }
        output => output.unwrap(),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    for text in ["Raw IP", "nanoseconds (9)", "Linux 6.12.1-test", "x86_64", "Number of packets:   8"] {
        assert!(output.status.success() && said.contains(text), "{text}: {said}");
    }
}
