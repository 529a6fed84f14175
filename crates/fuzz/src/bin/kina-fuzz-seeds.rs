//! Writes what the fuzzer starts from: in the directory given, for each target
//! `NAME/corpus/` with its seeds and `NAME/words` with its dictionary. Prints
//! the targets' names.

#![allow(clippy::print_stdout, reason = "a command-line tool talks to its terminal")]

use std::io;
use std::path::PathBuf;

use kina_fuzz::TARGETS;

fn main() -> io::Result<()> {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return Err(io::Error::other("the directory to write to is missing"));
    };
    for target in TARGETS {
        let corpus = directory.join(target.name).join("corpus");
        std::fs::create_dir_all(&corpus)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(corpus.join(format!("seed-{number}")), seed)?;
        }
        // Printable, so that backslashes and quotes are all there is to escape.
        let words = target.words.iter().map(|word| format!("{word:?}\n"));
        std::fs::write(directory.join(target.name).join("words"), words.collect::<String>())?;
        println!("{}: {}", target.name, target.about);
    }
    Ok(())
}
