//! LLVM's fuzzer around one target, which `KINA_FUZZ_TARGET` names. Its
//! arguments are libFuzzer's own; `cargo xtask fuzz` gives them.

#![no_main]

use std::sync::LazyLock;

use kina_fuzz::{Target, target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("KINA_FUZZ_TARGET").expect("KINA_FUZZ_TARGET names a target");
    target(&name).expect("KINA_FUZZ_TARGET is one of the targets")
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| (TARGET.run)(input));
