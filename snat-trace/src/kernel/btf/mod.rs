//! Offsets of kernel structure fields, from the BTF of the running kernel.

mod types;

use std::mem::offset_of;
use std::path::Path;
use std::{fs, io};

use snat_trace_common::{ABSENT, Need, OFFSETS, Offset, SocketHead, Tuple};

use self::types::Structures;
use super::hooks::CONNTRACK_MODULE;

/// Every offset of [`OFFSETS`] on one kernel, in bytes; [`ABSENT`] for an optional field it does not have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Offsets(Vec<u16>);

/// Why the offsets of a kernel are not known. Reads as what follows "this kernel: ".
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OffsetsError {
    /// The kernel was built without BTF.
    #[error("it has no type information (no /sys/kernel/btf/vmlinux), it needs CONFIG_DEBUG_INFO_BTF=y")]
    NoBtf,
    /// A file of BTF cannot be read.
    #[error("its type information cannot be read ({file}: {error})")]
    Unreadable {
        /// Name below `/sys/kernel/btf`.
        file: &'static str,
        /// As the system has it.
        error: String,
    },
    /// A file is no BTF, or of a newer format.
    #[error("its type information is not understood ({file}: {error}), a newer snat-trace may know it")]
    Invalid {
        /// Name below `/sys/kernel/btf`.
        file: &'static str,
        /// What is wrong.
        error: String,
    },
    /// A structure has no such field, or is not there.
    #[error("its type information has no {}, which tracing cannot do without", FieldName(structure, field))]
    NoField {
        /// The structure.
        structure: &'static str,
        /// Path of the field, empty for the structure itself.
        field: &'static str,
    },
    /// A field cannot be read as whole bytes near the start of its structure.
    #[error("{} is a bit field or lies too far into its structure to be read", FieldName(structure, field))]
    NotBytes {
        /// The structure.
        structure: &'static str,
        /// Path of the field.
        field: &'static str,
    },
    /// Two structures of one name differ.
    #[error("its type information has several structures {structure}, which differ in {field}")]
    Contradiction {
        /// The structure.
        structure: &'static str,
        /// Path of the field.
        field: &'static str,
    },
    /// A structure that has always looked the same looks different.
    #[error(
        "{} is {found} where it has always been {expected}, so this is no kernel snat-trace knows",
        FieldName(structure, field)
    )]
    Layout {
        /// The structure.
        structure: &'static str,
        /// Path of the field, empty for the size of the structure.
        field: &'static str,
        /// As in every known kernel, bytes.
        expected: usize,
        /// In this one, bytes.
        found: u16,
    },
}

/// `structure.field` in a sentence.
struct FieldName<'a>(&'a str, &'a str);

impl std::fmt::Display for FieldName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self(structure, "") => write!(f, "struct {structure}"),
            Self(structure, field) => write!(f, "{structure}.{field}"),
        }
    }
}

/// What the programs copy whole: the structure, and what is where in it.
const LAYOUTS: [(&str, &[(&str, usize)]); 2] = [
    (
        "nf_conntrack_tuple",
        &[
            ("", size_of::<Tuple>()),
            ("src.u3", offset_of!(Tuple, src)),
            ("src.u", offset_of!(Tuple, src_port_be)),
            ("src.l3num", offset_of!(Tuple, l3num)),
            ("dst.u3", offset_of!(Tuple, dst)),
            ("dst.u", offset_of!(Tuple, dst_port_be)),
            ("dst.protonum", offset_of!(Tuple, protonum)),
            ("dst.dir", offset_of!(Tuple, dir)),
        ],
    ),
    (
        "sock",
        &[
            ("__sk_common.skc_addrpair", offset_of!(SocketHead, daddr_be)),
            ("__sk_common.skc_portpair", offset_of!(SocketHead, dport_be)),
            ("__sk_common.skc_family", offset_of!(SocketHead, family)),
            ("__sk_common.skc_net", offset_of!(SocketHead, net)),
        ],
    ),
];

