//! Writes the tar stream on standard input as an EROFS image:
//!
//! ```text
//! gunzip < layer.tar.gz | cargo run --release -p kina-erofs --example tar-to-erofs -- layer.erofs
//! mount -t erofs -o ro,loop layer.erofs /mnt
//! ```
#![allow(clippy::print_stdout, reason = "what it did is its output")]

use std::error::Error;
use std::fs::File;
use std::time::Instant;

use kina_erofs::{Options, write_layer};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: tar-to-erofs IMAGE < TAR")?;
    let start = Instant::now();
    let mut image = File::create(path)?;
    let summary = write_layer(std::io::stdin().lock(), &mut image, &Options::default())?;
    println!("{summary:#?}\n{:.3} s", start.elapsed().as_secs_f64());
    Ok(())
}
