//! Containers of systemd-nspawn, by what systemd-machined has registered.

use super::key::Key;
use super::known::{Known, name};
use super::root::Root;

/// The machine whose unit the container's cgroup is.
///
/// `/run/systemd/machines/NAME` has lines `KEY=VALUE` with the value escaped as in C (systemd, src/machine/machine.c,
/// `machine_save`). The unit's name has the machine's in it, escaped as in `systemd-escape`.
pub(super) fn look(root: &Root, key: &Key) -> Option<Known> {
    let machine = unescape(&key.id)?;
    let text = String::from_utf8(root.read(&format!("/run/systemd/machines/{machine}"))?).ok()?;
    let value = |name: &str| text.lines().find_map(|line| unescape(line.strip_prefix(name)?.strip_prefix('=')?));
    let unit = value("SCOPE").or_else(|| value("UNIT"))?;
    let is_ours = [format!("machine-{}.scope", key.id), format!("systemd-nspawn@{}.service", key.id)].contains(&unit);
    if !is_ours || value("CLASS").as_deref() != Some("container") {
        return None;
    }
    Some(Known { name: name(Some(machine)), ..Known::default() })
}

/// Undoes `\xHH` and `\\`. Other escapes stand for what no name of a machine or unit has.
fn unescape(text: &str) -> Option<String> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'\\' {
            plain.push(first);
            continue;
        }
        match tail {
            [b'\\', tail @ ..] => {
                plain.push(b'\\');
                rest = tail;
            }
            [b'x', high, low, tail @ ..] => {
                let digits = [*high, *low];
                plain.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
                rest = tail;
            }
            _ => return None,
        }
    }
    String::from_utf8(plain).ok().filter(|name| !name.contains('/'))
}