impl Offsets {
    /// From the files below `directory`, which is `/sys/kernel/btf` on a live system. The BTF of the module
    /// `nf_conntrack` is read only when that of the kernel image lacks a structure.
    pub(super) fn read(directory: &Path) -> Result<Self, OffsetsError> {
        let vmlinux = match fs::read(directory.join("vmlinux")) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(OffsetsError::NoBtf),
            Err(error) => return Err(OffsetsError::Unreadable { file: "vmlinux", error: error.to_string() }),
        };
        let module = || match fs::read(directory.join(CONNTRACK_MODULE)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(OffsetsError::Unreadable { file: CONNTRACK_MODULE, error: error.to_string() }),
        };
        Self::parse(&vmlinux, module)
    }

    /// From the BTF of the kernel image and, only if it lacks a structure, that of the module.
    fn parse(
        vmlinux: &[u8],
        module: impl FnOnce() -> Result<Option<Vec<u8>>, OffsetsError>,
    ) -> Result<Self, OffsetsError> {
        let names = OFFSETS.iter().map(|offset| offset.structure).chain(LAYOUTS.map(|(structure, _)| structure));
        let mut structures = Structures::new(vmlinux, names)?;
        if !structures.complete()
            && let Some(bytes) = module()?
        {
            structures.add_module(&bytes)?;
        }
        for (structure, layout) in LAYOUTS {
            for &(field, expected) in layout {
                match structures.offset(structure, field)? {
                    Some(found) if usize::from(found) == expected => {}
                    Some(found) => return Err(OffsetsError::Layout { structure, field, expected, found }),
                    None => return Err(OffsetsError::NoField { structure, field }),
                }
            }
        }
        let values = OFFSETS.iter().map(|&Offset { structure, field, need, symbol: _ }| {
            match structures.offset(structure, field)? {
                Some(value) => Ok(value),
                None if need == Need::Required => Err(OffsetsError::NoField { structure, field }),
                None => Ok(ABSENT),
            }
        });
        Ok(Self(values.collect::<Result<_, _>>()?))
    }

    /// Whether this kernel has every field of this need.
    #[must_use]
    pub fn has_all(&self, need: Need) -> bool {
        self.iter().all(|(offset, &value)| offset.need != need || value != ABSENT)
    }

    /// Every offset with its value in bytes, in the order of [`OFFSETS`].
    pub fn iter(&self) -> impl Iterator<Item = (&'static Offset, &u16)> {
        OFFSETS.iter().zip(&self.0)
    }

    /// The values alone.
    #[must_use]
    pub fn values(&self) -> &[u16] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::types::tests::Builder;
    use super::*;
    use crate::kernel::fixture::{SERIES, data};
    use crate::mutate::survives;

    fn fixture(series: &str, name: &str) -> Vec<u8> {
        fs::read(data(series).join(name)).unwrap()
    }

    fn parse(vmlinux: &[u8]) -> Result<Offsets, OffsetsError> {
        Offsets::parse(vmlinux, || Ok(None))
    }

    /// From the whole BTF of the same kernels with `bpftool btf dump`, in the order of the offset table.
    #[rustfmt::skip]
    const EXPECTED: [(&str, [u16; 80]); 4] = [
        ("5.10", [
            16, 128, 12, 144, 56, 16, 104, 192, 184, 180, 178, 144, 72, 56, 368, 540, 24, 200, 2808, 32, 8,
            24, 168, 72, ABSENT, 152, 72, 728, 16, 16, 48, 736, 8, 200, 0, 18, 40, 44, 888, 18, 56, 40,
            36, 2296, 2544, 2968, 2056, 2336, 3328, 4, 96, 16, 0, 312, 320, 928, 16, 24, 24, 40, 0, 32, 16,
            24, 0, 11, 4, 1, 5, 0, 248, 480, 12, 104, 16, 96, 8, 184, ABSENT, ABSENT,
        ]),
        ("6.1", [
            16, 128, 12, 136, 56, 16, 104, 200, 188, 184, 182, 144, 72, 56, 360, 516, 24, 200, 3048, 32, 8,
            32, 168, 72, 175, 152, 64, 728, 16, 16, 48, 736, 8, 200, 0, 18, 40, 44, 896, 18, 56, 40,
            44, 2480, 2784, 3240, 2272, 2520, 3600, 4, 96, 16, 0, 312, 320, 944, 16, 24, 24, 40, 0, 32, 16,
            24, 0, 11, 4, 1, 5, 0, 248, 656, 12, 104, 16, 96, 8, 176, 12, 48,
        ]),
        ("6.12", [
            16, 128, 12, 136, 56, 16, 104, 200, 188, 184, 182, 136, 72, 56, 400, 574, 24, 32, 3048, 32, 8,
            32, 168, 72, 175, 144, 360, 992, 16, 16, 48, 192, 8, 200, 0, 18, 40, 44, 912, 18, 56, 40,
            44, 2496, 2784, 3240, 2304, 2536, 3584, 4, 112, 16, 0, 376, 384, 1168, 64, 72, 24, 40, 0, 32, 16,
            24, 0, 11, 4, 1, 5, 0, 256, 720, 12, 96, 16, 104, 8, 176, ABSENT, 48,
        ]),
        ("7.3", [
            16, 128, 12, 136, 56, 16, 104, 200, 188, 184, 182, 280, 72, 56, 400, 540, 24, 24, 3488, 32, 8,
            32, 168, 72, 175, 512, 344, 1088, 16, 16, 48, 192, 8, 200, 0, 18, 40, 44, 944, 18, 56, 40,
            44, 2936, 3224, 3688, 2744, 2976, 4072, 4, 128, 16, 0, 728, 736, 1536, 64, 72, 24, 40, 0, 32, 16,
            24, 0, 11, 4, 1, 5, 0, 296, 808, 12, 96, 16, 104, 8, 176, ABSENT, 48,
        ]),
    ];

    #[test]
    fn offsets_of_known_kernels() {
        assert_eq!(EXPECTED.map(|(series, _)| series), SERIES);
        for (series, expected) in EXPECTED {
            let offsets = parse(&fixture(series, "vmlinux.btf")).unwrap();
            let found: Vec<_> = offsets.iter().map(|(offset, value)| (offset.symbol, *value)).collect();
            let expected: Vec<_> = OFFSETS.iter().map(|offset| offset.symbol).zip(expected).collect();
            assert_eq!(found, expected, "{series}");
        }
    }

    #[test]
    fn another_tuple_is_refused() {
        let mut btf = fixture("6.12", "vmlinux.btf");
        // "protonum" and "dir" change places by their names.
        let at = |name: &[u8]| btf.windows(name.len()).position(|bytes| bytes == name).unwrap();
        let (protonum, dir) = (at(b"\0protonum\0"), at(b"\0dir\0"));
        btf[protonum + 1..protonum + 9].copy_from_slice(b"dir\0\0\0\0\0");
        btf[dir + 1..dir + 4].copy_from_slice(b"xxx");
        let error = parse(&btf).unwrap_err();
        assert_eq!(error, OffsetsError::NoField { structure: "nf_conntrack_tuple", field: "dst.protonum" });

        let mut btf = Builder::new();
        btf.structure("nf_conntrack_tuple", 44, false, &[]);
        let error = parse(&btf.bytes()).unwrap_err();
        assert_eq!(error, OffsetsError::Layout { structure: "nf_conntrack_tuple", field: "", expected: 40, found: 44 });
        assert!(error.to_string().starts_with("struct nf_conntrack_tuple is 44"), "{error}");
    }

    #[test]
    fn another_socket_is_refused() {
        let mut btf = fixture("6.12", "vmlinux.btf");
        // Its ports and its addresses change places by their names.
        let at = |name: &[u8]| btf.windows(name.len()).position(|bytes| bytes == name).unwrap();
        let (ports, addresses) = (at(b"skc_portpair"), at(b"skc_addrpair"));
        btf[ports..ports + 12].copy_from_slice(b"skc_addrpair");
        btf[addresses..addresses + 12].copy_from_slice(b"skc_portpair");
        let error = parse(&btf).unwrap_err();
        let (structure, field) = ("sock", "__sk_common.skc_addrpair");
        assert_eq!(error, OffsetsError::Layout { structure, field, expected: 0, found: 12 });
    }

    /// Without conntrack zones, network namespaces or IPv6 compiled in, some fields are not there.
    #[test]
    fn optional_fields_may_be_absent_and_required_ones_not() {
        for offset in OFFSETS.iter().filter(|offset| !offset.field.is_empty()) {
            // Has them all, under their older names.
            let mut btf = fixture("6.1", "vmlinux.btf");
            let last = offset.field.split('|').next().unwrap().rsplit('.').next().unwrap();
            let name = [b"\0", last.as_bytes(), b"\0"].concat();
            let at = btf.windows(name.len()).position(|bytes| bytes == name).unwrap();
            btf[at + 1] = b'X';
            let result = parse(&btf);
            // Several structures may have a field of this name, or it itself.
            let has_it =
                |other: &Offset| other.structure == last || other.field.split(['.', '|']).any(|part| part == last);
            if let Some(required) = OFFSETS.iter().find(|other| other.need == Need::Required && has_it(other)) {
                let (structure, field) = (required.structure, required.field);
                assert_eq!(result, Err(OffsetsError::NoField { structure, field }));
            } else {
                let offsets = result.unwrap();
                let absent: Vec<_> = offsets.iter().filter(|(_, value)| **value == ABSENT).collect();
                assert!(absent.contains(&(offset, &ABSENT)), "{offset:?}");
                assert!(absent.iter().all(|(other, _)| has_it(other)), "{absent:?}");
                assert_eq!(
                    offsets.has_all(Need::Processes),
                    absent.iter().all(|(other, _)| other.need != Need::Processes)
                );
            }
        }
    }

    #[test]
    fn the_module_is_read_only_when_needed() {
        let whole = Offsets::parse(&fixture("6.12", "vmlinux.btf"), || panic!("not needed")).unwrap();
        let base = fixture("split", "vmlinux.btf");
        assert_eq!(Offsets::parse(&base, || Ok(Some(fixture("split", "nf_conntrack.btf")))), Ok(whole));
        let error = Offsets::parse(&base, || Ok(Some(b"rubbish".to_vec()))).unwrap_err();
        assert!(matches!(error, OffsetsError::Invalid { file: "nf_conntrack", .. }), "{error}");
    }

    #[test]
    fn a_file_shorter_than_it_says_is_refused() {
        let whole = fixture("7.3", "vmlinux.btf");
        for len in 0..whole.len() {
            let error = parse(&whole[..len]).unwrap_err();
            assert!(matches!(error, OffsetsError::Invalid { file: "vmlinux", .. }), "{len}: {error}");
        }
    }

    fn changed(original: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
        let len = original.len();
        proptest::collection::vec((0..len, any::<u8>()), 1..8).prop_map(move |changes| {
            let mut bytes = original.clone();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn any_bytes_give_an_answer(tail in proptest::collection::vec(any::<u8>(), 0..256)) {
            prop_assert!(parse(&tail).is_err());
            let header = [&[0x9f, 0xeb, 1, 0][..], &24_u32.to_ne_bytes()].concat();
            prop_assert!(parse(&[header, tail].concat()).is_err());
        }

        #[test]
        fn a_changed_kernel_gives_an_answer(bytes in changed(fixture("7.3", "vmlinux.btf"))) {
            drop(parse(&bytes));
        }

        #[test]
        fn a_changed_header_gives_an_answer(at in 0_usize..24, value in any::<u32>(), tail in 0_usize..8) {
            let mut bytes = fixture("6.1", "vmlinux.btf");
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            bytes.truncate(bytes.len() - tail);
            drop(parse(&bytes));
        }

        #[test]
        fn a_changed_module_gives_an_answer(bytes in changed(fixture("split", "nf_conntrack.btf"))) {
            drop(Offsets::parse(&fixture("split", "vmlinux.btf"), || Ok(Some(bytes))));
        }
    }

    #[test]
    fn mutated_kernels_give_an_answer() {
        let kernels = SERIES.map(|series| fixture(series, "vmlinux.btf"));
        survives("btf", &kernels.each_ref().map(Vec::as_slice), |bytes| drop(parse(bytes)));
    }

    #[test]
    fn mutated_modules_give_an_answer() {
        let base = fixture("split", "vmlinux.btf");
        survives("btf-module", &[&fixture("split", "nf_conntrack.btf")], |bytes| {
            drop(Offsets::parse(&base, || Ok(Some(bytes.to_vec()))));
        });
    }
}
