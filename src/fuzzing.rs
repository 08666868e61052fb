//! The doors through which fuzz targets (`fuzz/`) reach what is private: parsers of bytes from outside, and the tables
//! behind them. Compiled for the fuzzer, and for the test that replays the fuzzer's corpus on every run of CI.
//!
//! What a target asserts is in `fuzz/src`, written against these names, so that the fuzzer and CI check the same.

pub use crate::config::door::parse as parse_config;
pub use crate::discovery::door::Memory;
pub use crate::doctor::door::announced;
pub use crate::identity::door::{accepts as accepts_certificate, device};
pub use crate::relay::door::first_bytes;
pub use crate::upload::door::{journal as tus_journal, listed, tus_headers};
pub use crate::upload::s3::door::read_answer as s3_answer;

#[cfg(test)]
#[path = "../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "in the fuzzer's crate it is reachable")]
mod checks;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::checks::{TARGETS, seeds};

    /// Every input that ever taught the fuzzer something, once more.
    #[test]
    fn what_the_fuzzer_found_worth_keeping_does_no_harm() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (target, check) in TARGETS {
            let inputs: Vec<_> = fs::read_dir(corpus.join(target)).unwrap().collect();
            assert!(inputs.len() > 3, "{target} has no corpus");
            for input in inputs {
                check(&fs::read(input.unwrap().path()).unwrap());
            }
        }
    }

    #[test]
    fn what_the_fuzzer_begins_with_does_no_harm() {
        for (target, inputs) in seeds::all() {
            for (_, check) in TARGETS.iter().filter(|(name, _)| *name == target) {
                inputs.iter().for_each(|input| check(input));
            }
        }
    }

    /// `fuzz/run` calls this where a target has no corpus yet.
    #[test]
    #[ignore = "writes files: fuzz/run calls it"]
    fn seeds_are_written_into_the_corpus() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (target, inputs) in seeds::all() {
            fs::create_dir_all(corpus.join(target)).unwrap();
            for (n, input) in inputs.iter().enumerate() {
                fs::write(corpus.join(target).join(format!("seed-{n:02}")), input).unwrap();
            }
        }
    }
}
