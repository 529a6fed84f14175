//! Checks that several conversions share. Each names the field in its error.

use std::path::{Component, Path};

use kina_model::SpecError;

/// A field's message, present.
pub(super) fn required<T>(field: &str, value: Option<T>) -> Result<T, SpecError> {
    value.ok_or_else(|| SpecError::invalid(field, "is missing"))
}

/// A text that the kernel can take: without NUL.
pub(super) fn text(field: &str, value: &str) -> Result<(), SpecError> {
    if value.contains('\0') {
        return Err(SpecError::invalid(field, "holds a NUL character"));
    }
    Ok(())
}

/// [`text`] for each of several.
pub(super) fn texts(field: &str, values: &[String]) -> Result<(), SpecError> {
    for (index, value) in values.iter().enumerate() {
        text(&format!("{field}[{index}]"), value)?;
    }
    Ok(())
}

/// One word: not empty, no white space, no control characters. For what ends
/// up in files that are read line by line.
pub(super) fn word(field: &str, value: &str) -> Result<(), SpecError> {
    if value.is_empty() || value.chars().any(|character| character.is_whitespace() || character.is_control())
    {
        return Err(SpecError::invalid(field, format!("{value:?} is not a single word")));
    }
    Ok(())
}

/// An absolute path without `..`.
pub(super) fn absolute_path(field: &str, value: &str) -> Result<(), SpecError> {
    text(field, value)?;
    if !value.starts_with('/') {
        return Err(SpecError::invalid(field, format!("{value:?} is not an absolute path")));
    }
    no_parent(field, value)
}

/// A relative path that does not leave the directory it is relative to.
pub(super) fn path_inside(field: &str, value: &str) -> Result<(), SpecError> {
    text(field, value)?;
    if value.starts_with('/') {
        return Err(SpecError::invalid(field, format!("{value:?} is not a relative path")));
    }
    no_parent(field, value)
}

/// A [`path_inside`] of a file.
pub(super) fn path_below(field: &str, value: &str) -> Result<(), SpecError> {
    path_inside(field, value)?;
    if Path::new(value).file_name().is_none() || value.ends_with('/') {
        return Err(SpecError::invalid(field, format!("{value:?} does not name a file")));
    }
    Ok(())
}

fn no_parent(field: &str, value: &str) -> Result<(), SpecError> {
    if Path::new(value).components().any(|component| component == Component::ParentDir) {
        return Err(SpecError::invalid(field, format!("{value:?} contains \"..\"; write the plain path")));
    }
    Ok(())
}

/// A user or group id.
pub(super) fn id(field: &str, value: i64) -> Result<u32, SpecError> {
    // The highest number means "no id" to the kernel.
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(SpecError::invalid(field, format!("{value} is no id; from 0 to {} are", u32::MAX - 1))),
    }
}

/// The value of an enumeration that this version of the interface knows.
pub(super) fn known<T: TryFrom<i32>>(field: &str, value: i32) -> Result<T, SpecError> {
    T::try_from(value).map_err(|_| {
        SpecError::unsupported(field, format!("value {value} is not of the CRI version that kina speaks"))
    })
}

/// A number that is not negative.
pub(super) fn natural(field: &str, value: i64) -> Result<u64, SpecError> {
    u64::try_from(value).map_err(|_| SpecError::invalid(field, format!("{value} is negative")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for good in ["/", "/a", "/a/b..c"] {
            absolute_path("f", good).unwrap();
        }
        for bad in ["", "a", "/a/../b", "/..", "/a\0"] {
            assert!(absolute_path("f", bad).is_err(), "{bad:?}");
        }
        for good in ["a.log", "a/0.log", "a..b"] {
            path_below("f", good).unwrap();
        }
        for bad in ["", ".", "a/", "/a", "..", "a/../../b", "a/..", "a\0"] {
            assert!(path_below("f", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids() {
        assert_eq!(id("f", 0).unwrap(), 0);
        assert_eq!(id("f", i64::from(u32::MAX) - 1).unwrap(), u32::MAX - 1);
        for bad in [-1, i64::from(u32::MAX), i64::MAX, i64::MIN] {
            assert!(id("f", bad).is_err(), "{bad}");
        }
    }
}
