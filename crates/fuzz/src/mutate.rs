//! Changed inputs without a fuzzer, the same in every run.

/// Numbers that look random (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number below `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let number = mixed ^ (mixed >> 31);
        usize::try_from(number % (limit.max(1) as u64)).unwrap_or(0)
    }
}

/// Changes an input in one to four places: bits, bytes, pieces moved, cut or
/// doubled, words put in.
#[must_use]
pub fn mutate(input: &[u8], words: &[&str], random: &mut Random) -> Vec<u8> {
    const LONGEST: usize = 16 << 10;
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let length = random.below((bytes.len() - at).min(64) + 1);
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => {
                const TELLING: &[u8] = &[0, 1, b'/', b'.', b'0', b'7', b'9', b'"', b' ', 0x7f, 0x80, 0xff];
                bytes[at] = TELLING[random.below(TELLING.len())];
            }
            2 => drop(bytes.drain(at..at + length)),
            3 => {
                let piece = bytes[at..at + length].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            4 if !words.is_empty() => {
                let word = words[random.below(words.len())];
                bytes.splice(at..at, word.bytes());
            }
            5 if !words.is_empty() => {
                let word = words[random.below(words.len())];
                let end = (at + word.len()).min(bytes.len());
                bytes.splice(at..end, word.bytes());
            }
            6 => bytes.truncate(at),
            _ => {
                let byte = u8::try_from(random.below(256)).unwrap_or(0);
                bytes.insert(at, byte);
            }
        }
    }
    bytes.truncate(LONGEST);
    bytes
}
