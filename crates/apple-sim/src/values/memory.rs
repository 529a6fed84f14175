//! Sizes (`Measurement+Parse.swift`).

use crate::error::Problem;

/// A size in bytes.
///
/// # Errors
/// `invalid size` or `invalid symbol`, as they stand: these errors have no other form.
pub fn bytes(text: &str) -> Result<u64, Problem> {
    let text = text.trim_matches([' ', '\t']).to_lowercase();
    if text.is_empty() {
        return Err(Problem::invalid("invalid size"));
    }
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = (text[..end].trim(), text[end..].trim());
    let number: f64 = number.parse().map_err(|_| Problem::invalid("invalid size"))?;
    let mut letters = unit.chars();
    let first = letters.next().unwrap_or('b');
    let rest = letters.as_str();
    let symbol = || Problem::invalid(format!("invalid symbol: {unit}"));
    if !matches!(rest, "" | "ib" | "b") {
        return Err(symbol());
    }
    let power = "bkmgtp".find(first).ok_or_else(symbol)?;
    let bytes = number * 1024_f64.powi(i32::try_from(power).unwrap_or(0));
    // Saturates: Apple's traps there.
    Ok(bytes as u64)
}

/// A size in whole mebibytes, as bytes.
///
/// # Errors
/// As [`bytes`].
pub fn mebibytes(text: &str) -> Result<u64, Problem> {
    Ok((bytes(text)? >> 20) << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_letter() {
        for (text, expected) in [
            ("512M", Ok(512 << 20)),
            ("1g", Ok(1 << 30)),
            ("1.5GiB", Ok(3 << 29)),
            ("200mb", Ok(200 << 20)),
            (" 7 k ", Ok(7 << 10)),
            ("1", Ok(1)),
            ("512Mi", Err("invalid symbol: mi")),
            ("1x", Err("invalid symbol: x")),
            ("", Err("invalid size")),
            ("M", Err("invalid size")),
            ("-1M", Err("invalid size")),
        ] {
            assert_eq!(
                bytes(text).map_err(|problem| problem.message),
                expected.map_err(str::to_owned),
                "{text}"
            );
        }
        assert_eq!(mebibytes("1.5M"), Ok(1 << 20));
    }
}
