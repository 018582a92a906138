//! The one thing to know of a finished binary: whether it needs anything of the machine it runs on.

use anyhow::{Context, Result, bail};

/// Program header type of the path of the dynamic loader (elf(5)).
const PT_INTERP: u32 = 3;

/// Whether a 64-bit little-endian ELF file asks for a dynamic loader.
///
/// # Errors
/// It is not such a file, or is cut off.
pub(crate) fn needs_interpreter(elf: &[u8]) -> Result<bool> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        bail!("not a 64-bit little-endian ELF file");
    }
    let table = usize::try_from(u64::from_le_bytes(bytes(elf, 32)?))?;
    let size = usize::from(u16::from_le_bytes(bytes(elf, 54)?));
    let count = usize::from(u16::from_le_bytes(bytes(elf, 56)?));
    for header in 0..count {
        let offset = header.checked_mul(size).and_then(|offset| offset.checked_add(table)).context("absurd header")?;
        if u32::from_le_bytes(bytes(elf, offset)?) == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}

fn bytes<const N: usize>(elf: &[u8], offset: usize) -> Result<[u8; N]> {
    let end = offset.checked_add(N).context("absurd offset")?;
    let slice = elf.get(offset..end).context("the file is cut off")?;
    Ok(slice.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header with program headers of these types.
    fn elf(types: &[u32]) -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = u8::try_from(types.len()).unwrap();
        for kind in types {
            elf.extend(kind.to_le_bytes());
            elf.extend([0; 52]);
        }
        elf
    }

    #[test]
    fn made_up_files() {
        assert!(!needs_interpreter(&elf(&[1, 2, 6])).unwrap());
        assert!(needs_interpreter(&elf(&[6, PT_INTERP, 1])).unwrap());
        assert!(needs_interpreter(&elf(&[1, 1])[..100]).is_err());
        assert!(needs_interpreter(b"#!/bin/sh\n").is_err());
    }

    #[test]
    fn this_very_test_is_dynamic() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(needs_interpreter(&own).unwrap(), cfg!(not(target_feature = "crt-static")));
    }
}
