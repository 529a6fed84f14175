//! Every target over its seeds and a bounded number of inputs made from them.
//!
//! Where there is no time to build the fuzzer, `KINA_FUZZ_TARGET` names one target,
//! `KINA_FUZZ_INPUTS` says how many inputs are made, and `KINA_FUZZ_SEED` which.

use kina_fuzz::{Random, TARGETS, mutate};

/// Inputs of each target, besides its seeds.
const INPUTS: usize = 1500;

/// Inputs that are kept to be changed further, seeds included.
const KEPT: usize = 2000;

/// What the first inputs are drawn with.
const SEED: u64 = 7;

fn number<T: std::str::FromStr>(name: &str, without: T) -> T {
    let Some(text) = std::env::var(name).ok() else { return without };
    text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}"))
}

#[test]
fn seeds_and_what_is_made_of_them() {
    let (count, seed) = (number("KINA_FUZZ_INPUTS", INPUTS), number("KINA_FUZZ_SEED", SEED));
    let only = std::env::var("KINA_FUZZ_TARGET").ok();
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    assert!(TARGETS.iter().any(|target| wanted(target.name)), "no target is called {only:?}");
    for target in TARGETS.iter().filter(|target| wanted(target.name)) {
        let mut random = Random::new(seed);
        let mut inputs = (target.seeds)();
        let seeds = inputs.len();
        assert!(seeds > 0, "{} has no seeds", target.name);
        for number in 0..seeds + count {
            let input = if number < seeds {
                inputs[number].clone()
            } else {
                // Changes of changes lose what the seeds are like: these come as often.
                let among = if random.below(2) == 0 { seeds } else { inputs.len() };
                mutate(&inputs[random.below(among)], target.words, &mut random)
            };
            let outcome = std::panic::catch_unwind(|| (target.run)(&input));
            assert!(outcome.is_ok(), "{}: {}", target.name, input.escape_ascii());
            // Some are changed further; there is room for so many.
            if number >= seeds && random.below(8) == 0 {
                if inputs.len() < KEPT {
                    inputs.push(input);
                } else {
                    let place = seeds + random.below(KEPT - seeds);
                    inputs[place] = input;
                }
            }
        }
    }
}

#[test]
fn words_fit_into_libfuzzers_dictionary() {
    // It knows no escapes but \\, \" and \xAB.
    for target in TARGETS {
        for word in target.words {
            assert!(word.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{}: {word:?}", target.name);
        }
    }
}
