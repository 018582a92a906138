//! The kernel side of snat-trace: one file per role.
//!
//! A hook copies facts and counts what it could not copy; judgement is user space's. Nothing goes into the ring per
//! connection, only clashes and what became of them. Which programs are loaded, and at which symbols they are attached, the loader decides.
#![no_std]
#![no_main]
#![expect(clippy::needless_pass_by_value, reason = "the kprobe macro passes the context by value")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "the verifier knows no panic; each cast says in its place why it fits"
)]

mod allocation;
mod cgroup;
mod check_insert;
mod clash;
mod confirm;
mod failure;
mod flow;
mod frame;
mod insertion;
mod maps;
mod owner;
mod packet;
mod path;
mod process;
mod read;
mod sending;
mod table;
mod verdict;

/// Required by the kernel for the helpers used here.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program from which this could be reached.
    loop {}
}
