//! Policy as the programs carry it out, against a loop over the rules: random security groups that the model compiles into the
//! real tables, and random packets through the real programs.
//!
//! Each case is drawn from a fixed seed, so that every run is the same; one that fails is made smaller and shown. Run for longer with
//! `cargo xtask test long`; `NCM_SEED` draws other cases.

mod any;
mod sequences;
mod verdicts;

use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestRunner};

/// A runner of so many cases.
fn runner(cases: u32) -> TestRunner {
    let seed = std::env::var("NCM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    TestRunner::new(Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        rng_algorithm: RngAlgorithm::ChaCha,
        max_shrink_iters: 2_000,
        failure_persistence: None,
        ..Config::default()
    })
}
