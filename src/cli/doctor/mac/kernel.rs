//! What a kernel was built with, as it says itself: a kernel with CONFIG_IKCONFIG
//! carries its configuration, compressed, between two marks.

use std::collections::BTreeMap;
use std::io::Read as _;

use flate2::read::GzDecoder;

/// The marks around the configuration in a kernel's image.
const BEGIN: &[u8] = b"IKCFG_ST";

/// What gzip's data begins with.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The largest unpacked kernel, and the largest configuration, in bytes.
const IMAGE_LIMIT: u64 = 256 << 20;
const CONFIG_LIMIT: u64 = 8 << 20;

/// A kernel's configuration: `y`, `m` or a value by option, without `CONFIG_`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Config(BTreeMap<String, String>);

impl Config {
    /// Reads the text of a configuration.
    pub(super) fn parse(text: &str) -> Self {
        let set = text.lines().filter_map(|line| line.strip_prefix("CONFIG_")?.split_once('='));
        Self(set.map(|(option, value)| (option.to_owned(), value.to_owned())).collect())
    }

    /// Whether it is built in. Apple's machines load no modules.
    pub(super) fn has(&self, option: &str) -> bool {
        self.0.get(option).is_some_and(|value| value == "y")
    }

    /// Those of the options that it lacks.
    pub(super) fn lacks<'a>(&self, options: &[&'a str]) -> Vec<&'a str> {
        options.iter().copied().filter(|option| !self.has(option)).collect()
    }
}

/// The configuration in a kernel's image, which may itself be compressed.
pub(super) fn embedded(image: &[u8]) -> Option<Config> {
    if image.starts_with(&GZIP) {
        let mut unpacked = Vec::new();
        // What follows the compressed data is no matter.
        let _ = GzDecoder::new(image).take(IMAGE_LIMIT).read_to_end(&mut unpacked);
        return within(&unpacked);
    }
    within(image)
}

fn within(image: &[u8]) -> Option<Config> {
    let marks = image.windows(BEGIN.len()).enumerate().filter(|(_, window)| *window == BEGIN);
    // The mark by itself may stand in the code that looks for it.
    let packed = marks.map(|(at, _)| &image[at + BEGIN.len()..]).find(|rest| rest.starts_with(&GZIP))?;
    let mut text = String::new();
    GzDecoder::new(packed).take(CONFIG_LIMIT).read_to_string(&mut text).ok()?;
    Some(Config::parse(&text))
}
