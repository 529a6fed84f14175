//! Names of devices.

use std::fmt;

/// `vendor/class=name`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DeviceName {
    text: String,
    /// Where the `=` is.
    middle: usize,
}

impl DeviceName {
    /// Understands a name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let malformed = |what: &str| format!("{text:?} is no CDI device: {what}");
        let (kind, device) = text
            .split_once('=')
            .ok_or_else(|| malformed("it has no =; devices are called vendor/class=name"))?;
        check_kind(kind).map_err(|what| malformed(&what))?;
        check_device(device).map_err(|what| malformed(&what))?;
        Ok(Self { text: text.to_owned(), middle: kind.len() })
    }

    /// `vendor/class`.
    pub(super) fn kind(&self) -> &str {
        &self.text[..self.middle]
    }

    /// The device's own name.
    pub(super) fn device(&self) -> &str {
        &self.text[self.middle + 1..]
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Whether a text is `vendor/class`.
pub(super) fn check_kind(kind: &str) -> Result<(), String> {
    let (vendor, class) = kind.split_once('/').ok_or_else(|| format!("{kind:?} is not vendor/class"))?;
    for (what, name, more) in [("vendor", vendor, "_-."), ("class", class, "_-")] {
        if !name.starts_with(|first: char| first.is_ascii_alphabetic()) || !is_plain(name, more) {
            return Err(format!("{what} {name:?} is not of letters, digits and any of {more}"));
        }
    }
    Ok(())
}

/// Whether a text is a device's own name.
pub(super) fn check_device(name: &str) -> Result<(), String> {
    const MORE: &str = "_-.:";
    if is_plain(name, MORE) {
        return Ok(());
    }
    Err(format!("name {name:?} is not of letters, digits and any of {MORE}"))
}

/// Begins and ends with a letter or digit, and has none but these and `more`.
fn is_plain(name: &str, more: &str) -> bool {
    let bytes = name.as_bytes();
    let outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    outer(bytes.first())
        && outer(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || more.as_bytes().contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let name = DeviceName::parse("vendor.com/gpu-card=0:1.a").unwrap();
        assert_eq!((name.kind(), name.device()), ("vendor.com/gpu-card", "0:1.a"));
        assert_eq!(name.to_string(), "vendor.com/gpu-card=0:1.a");
        DeviceName::parse("v/c=all").unwrap();
        for bad in [
            "",
            "gpu0",
            "/dev/null",
            "vendor.com/gpu",
            "vendor.com=0",
            "/gpu=0",
            "vendor.com/=0",
            "vendor.com/gpu=",
            "1vendor/gpu=0",
            "vendor./gpu=0",
            "vendor/g.p=0",
            "vendor/gpu=-0",
            "vendor/gpu=a b",
            "vendor/gpu=0=1",
            "vendor/gpu/x=0",
            "v\u{e9}ndor/gpu=0",
        ] {
            assert!(DeviceName::parse(bad).is_err(), "{bad}");
        }
    }
}
