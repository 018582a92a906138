//! The verifier gate on this machine's own kernel.

#[test]
fn every_program_passes_the_verifier_of_this_machine() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: loading BPF programs needs root");
        return;
    }
    snat_trace_tests::verifier::gate().unwrap_or_else(|error| panic!("{error:?}"));
}
