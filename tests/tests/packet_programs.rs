//! The programs as the kernel takes them.

use ncm_dataplane::{Dataplane, Options};

/// The most instructions that the verifier may walk through for one program: a tenth of what the kernel allows, so that there is
/// room for kernels that look less far.
const BUDGET: u32 = 100_000;

#[test]
fn each_program_is_well_within_what_the_verifier_walks_through() {
    let dataplane = Dataplane::open(&Options::unpinned()).expect("the programs load");
    let programs = dataplane.programs().expect("readable");
    assert!(programs.len() >= 7, "all programs are loaded: {programs:?}");
    for program in programs {
        let walked = program.verified_instructions;
        assert!(walked <= BUDGET, "{}: {walked} instructions of at most {BUDGET}", program.name);
    }
}
