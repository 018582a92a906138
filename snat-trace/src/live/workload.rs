//! What an owner counts for in a list of workloads.

use std::borrow::Cow;

use crate::owner::Owner;

/// Characters of a container's hexadecimal id, as container runtimes print it.
const ID: usize = 12;

/// The name under which a sender is added up: its container, else the last part of its cgroup's path, else its process's name.
/// Text from outside, not escaped.
#[must_use]
pub fn workload(owner: &Owner) -> Cow<'_, str> {
    if let Some(container) = &owner.container {
        let id = container.id.as_str();
        return match id.get(..ID) {
            Some(short) if id.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                format!("{} {short}", container.runtime).into()
            }
            _ => id.into(),
        };
    }
    let cgroup = owner.cgroup.as_deref().and_then(|path| path.rsplit('/').find(|part| !part.is_empty()));
    cgroup.unwrap_or(&owner.comm).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::golden::owner;

    #[test]
    fn the_most_telling_name_there_is() {
        let id = "5e3fa1c0d2b44e6f8a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f7";
        assert_eq!(workload(&owner("curl", 1, Some(("docker", id)))), "docker 5e3fa1c0d2b4");
        assert_eq!(workload(&owner("named", 1, Some(("systemd", "named.service")))), "named.service");
        let mut bare = owner("curl", 1, None);
        assert_eq!(workload(&bare), "curl");
        bare.cgroup = Some("/".to_owned());
        assert_eq!(workload(&bare), "curl");
        bare.cgroup = Some("/user.slice/session-3.scope".to_owned());
        assert_eq!(workload(&bare), "session-3.scope");
    }
}
