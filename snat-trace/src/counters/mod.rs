//! The other side of the account: conntrack statistics of each network namespace.
