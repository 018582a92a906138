//! How the linker, which makes the machine code, is to copy and fill.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // bpf-linker tells LLVM to expand copies in order (BPFISelLowering.cpp), of which the price is that nothing else is
    // expanded: each array set to zero is then a call of a loop, five instructions for every byte.
    println!("cargo::rustc-link-arg-bins=--disable-expand-memcpy-in-order");
}
