//! Limits of a pod's traffic, from its annotations.

use std::collections::BTreeMap;

use kina_model::SpecError;

/// Into the pod, bits per second.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// Out of the pod, bits per second.
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// What Kubernetes takes for reasonable, in bits per second.
const LEAST: u128 = 1_000;
const MOST: u128 = 1_000_000_000_000_000;

/// Bits that may pass at once: as good as no limit, as the kubelet's own
/// plugins and containerd have it.
const BURST: u64 = i32::MAX as u64;

/// The limits that a pod's annotations ask for; `None` if they ask for none.
///
/// # Errors
/// An annotation that is no quantity, or not between 1k and 1P.
pub(crate) fn of(annotations: &BTreeMap<String, String>) -> Result<Option<kina_cni::Bandwidth>, SpecError> {
    let rate = |name: &str| match annotations.get(name) {
        None => Ok(0),
        Some(text) => rate(text).map_err(|reason| {
            SpecError::invalid(format!("config.annotations[{name}]"), format!("{text:?} {reason}"))
        }),
    };
    let (ingress_rate, egress_rate) = (rate(INGRESS)?, rate(EGRESS)?);
    let burst = |rate: u64| if rate == 0 { 0 } else { BURST };
    let limits = kina_cni::Bandwidth {
        ingress_rate,
        ingress_burst: burst(ingress_rate),
        egress_rate,
        egress_burst: burst(egress_rate),
    };
    Ok((ingress_rate != 0 || egress_rate != 0).then_some(limits))
}

fn rate(text: &str) -> Result<u64, &'static str> {
    let value = quantity(text).ok_or("is no quantity such as 10M")?;
    if !(LEAST..=MOST).contains(&value) {
        return Err("is not between 1k and 1P bits per second");
    }
    u64::try_from(value).map_err(|_| "is too much")
}

/// A quantity of Kubernetes: a decimal number, then a decimal or binary suffix
/// or a decimal exponent. Fractions are rounded up. `None` for what is none, or
/// is negative or too large to count.
fn quantity(text: &str) -> Option<u128> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 30 {
        return None;
    }
    let (multiplier, divisor) = match suffix {
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "" => (1, 1),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => power(exponent)?,
    };
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let divisor = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?.checked_mul(divisor)?;
    Some(digits.checked_mul(multiplier)?.div_ceil(divisor))
}

/// `e3` or `E-3` as a multiplier and a divisor.
fn power(exponent: &str) -> Option<(u128, u128)> {
    let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
    let value = 10_u128.checked_pow(power.unsigned_abs().min(64))?;
    Some(if power < 0 { (1, value) } else { (value, 1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, expected) in [
            ("1000", Some(1000)),
            ("1k", Some(1000)),
            ("1.5M", Some(1_500_000)),
            (".5Ki", Some(512)),
            ("10Mi", Some(10 << 20)),
            ("1e6", Some(1_000_000)),
            ("2E3", Some(2000)),
            ("1500m", Some(2)),
            ("12e-1", Some(2)),
            ("+7", Some(7)),
            ("", None),
            (".", None),
            ("-1", None),
            ("1.2.3", None),
            ("1K", None),
            ("1 k", None),
            ("e3", None),
            ("1e99", None),
            ("99999999999999999999999999999E", None),
        ] {
            assert_eq!(quantity(text), expected, "{text:?}");
        }
    }

    #[test]
    fn annotations() {
        let annotations = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            of(&pairs.collect())
        };
        assert_eq!(annotations(&[("other", "x")]).unwrap(), None);
        let limits = annotations(&[(INGRESS, "10M")]).unwrap().unwrap();
        assert_eq!((limits.ingress_rate, limits.egress_rate, limits.egress_burst), (10_000_000, 0, 0));
        assert!(limits.ingress_burst > 0);
        for bad in ["x", "0", "1", "2P", "-5M"] {
            let error = annotations(&[(EGRESS, bad)]).unwrap_err().to_string();
            assert!(error.contains("config.annotations[kubernetes.io/egress-bandwidth]"), "{error}");
            assert!(error.contains(bad), "{error}");
        }
    }
}
