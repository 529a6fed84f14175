//! Every target over its seeds and a bounded number of inputs made from them.

use kina_fuzz::{Random, TARGETS, mutate};

/// Inputs of each target, besides its seeds.
const INPUTS: usize = 1500;

#[test]
fn seeds_and_what_is_made_of_them() {
    for target in TARGETS {
        let mut random = Random::new(7);
        let mut inputs = (target.seeds)();
        let seeds = inputs.len();
        assert!(seeds > 0, "{} has no seeds", target.name);
        for number in 0..seeds + INPUTS {
            let input = if number < seeds {
                inputs[number].clone()
            } else {
                mutate(&inputs[random.below(inputs.len())], target.words, &mut random)
            };
            let outcome = std::panic::catch_unwind(|| (target.run)(&input));
            assert!(outcome.is_ok(), "{}: {}", target.name, input.escape_ascii());
            // Some are changed further.
            if number >= seeds && random.below(8) == 0 {
                inputs.push(input);
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
