//! Where users keep what their own runtimes keep.

use super::root::Root;

/// The home of a user of the node.
pub(super) fn home(root: &Root, user: u32) -> Option<String> {
    let passwd = root.read("/etc/passwd")?;
    String::from_utf8_lossy(&passwd).lines().find_map(|line| {
        // NAME:PASSWORD:UID:GID:COMMENT:HOME:SHELL, passwd(5)
        let mut fields = line.split(':');
        let (uid, home) = (fields.nth(2)?, fields.nth(2)?);
        (uid.parse() == Ok(user) && home.starts_with('/')).then(|| home.to_owned())
    })
}
