//! `--network`.

use crate::error::Problem;

/// A value of `--network`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedNetwork {
    /// Its name.
    pub name: String,
    /// The card's address.
    pub mac: Option<String>,
    /// The largest packet.
    pub mtu: Option<u32>,
}

/// Reads `NAME[,mac=XX:XX:XX:XX:XX:XX][,mtu=N]`.
///
/// # Errors
/// What is not of that form.
pub fn network(text: &str) -> Result<ParsedNetwork, Problem> {
    if text.is_empty() {
        return Err(Problem::invalid("network specification cannot be empty"));
    }
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default().to_owned();
    if name.is_empty() {
        return Err(Problem::invalid("network name cannot be empty"));
    }
    let (mut mac, mut mtu) = (None, None);
    for part in parts {
        let pieces: Vec<&str> = part.splitn(3, '=').collect();
        let [key, value] = pieces.as_slice() else {
            return Err(Problem::invalid(format!(
                "invalid property format '{part}' in network specification '{text}'"
            )));
        };
        match *key {
            "mac" if value.is_empty() => return Err(Problem::invalid("mac address value cannot be empty")),
            "mac" => mac = Some((*value).to_owned()),
            "mtu" => {
                let number = value.parse().ok().filter(|mtu| (1280..=65535).contains(mtu));
                mtu = Some(number.ok_or_else(|| {
                    Problem::invalid(format!("invalid mtu value '{value}': must be between 1280 and 65535"))
                })?);
            }
            other => {
                return Err(Problem::invalid(format!(
                    "unknown network property '{other}'. Available properties: mac, mtu"
                )));
            }
        }
    }
    Ok(ParsedNetwork { name, mac, mtu })
}

/// The six bytes of a card's address.
///
/// # Errors
/// What is not of that form.
pub fn valid_mac(text: &str) -> Result<[u8; 6], Problem> {
    let wrong =
        || Problem::invalid(format!("invalid MAC address format {text}, expected format: XX:XX:XX:XX:XX:XX"));
    let mut bytes = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
    }
    if parts.next().is_some() { Err(wrong()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_properties() {
        let parsed = network("default,mtu=1500,mac=f2:00:00:00:00:01").unwrap();
        assert_eq!((parsed.mtu, parsed.mac.as_deref()), (Some(1500), Some("f2:00:00:00:00:01")));
        for (text, expected) in [
            ("", "network specification cannot be empty"),
            (",mtu=1500", "network name cannot be empty"),
            ("n,mtu=1279", "invalid mtu value '1279': must be between 1280 and 65535"),
            ("n,x", "invalid property format 'x' in network specification 'n,x'"),
            ("n,x=1", "unknown network property 'x'. Available properties: mac, mtu"),
        ] {
            assert_eq!(network(text).unwrap_err().message, expected);
        }
        assert!(valid_mac("f2:00:00:00:00:0").is_err() && valid_mac("f2-00-00-00-00-0a").is_ok());
    }
}
